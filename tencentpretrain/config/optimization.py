"""How weights are updated."""

from __future__ import annotations

import dataclasses

from tencentpretrain.config.options import names_in, option
from tencentpretrain.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class OptimizationConfig:
    """Optimizer and learning rate."""

    learning_rate: float = option(2e-5, "Peak learning rate.", minimum=0)
    lr_min: float = option(0.0, "Floor of the learning rate.", minimum=0)
    warmup: float = option(0.1, "Share of the steps in which the learning rate rises.", minimum=0, maximum=1)
    lr_decay: float = option(
        0.5, "Share of the steps in which it falls (tri_stage, wsd).", minimum=0, maximum=1
    )
    lr_cycles: int = option(1, "Cycles of cosine_with_restarts.", minimum=1)
    lr_power: float = option(1.0, "Exponent of polynomial.", minimum=0)
    scheduler: str = option(
        "linear",
        "Course of the learning rate.",
        choices=names_in("tencentpretrain.training.schedules", "SCHEDULES"),
    )
    optimizer: str = option(
        "adamw",
        "Optimizer; muon is for the matrices of layers, and AdamW for the rest.",
        choices=("adamw", "adafactor", "muon"),
    )
    weight_decay: float = option(0.01, "Weight decay of matrices; biases and norms have none.", minimum=0)
    beta1: float = option(0.9, "AdamW: decay of the mean of gradients.", minimum=0, maximum=1)
    beta2: float = option(0.999, "AdamW: decay of the mean of squared gradients.", minimum=0, maximum=1)
    adam_eps: float = option(1e-6, "AdamW: added to the denominator.", minimum=0)
    max_grad_norm: float = option(
        1.0, "Gradients are scaled down to this norm; 0 turns clipping off.", minimum=0
    )

    layerwise_lr_decay: float = option(
        1.0,
        "Learning rate of a layer, as a share of the next one's; the head has all of it.",
        minimum=0,
        maximum=1,
    )
    ema_decay: float = option(
        0.0,
        "Decay of a moving average of the weights, which is then evaluated and written; 0: none.",
        minimum=0,
        maximum=1,
    )

    def __post_init__(self) -> None:
        problems = []
        if self.scheduler in ("tri_stage", "wsd") and self.warmup + self.lr_decay > 1:
            problems.append(
                f"`warmup` ({self.warmup}) and `lr_decay` ({self.lr_decay}) are shares of the steps; "
                f"with scheduler {self.scheduler} they must not exceed 1 together."
            )
        if self.lr_min > self.learning_rate:
            problems.append(
                f"`lr_min` ({self.lr_min}) must not exceed `learning_rate` ({self.learning_rate})."
            )
        if problems:
            raise ConfigError(problems)
