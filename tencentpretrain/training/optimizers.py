"""Optimizers by name. Matrices decay, vectors (biases, norms) do not."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tencentpretrain.config import OptimizationConfig
from tencentpretrain.errors import ConfigError
from tencentpretrain.training.moving_average import keep_average


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


class Muon(Optimizer):
    """Muon for the matrices between embeddings and heads, AdamW for all other weights (Jordan et al. 2024).

    Both are torch's. Updates of Muon are scaled to the size of AdamW's, so that one learning rate and one
    weight decay serve both (Liu et al. 2025, Muon is Scalable for LLM Training, §2.2).

    Args:
        groups: of parameters; those with "muon" are Muon's.
        adamw: what AdamW is given.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, adamw: dict[str, Any]) -> None:
        self._parts = {
            True: torch.optim.Muon(
                [group for group in groups if group["muon"]], lr=lr, adjust_lr_fn="match_rms_adamw"
            ),
            False: torch.optim.AdamW([group for group in groups if not group["muon"]], lr=lr, **adamw),
        }
        super().__init__([group for part in self._parts.values() for group in part.param_groups], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for muon, part in self._parts.items():
            # Groups and states are this optimizer's, and new ones after each load_state_dict.
            part.param_groups = [group for group in self.param_groups if group["muon"] == muon]
            part.state = self.state
            part.step()


def make_optimizer(model: nn.Module, config: OptimizationConfig) -> Optimizer:
    """The configured optimizer over the model's parameters; a tied parameter counts once.

    AdamW: Loshchilov & Hutter 2019, torch's fused kernel. A group's "lr_scale" is what the engine multiplies
    the learning rate by.

    Raises:
        ConfigError: Muon has nothing to do in this model.
    """
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    distances = distances_from_head(list(trained)) if config.layerwise_lr_decay < 1 else {}
    groups: dict[tuple[bool, bool, int], dict[str, Any]] = {}
    for name, weight in trained.items():
        decays, distance = weight.ndim >= 2, distances.get(name, 0)
        muon = config.optimizer == "muon" and weight.ndim == 2 and _is_hidden(name)
        group = groups.setdefault(
            (not muon, not decays, distance),
            {
                "params": [],
                "weight_decay": config.weight_decay if decays else 0.0,
                "lr_scale": config.layerwise_lr_decay**distance,
                "muon": muon,
            },
        )
        group["params"].append(weight)
    ordered = [groups[key] for key in sorted(groups)]
    adamw: dict[str, Any] = {"betas": (config.beta1, config.beta2), "eps": config.adam_eps, "fused": True}
    optimizer: Optimizer
    if config.optimizer == "adafactor":
        optimizer = Adafactor(ordered, lr=config.learning_rate)
    elif config.optimizer == "muon":
        if not any(group["muon"] for group in ordered):
            raise ConfigError("--optimizer muon is for the matrices of layers, but this model has none.")
        optimizer = Muon(ordered, config.learning_rate, adamw)
    else:
        optimizer = torch.optim.AdamW(ordered, lr=config.learning_rate, **adamw)
    if config.ema_decay:
        keep_average(optimizer, config.ema_decay)
    return optimizer


_POSITIONS = re.compile(r"\b(?:relative|self)_pos_emb\.")  # of attention: embeddings inside a stack
_LAYER = re.compile(r"^(?:encoder|decoder)\.(?:\w+\.)?transformer\w*\.(\d+)\.|_l(\d+)(?:_reverse)?$")


def _is_hidden(name: str) -> bool:
    """Whether a weight is of a layer: no embedding, no head."""
    return name.startswith(("encoder.", "decoder.")) and not _POSITIONS.search(name)


def distances_from_head(names: Sequence[str]) -> dict[str, int]:
    """How many layers a weight is away from the head: itself 0, the last layer 1, embeddings farthest.

    Encoder and decoder are each a stack below the head. What is used by all layers (ALBERT), or stands behind
    them (a last norm), is as near as the last one.
    """
    layers: dict[str, int | None] = {}
    for name in names:
        if _is_hidden(name) and not name.startswith("encoder.linear."):  # that one widens embeddings
            found = _LAYER.search(name)
            layers[name] = int(found[1] or found[2]) if found else None
    depths = {
        stack: 1
        + max((n for name, n in layers.items() if name.startswith(stack) and n is not None), default=0)
        for stack in ("encoder", "decoder")
    }
    distances = {}
    for name in names:
        stack = "decoder" if name.startswith(("decoder.", "tgt_embedding.")) else "encoder"
        if name in layers:
            number = layers[name]
            distances[name] = 1 if number is None else depths[stack] - number
        elif name.startswith(("embedding.", "tgt_embedding.", "encoder.", "decoder.")):
            distances[name] = depths[stack] + 1
        else:
            distances[name] = 0
    return distances
