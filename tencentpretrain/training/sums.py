"""What the updates of an interval add up to, and what is to be said about it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from tencentpretrain.batch import labels_of
from tencentpretrain.data.loader import is_sequence
from tencentpretrain.targets.output import TargetOutput


class Sums:
    """Named sums that stay on the device until somebody reads them.

    Attributes:
        weights: of the targets in the loss, as the outputs that were added say.
    """

    def __init__(self, values: Mapping[str, Tensor] | None = None) -> None:
        self.values: dict[str, Tensor] = dict(values or {})
        self.weights: Mapping[str, float] = {}

    def add(self, name: str, value: Tensor | float) -> None:
        value = torch.as_tensor(value).detach().double()
        self.values[name] = self.values[name].to(value.device) + value if name in self.values else value

    def add_output(self, output: TargetOutput) -> None:
        self.weights = output.weights
        for name, part in output.parts.items():
            self.add(f"loss_{name}", part.loss_sum)
            self.add(f"count_{name}", part.count)
        for name, (total, count) in output.metrics.items():
            self.add(name, total)
            self.add(f"count_{name}", count)

    def add_finite(self, others: Sums) -> None:
        """Add other sums: all of them, or none if one is not finite."""
        self.weights = others.weights
        values = torch.stack(others._together())
        values = torch.where(values.isfinite().all(), values, 0.0)
        for name, value in zip(others.values, values.unbind(), strict=True):
            self.add(name, value)

    def add_norm(self, norm: Tensor) -> None:
        """Count an update by the norm of its gradient, unless it is left out because that is not finite."""
        finite = norm.isfinite()
        self.add("grad_norm", torch.where(finite, norm, 0.0))
        self.add("updates", finite)

    def _together(self) -> list[Tensor]:
        """The sums on one device: the one that computes, if some are there."""
        values = list(self.values.values())
        device = next((value.device for value in values if value.device.type != "cpu"), None)
        return [value.to(device, non_blocking=True) for value in values]

    def read(self) -> dict[str, float]:
        """All sums at once; the device is waited for once."""
        values = self._together()
        return dict(zip(self.values, torch.stack(values).tolist(), strict=True)) if values else {}


def means(sums: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """The loss, that of each target, then each metric: sum by count, whatever the ranks and batches.

    The loss is NaN where nothing was counted.
    """
    names = [name for name in sums if f"count_{name.removeprefix('loss_')}" in sums]
    names.sort(key=lambda name: not name.startswith("loss_"))
    counts = {name: sums[f"count_{name.removeprefix('loss_')}"] for name in names}
    each = {name: sums[name] / max(counts[name], 1) for name in names}
    losses = [
        weights.get(name.removeprefix("loss_"), 1.0) * value
        for name, value in each.items()
        if name.startswith("loss_")
    ]
    return {"loss": sum(losses, 0.0) if any(counts.values()) else math.nan} | each


def perplexity(averages: Mapping[str, float]) -> float:
    """Of the first target that predicts tokens; where there is none, of the whole loss.

    Args:
        averages: as `means` gives them.
    """
    of_tokens = (
        value
        for name, value in averages.items()
        if name.startswith("loss_") and is_sequence(labels_of(name.removeprefix("loss_")))
    )
    return math.exp(min(next(of_tokens, averages["loss"]), 700.0))  # more is no number


def mean_norm(sums: Mapping[str, float]) -> float:
    """Mean norm of the gradients that became updates; NaN if none did."""
    return sums["grad_norm"] / sums["updates"] if sums["updates"] else math.nan
