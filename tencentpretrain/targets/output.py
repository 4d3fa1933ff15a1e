"""What a target returns: sums and counts, so that batches of any size on any number of devices add up."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Metrics = dict[str, tuple[Tensor, Tensor]]  # name -> (sum, count)


class Part(NamedTuple):
    """One target's share: the loss summed over what was predicted, how much that was, further metrics.

    A tuple, because engines look for tensors in what modules return, and there they find them.
    """

    loss_sum: Tensor
    count: Tensor  # type: ignore[assignment]  # instead of a tuple's method
    metrics: Metrics


@dataclasses.dataclass(frozen=True)
class TargetOutput:
    """The outcome of a forward pass, by target.

    Attributes:
        parts: target name to its share.
        weights: target name to its weight in the loss; 1 where not named.
    """

    parts: dict[str, Part]
    weights: Mapping[str, float]

    def normalised(self, counts: Mapping[str, float | Tensor]) -> Tensor:
        """The loss with each target divided by a count from outside: all that is predicted in one update.

        The sum of it over micro-batches and ranks is the loss of one big batch; a mean of means is not.
        """
        terms = [
            self.weights.get(name, 1.0) * part.loss_sum / torch.clamp(torch.as_tensor(counts[name]), min=1)
            for name, part in self.parts.items()
        ]
        return torch.stack(terms).sum()

    @property
    def loss(self) -> Tensor:
        """The mean loss over this batch, targets combined by weight."""
        return self.normalised({name: part.count for name, part in self.parts.items()})

    @property
    def count(self) -> Tensor:
        """Predicted items of all targets."""
        return sum((part.count for part in self.parts.values()), torch.tensor(0))

    @property
    def loss_sum(self) -> Tensor:
        """`loss` times `count`; with one target the sum over its items."""
        return self.loss * self.count

    @property
    def metrics(self) -> Metrics:
        return {name: value for part in self.parts.values() for name, value in part.metrics.items()}
