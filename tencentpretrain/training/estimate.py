"""What a model costs, found by running it on tensors without contents: nothing is computed or allocated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tencentpretrain.batch import Batch


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one batch, forward and backward.

    Attributes:
        flops: of the matrix products.
        activations: bytes kept for the backward pass, in fp32.
    """

    flops: int
    activations: int


def measure_cost(build: Callable[[], nn.Module], batch: Batch) -> Cost:
    """Cost of a batch for the model that `build` makes."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = build()
    inputs = {name: tensor.to("meta") for name, tensor in batch.items()}
    kept: dict[int, Tensor] = {}  # by storage: several views of one tensor cost once

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output: Any = model(inputs)
        activations = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        output.loss.backward()
    return Cost(counter.get_total_flops(), activations)


def state_bytes(parameters_num: int, optimizer: str) -> int:
    """Bytes of fp32 weights, gradients and optimizer state; Adafactor's means weigh next to none."""
    return 4 * parameters_num * (4 if optimizer == "adamw" else 2)


def parameters_num(module: nn.Module) -> int:
    """Parameters; a shared one counts once."""
    return sum(parameter.numel() for parameter in module.parameters())
