"""What happens to tensors on the way between two libraries; every step can be undone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from tencentpretrain.errors import WeightsError
from tencentpretrain.state_dict import in_words

Values = Mapping[str, Any]  # our configuration values; empty where only a bare file is known


class Step(Protocol):
    """A change of tensors that can be undone."""

    def to_ours(self, tensors: list[Tensor], config: Values) -> list[Tensor]: ...

    def to_theirs(self, tensors: list[Tensor], config: Values) -> list[Tensor]: ...


class Transpose:
    """The last two dimensions are swapped (GPT-2 stores the matrices of linear layers so)."""

    def to_ours(self, tensors: list[Tensor], config: Values) -> list[Tensor]:
        return [tensor.mT.contiguous() for tensor in tensors]

    to_theirs = to_ours


@dataclasses.dataclass(frozen=True)
class Split:
    """One tensor of theirs is several equal parts of ours, along the first dimension."""

    parts: int

    def to_ours(self, tensors: list[Tensor], config: Values) -> list[Tensor]:
        (fused,) = tensors
        if fused.shape[0] % self.parts:
            raise WeightsError(
                f"a tensor of shape {in_words(fused.shape)} cannot be split into {self.parts} equal parts."
            )
        return [part.contiguous() for part in fused.chunk(self.parts)]

    def to_theirs(self, tensors: list[Tensor], config: Values) -> list[Tensor]:
        return [torch.cat(tensors)]


@dataclasses.dataclass(frozen=True)
class PadRows:
    """Ours has `front` more rows of zeros before theirs (negative: theirs has more) and `back` after."""

    front: int = 0
    back: int = 0

    def to_ours(self, tensors: list[Tensor], config: Values) -> list[Tensor]:
        return [_pad_rows(tensor, self.front, self.back) for tensor in tensors]

    def to_theirs(self, tensors: list[Tensor], config: Values) -> list[Tensor]:
        return [_pad_rows(tensor, -self.front, -self.back) for tensor in tensors]

    def left_out(self, theirs: Tensor) -> list[int]:
        """Rows that ours does not have and that are not zeros."""
        rows = len(theirs)
        return [*filter(lambda row: theirs[row].any(), (*range(-self.front), *range(rows + self.back, rows)))]


@dataclasses.dataclass(frozen=True)
class RollRows:
    """The first rows of theirs are the last of ours."""

    rows: int

    def to_ours(self, tensors: list[Tensor], config: Values) -> list[Tensor]:
        return [tensor.roll(-self.rows, 0) for tensor in tensors]

    def to_theirs(self, tensors: list[Tensor], config: Values) -> list[Tensor]:
        return [tensor.roll(self.rows, 0) for tensor in tensors]


class Flatten:
    """A single row of theirs is a vector of ours."""

    def to_ours(self, tensors: list[Tensor], config: Values) -> list[Tensor]:
        return [tensor.flatten() for tensor in tensors]

    def to_theirs(self, tensors: list[Tensor], config: Values) -> list[Tensor]:
        return [tensor[None] for tensor in tensors]


class OneSegment:
    """Theirs has one vector for every segment or two; ours has padding (zeros), first, second."""

    def to_ours(self, tensors: list[Tensor], config: Values) -> list[Tensor]:
        (segments,) = tensors
        if len(segments) not in (1, 2):
            raise WeightsError(f"has {len(segments)} segments, expected 1 or 2.")
        return [torch.cat([torch.zeros_like(segments[:1]), segments[:1], segments[-1:]])]

    def to_theirs(self, tensors: list[Tensor], config: Values) -> list[Tensor]:
        ((_, first, second),) = tensors
        # Files of the published conversion have the one vector in the last row, below zeros.
        one = torch.equal(first, second) or not first.any()
        return [second[None] if one else torch.stack([first, second])]


class SplitHeads:
    """Queries, keys and values are one tensor of theirs, head by head: [H × 3 × K, …] (BLOOM)."""

    def to_ours(self, tensors: list[Tensor], config: Values) -> list[Tensor]:
        (fused,) = tensors
        rows = head_size(config)
        heads = _split_rows(_split_rows(fused, 3 * rows), rows, dim=1)
        return [heads[:, part].flatten(0, 1) for part in range(3)]

    def to_theirs(self, tensors: list[Tensor], config: Values) -> list[Tensor]:
        return [torch.stack([_split_rows(part, head_size(config)) for part in tensors], 1).flatten(0, 2)]


class RotaryPairs:
    """The components that rotate together are neighbours at ours (as in RoFormer's and LLaMA's own weights);
    at theirs the first of all pairs come before the second. In every head, along the first dimension."""

    def to_ours(self, tensors: list[Tensor], config: Values) -> list[Tensor]:
        return [self._swap(tensor, head_size(config), head_size(config) // 2) for tensor in tensors]

    def to_theirs(self, tensors: list[Tensor], config: Values) -> list[Tensor]:
        return [self._swap(tensor, head_size(config), 2) for tensor in tensors]

    def _swap(self, tensor: Tensor, head: int, inner: int) -> Tensor:
        """Heads are read as a matrix with rows of `inner`, and written column by column."""
        return _split_rows(_split_rows(tensor, head), inner, dim=1).transpose(1, 2).flatten(0, 2)


def head_size(config: Values) -> int:
    """K, of our configuration values."""
    known = config.get("attention_head_size")
    if known is None and "hidden_size" in config and "heads_num" in config:
        known = config["hidden_size"] // config["heads_num"]
    if known is None:
        raise WeightsError(
            "the size of its heads is not known from the weights alone; give the directory with config.json "
            "or, of weights of ours, the description beside them."
        )
    return int(known)


def _split_rows(tensor: Tensor, rows: int, dim: int = 0) -> Tensor:
    """[…, n × rows, …] to [… n, rows, …]"""
    shape = tensor.shape
    if shape[dim] % rows:
        raise WeightsError(f"a tensor of shape {in_words(tensor.shape)} is not made of heads of {rows} rows.")
    return tensor.reshape(*shape[:dim], shape[dim] // rows, rows, *shape[dim + 1 :])


def _pad_rows(tensor: Tensor, front: int, back: int) -> Tensor:
    if tensor.shape[0] + front + back <= 0:
        raise WeightsError(
            f"a tensor of shape {in_words(tensor.shape)} has no row left without {-front - back} of them."
        )
    # Cut first: padding with a negative number would give a view.
    kept = tensor[max(-front, 0) : tensor.shape[0] - max(-back, 0)]
    ends = [kept.new_zeros(max(rows, 0), *kept.shape[1:]) for rows in (front, back)]
    return torch.cat([ends[0], kept, ends[1]])
