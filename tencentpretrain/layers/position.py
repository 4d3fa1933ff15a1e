"""Positions that attention itself knows: learned biases by distance, rotation, linear biases."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tencentpretrain.config import ModelConfig
from tencentpretrain.errors import did_you_mean


class RelativePositionEmbedding(nn.Module):
    """A bias per head for the bucketed distance of key and query (T5, Raffel et al. 2020, §2.1)."""

    def __init__(self, config: ModelConfig, bidirectional: bool) -> None:
        super().__init__()
        self.bidirectional = bidirectional
        self.max_distance = config.relative_attention_max_distance
        self.relative_attention_bias = nn.Embedding(config.relative_attention_buckets_num, config.heads_num)

    def forward(self, queries: int, keys: int) -> Tensor:
        """[1, H, T, S], for the last T of S positions."""
        table = self.relative_attention_bias
        positions = torch.arange(keys, device=table.weight.device)
        distance = positions - positions[keys - queries :, None]
        buckets = distance_buckets(distance, table.num_embeddings, self.max_distance, self.bidirectional)
        return F.embedding(buckets, table.weight).permute(2, 0, 1).unsqueeze(0)


def distance_buckets(distance: Tensor, buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """The bucket of each distance of key and query.

    Half of the buckets are single distances, the rest grow logarithmically up to the largest distance; with
    `bidirectional` keys ahead have buckets of their own, else they share that of distance 0.
    """
    if bidirectional:
        buckets //= 2
        ahead, distance = (distance > 0).long() * buckets, distance.abs()
    else:
        ahead, distance = torch.zeros_like(distance), -distance.clamp(max=0)
    first = buckets // 2
    growth = torch.log(distance.clamp(min=1).float() / first) / math.log(max_distance / first)
    far = first + (growth * (buckets - first)).long()
    return ahead + torch.where(distance < first, distance, far.clamp(max=buckets - 1))


class Rotation(NamedTuple):
    """Cosines and sines, [1 or B, 1, S, K / 2]."""

    cos: Tensor
    sin: Tensor

    def first(self, number: int) -> Rotation:
        """Those of the leading positions."""
        return Rotation(self.cos[:, :, :number], self.sin[:, :, :number])

    def apply(self, states: Tensor) -> Tensor:
        """Rotate neighbouring pairs of [B, H, S, K]."""
        one, other = states.float().view(*states.shape[:-1], -1, 2).unbind(-1)
        turned = (one * self.cos - other * self.sin, one * self.sin + other * self.cos)
        return torch.stack(turned, -1).flatten(-2).to(states.dtype)


class Rotary:
    """Rotations by position (RoFormer, Su et al. 2021): pair i turns by theta^(-2i / K) per position.

    `rope_scaling` stretches them to texts longer than the model was trained on.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.size = config.head_size
        self.theta = config.rope_theta
        self.scaling = config.rope_scaling
        self.max_length = self.scaling.get("original_max_position_embeddings") or config.max_seq_length
        self.scale = ROPE_SCALINGS[rope_type(self.scaling)]

    def __call__(self, length: int, position_ids: Tensor | None, past: int, device: torch.device) -> Rotation:
        """For `length` positions after `past` others; position_ids [B, S] if they are not counted up."""
        speeds, factor = self.scale(self, past + length, device)
        if position_ids is None:
            position_ids = torch.arange(past, past + length, device=device)[None]
        angles = position_ids[:, None, :, None].float() * speeds
        return Rotation(angles.cos() * factor, angles.sin() * factor)

    def speeds(self, device: torch.device, theta: float | None = None) -> Tensor:
        """[K / 2]"""
        even = torch.arange(0, self.size, 2, dtype=torch.float32, device=device)
        return 1.0 / (theta or self.theta) ** (even / self.size)


def rope_type(scaling: Mapping[str, Any]) -> str:
    return str(scaling.get("rope_type", scaling.get("type", "default")))


Scaled = tuple[Tensor, float]  # speeds, and what cosines and sines are multiplied by


def _unscaled(rotary: Rotary, length: int, device: torch.device) -> Scaled:
    return rotary.speeds(device), 1.0


def _linear(rotary: Rotary, length: int, device: torch.device) -> Scaled:
    """Positions are divided (Chen et al. 2023)."""
    return rotary.speeds(device) / rotary.scaling["factor"], 1.0


def _dynamic(rotary: Rotary, length: int, device: torch.device) -> Scaled:
    """The base grows with the text once it is longer than those trained on ("dynamic NTK")."""
    factor, longest = rotary.scaling["factor"], rotary.max_length
    stretch = factor * max(length, longest) / longest - (factor - 1)
    return rotary.speeds(device, rotary.theta * stretch ** (rotary.size / (rotary.size - 2))), 1.0


def _yarn(rotary: Rotary, length: int, device: torch.device) -> Scaled:
    """Slow pairs are slowed down, fast ones are not, with a ramp between (YaRN, Peng et al. 2023, §3)."""
    given, size = rotary.scaling, rotary.size
    factor = given["factor"]

    def pair(turns: float) -> float:
        """The pair that turns so often over the length trained on."""
        return size * math.log(rotary.max_length / (turns * 2 * math.pi)) / (2 * math.log(rotary.theta))

    low, high = pair(given.get("beta_fast") or 32), pair(given.get("beta_slow") or 1)
    if given.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = (torch.arange(size // 2, device=device) - low) / (high - low or 0.001)
    slowed = ramp.clamp(0, 1)
    speeds = rotary.speeds(device)
    attention = given.get("attention_factor")
    if attention is None:
        attention = _yarn_temperature(factor)
        if given.get("mscale") and given.get("mscale_all_dim"):
            attention = _yarn_temperature(factor, given["mscale"]) / _yarn_temperature(
                factor, given["mscale_all_dim"]
            )
    return speeds / factor * slowed + speeds * (1 - slowed), float(attention)


def _yarn_temperature(factor: float, weight: float = 1.0) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _llama3(rotary: Rotary, length: int, device: torch.device) -> Scaled:
    """Long waves are stretched, short ones not, with a ramp between (Llama 3.1, Meta 2024)."""
    given, speeds = rotary.scaling, rotary.speeds(device)
    low, high = given["low_freq_factor"], given["high_freq_factor"]
    kept = ((rotary.max_length * speeds / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
    return speeds / given["factor"] * (1 - kept) + speeds * kept, 1.0


ROPE_SCALINGS: dict[str, Callable[[Rotary, int, torch.device], Scaled]] = {
    "default": _unscaled,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
}
# By rope_type: numbers that must be given, and what may be.
_GIVEN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "yarn": (
        ("factor",),
        (
            "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
            "mscale_all_dim", "truncate",
        ),
    ),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), ("original_max_position_embeddings",)),
}  # fmt: skip


def rope_problems(config: ModelConfig) -> Iterator[str]:
    """What is wrong with `rope_scaling`."""
    given, kind = config.rope_scaling, rope_type(config.rope_scaling)
    if kind not in ROPE_SCALINGS:
        yield f"`rope_scaling`: rope_type is {kind}; expected one of {', '.join(ROPE_SCALINGS)}."
        return
    needed, further = _GIVEN[kind]
    for name in (*needed, *(name for name in further if given.get(name) is not None)):
        value = given.get(name)
        if name == "truncate":
            if not isinstance(value, bool):
                yield f"`rope_scaling`: `{name}` must be true or false, but is {value!r} instead."
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            yield f"`rope_scaling`: rope_type {kind} needs a number `{name}` above 0, but it is {value!r}."
    for name in sorted(given.keys() - {"rope_type", "type", *needed, *further}):
        yield f"`rope_scaling`: rope_type {kind} has no `{name}`{did_you_mean(name, [*needed, *further])}."
    low, high = given.get("low_freq_factor"), given.get("high_freq_factor")
    if kind == "llama3" and low == high and low is not None:
        yield f"`rope_scaling`: `low_freq_factor` and `high_freq_factor` must differ, but both are {low}."


def relative_problems(config: ModelConfig) -> Iterator[str]:
    """What is wrong with the buckets of distances."""
    buckets, furthest = config.relative_attention_buckets_num, config.relative_attention_max_distance
    if buckets < 4:  # in two directions, each half single distances and half growing ones
        yield f"`relative_attention_buckets_num` must be 4 or more, but is {buckets} instead."
    if furthest <= buckets // 2:
        yield (
            f"`relative_attention_max_distance` must exceed half of `relative_attention_buckets_num` "
            f"({buckets}), but is {furthest} instead."
        )


def alibi_slopes(heads: int) -> list[float]:
    """Slopes per head: a geometric series for powers of two, else every second of the next one's besides.

    Press et al. 2022, §3.
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    return slopes + [2 ** (-4 * (2 * head + 1) / power) for head in range(heads - power)]


def alibi_bias(heads: int, keys: int, device: torch.device) -> Tensor:
    """[1, H, 1, S]: slope times the key's position, as only differences between keys matter to a softmax."""
    slopes = torch.tensor(alibi_slopes(heads), device=device)
    return (slopes[:, None] * torch.arange(keys, device=device))[None, :, None]
