"""What the updates of an interval add up to, and what is to be said about it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from tencentpretrain.errors import UserError
from tencentpretrain.targets.output import TargetOutput

log = logging.getLogger("tencentpretrain")


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

    def add_update(self, norm: Tensor) -> None:
        """Count an update by the norm of its gradient."""
        finite = norm.isfinite()
        self.add("grad_norm", torch.where(finite, norm, 0.0))
        self.add("updates", finite)
        self.add("steps", 1)

    def read(self) -> dict[str, float]:
        """All sums at once; the device is waited for once."""
        device = next((value.device for value in self.values.values() if value.device.type != "cpu"), None)
        values = [value.to(device) for value in self.values.values()]
        return dict(zip(self.values, torch.stack(values).tolist(), strict=True)) if values else {}


def means(sums: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """The loss, that of each target, then each metric: sum by count, whatever the ranks and batches."""
    names = [name for name in sums if f"count_{name.removeprefix('loss_')}" in sums]
    names.sort(key=lambda name: not name.startswith("loss_"))
    each = {name: sums[name] / max(sums[f"count_{name.removeprefix('loss_')}"], 1) for name in names}
    losses = [
        weights.get(name.removeprefix("loss_"), 1.0) * value
        for name, value in each.items()
        if name.startswith("loss_")
    ]
    return {"loss": sum(losses, 0.0)} | each


def mean_norm(sums: Mapping[str, float], step: int) -> float:
    """Mean norm of the gradients up to `step` that were finite; warns if none was."""
    if not sums["updates"]:
        log.warning(
            f"no update in the {sums['steps']:.0f} steps up to step {step}: every gradient overflowed. "
            "If this goes on, use --precision bf16 or fp32."
        )
    return sums["grad_norm"] / max(sums["updates"], 1)


def check_finite(sums: Mapping[str, float], step: int, skips_overflow: bool, kept: str) -> None:
    """Refuse to go on with weights that are lost.

    Args:
        skips_overflow: whether updates with a gradient that is not finite were left out.
        kept: what there is of earlier weights, a sentence.

    Raises:
        UserError: a loss or the gradient of an update was not finite.
    """
    loss = not all(math.isfinite(value) for name, value in sums.items() if name.startswith("loss_"))
    gradient = sums.get("updates", 0) < sums.get("steps", 0) and not skips_overflow
    if loss or gradient:
        raise UserError(
            f"the {'loss' if loss else 'gradient'} stopped being finite before step {step}. {kept}; lower "
            "--learning_rate, raise --warmup, or use --precision fp32."
        )
