"""Activations that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar, TypeVarTuple, Unpack

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# What linear layers are computed by. Attention is not among them: an operation that draws random numbers must
# run again, or those after it draw others.
_LINEAR = frozenset({torch.ops.aten.mm.default, torch.ops.aten.addmm.default})


@dataclasses.dataclass(frozen=True)
class Recomputation:
    """Layers whose activations are computed again (Chen et al. 2016).

    Attributes:
        layers_num: so many at once; the input of the first is kept.
        keeps_linear: the results of their linear layers, which cost most to compute, are kept too (selective
            recomputation, Korthikanti et al. 2022, §5).
    """

    layers_num: int = 1
    keeps_linear: bool = False

    def run(self, function: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        result: T
        if self.keeps_linear:
            result = checkpoint(function, *args, use_reentrant=False, context_fn=_keeping_linear)
        else:
            result = checkpoint(function, *args, use_reentrant=False)
        return result


def _keeping_linear() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return create_selective_checkpoint_contexts(_policy)  # type: ignore[no-any-return, no-untyped-call]


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _LINEAR else CheckpointPolicy.PREFER_RECOMPUTE
