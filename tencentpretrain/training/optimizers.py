"""Optimizers by name. Matrices decay, vectors (biases, norms) do not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tencentpretrain.config import OptimizationConfig


class Adafactor(Optimizer):
    """Adafactor with a learning rate from outside (Shazeer & Stern 2018, algorithms 4 and 5).

    Second moments of matrices are kept as row and column means. As in the published toolkit the step is not
    scaled by the size of the parameter; `torch.optim.Adafactor` does that, and so needs other learning rates.

    Args:
        clip: largest root mean square of an update before the learning rate.
        decay: exponent of the decay of the second moments, 1 - t**decay.
        eps: added to squared gradients.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        weight_decay: float = 0.0,
        clip: float = 1.0,
        decay: float = -0.8,
        eps: float = 1e-30,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "clip": clip, "decay": decay, "eps": eps}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            if gradient.ndim >= 2:
                state["row"] = gradient.new_zeros(gradient.shape[:-1])
                state["column"] = gradient.new_zeros(gradient.shape[:-2] + gradient.shape[-1:])
            else:
                state["square"] = torch.zeros_like(gradient)
        state["step"] += 1
        new = state["step"] ** group["decay"]  # weight of the new square in the running mean
        square = gradient.square().add_(group["eps"])
        if gradient.ndim >= 2:
            row = state["row"].lerp_(square.mean(-1), new)
            column = state["column"].lerp_(square.mean(-2), new)
            rows = (row / row.mean(-1, keepdim=True)).rsqrt_().unsqueeze(-1)
            update = rows * column.rsqrt().unsqueeze(-2) * gradient
        else:
            update = state["square"].lerp_(square, new).rsqrt() * gradient
        size = update.norm() / math.sqrt(update.numel())
        update.div_((size / group["clip"]).clamp_(min=1.0))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(update, alpha=group["lr"])


def make_optimizer(model: nn.Module, config: OptimizationConfig) -> Optimizer:
    """The configured optimizer over the model's parameters; a tied parameter counts once.

    AdamW: Loshchilov & Hutter 2019, torch's fused kernel.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [weight for weight in trained if weight.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [weight for weight in trained if weight.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adafactor":
        return Adafactor(groups, lr=config.learning_rate)
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.adam_eps, fused=True)
