"""The course of the learning rate, as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from tencentpretrain.config import OptimizationConfig

TRI_STAGE_START = 0.01  # where tri_stage's rise begins, and where its fall ends, as shares of the peak
TRI_STAGE_END = 0.05


def _warm(step: int, warmup: float) -> float:
    """Rise from 0 to 1 over `warmup` steps, then 1."""
    return step / warmup if step < warmup else 1.0


def _progress(step: int, start: float, end: float) -> float:
    """Share of the way from `start` to `end`, 0 before and 1 behind."""
    return min(max((step - start) / (end - start), 0.0), 1.0) if end > start else float(step >= end)


def linear(step: int, total: int, warmup: float) -> float:
    return _warm(step, warmup) * (1 - _progress(step, warmup, total))


def cosine(step: int, total: int, warmup: float) -> float:
    return _warm(step, warmup) * 0.5 * (1 + math.cos(math.pi * _progress(step, warmup, total)))


def cosine_with_restarts(step: int, total: int, warmup: float, cycles: int = 1) -> float:
    """Cosine that starts again from the peak, `cycles` times (Loshchilov & Hutter 2017, SGDR)."""
    progress = _progress(step, warmup, total)
    phase = cycles * progress % 1.0 if progress < 1 else 1.0
    return _warm(step, warmup) * 0.5 * (1 + math.cos(math.pi * phase))


def polynomial(step: int, total: int, warmup: float, power: float = 1.0) -> float:
    """Ends at the floor; the published one ended at 1e-7."""
    remaining: float = (1 - _progress(step, warmup, total)) ** power
    return _warm(step, warmup) * remaining


def constant(step: int, total: int, warmup: float) -> float:
    return 1.0


def constant_with_warmup(step: int, total: int, warmup: float) -> float:
    return _warm(step, warmup)


def inverse_sqrt(step: int, total: int, warmup: float) -> float:
    """Vaswani et al. 2017, §5.3; without warm-up it falls from the first step on."""
    return step / warmup if step < warmup else math.sqrt(max(warmup, 1.0) / max(step, 1))


def tri_stage(step: int, total: int, warmup: float, decay: float) -> float:
    """Rise, hold, fall exponentially over the last `decay` steps (Park et al. 2019, SpecAugment, §3.2)."""
    if step < warmup:
        return TRI_STAGE_START + (1 - TRI_STAGE_START) * step / warmup
    return math.exp(math.log(TRI_STAGE_END) * _progress(step, total - decay, total))


def wsd(step: int, total: int, warmup: float, decay: float) -> float:
    """Warm-up, stable, decay: linear to 0 over the last `decay` steps (Hu et al. 2024, MiniCPM, §4)."""
    return _warm(step, warmup) * (1 - _progress(step, total - decay, total))


SCHEDULES: dict[str, Callable[..., float]] = {
    function.__name__: function
    for function in (
        linear, cosine, cosine_with_restarts, polynomial, constant, constant_with_warmup, inverse_sqrt,
        tri_stage, wsd,
    )
}  # fmt: skip


def make_schedule(config: OptimizationConfig, total_steps: int) -> Callable[[int], float]:
    """Learning rate of the update that follows `step` updates.

    The floor `lr_min` is what a falling schedule falls to; a warm-up starts from 0 all the same.
    """
    warmup, decay = config.warmup * total_steps, config.lr_decay * total_steps
    schedule = partial(SCHEDULES[config.scheduler], total=total_steps, warmup=warmup)
    if config.scheduler in ("tri_stage", "wsd"):
        schedule = partial(schedule, decay=decay)
    elif config.scheduler == "cosine_with_restarts":
        schedule = partial(schedule, cycles=config.lr_cycles)
    elif config.scheduler == "polynomial":
        schedule = partial(schedule, power=config.lr_power)
    peak, floor = config.learning_rate, config.lr_min

    def learning_rate(step: int) -> float:
        multiplier = schedule(step)
        if step < warmup and config.scheduler != "constant":
            return peak * multiplier
        return floor + (peak - floor) * multiplier

    return learning_rate
