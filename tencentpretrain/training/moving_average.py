"""The exponential moving average of weights (Polyak & Juditsky 1992; decay as in Tarvainen & Valpola 2017).

It is kept where the optimizer keeps what it knows of a weight, so that whatever saves, shards or restores
that does so with the average too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

KEY = "average"


def keep_average(optimizer: Optimizer, decay: float) -> None:
    """After every update, average ← decay · average + (1 − decay) · weights; at first it is the weights."""

    def update(optimizer: Optimizer, *_: Any) -> None:
        for weight, state in optimizer.state.items():
            if KEY not in state:
                state[KEY] = weight.detach().clone()
        weights, averages = _pairs(optimizer)
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - decay)

    optimizer.register_step_post_hook(update)


def drop_average(optimizer: Optimizer) -> None:
    """Forget the average of a run that had one."""
    for state in optimizer.state.values():
        state.pop(KEY, None)


def averaged(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor] | None:
    """The model's state dict with averages for weights, which are not copied; None: there are none.

    A weight that was never updated is its own average.
    """
    if not any(KEY in state for state in optimizer.state.values()):
        return None
    return {
        name: optimizer.state[tensor].get(KEY, tensor) if tensor in optimizer.state else tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
    }


@contextlib.contextmanager
def average_in_place(optimizer: Optimizer) -> Iterator[None]:
    """Inside, the model computes with the averages, if there are any."""
    _exchange(optimizer)
    try:
        yield
    finally:
        _exchange(optimizer)


@torch.no_grad()
def _exchange(optimizer: Optimizer) -> None:
    for weight, average in zip(*_pairs(optimizer), strict=True):
        held = weight.clone()
        weight.copy_(average)
        average.copy_(held)


def _pairs(optimizer: Optimizer) -> tuple[list[Tensor], list[Tensor]]:
    """This process's part of the weights, and of their averages."""
    both = [(weight, state[KEY]) for weight, state in optimizer.state.items() if KEY in state]
    return [_local(weight.detach()) for weight, _ in both], [_local(average) for _, average in both]


def _local(tensor: Tensor) -> Tensor:
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # of a DTensor
    return part
