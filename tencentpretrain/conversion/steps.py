"""What happens to tensors on the way between two libraries; every step can be undone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from tencentpretrain.errors import WeightsError

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
                f"a tensor of shape {_shape(fused)} cannot be split into {self.parts} equal parts."
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


def _pad_rows(tensor: Tensor, front: int, back: int) -> Tensor:
    if tensor.shape[0] + front + back <= 0:
        raise WeightsError(
            f"a tensor of shape {_shape(tensor)} has no row left without {-front - back} of them."
        )
    # Cut first: padding with a negative number would give a view.
    kept = tensor[max(-front, 0) : tensor.shape[0] - max(-back, 0)]
    ends = [kept.new_zeros(max(rows, 0), *kept.shape[1:]) for rows in (front, back)]
    return torch.cat([ends[0], kept, ends[1]])


def _shape(tensor: Tensor) -> str:
    return " × ".join(map(str, tensor.shape)) or "one number"
