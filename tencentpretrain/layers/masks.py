"""What may attend to what, said once per forward pass and lowered to the cheapest form attention accepts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class AttentionMask(NamedTuple):
    """Visibility of keys to queries, and what is added to the scores.

    Attributes:
        causal: a query sees its own position and those before it.
        allowed: bool, broadcastable to [B, H, T, S], True where attention is allowed; None: everywhere.
        bias: float, broadcastable to [B, H, T, S], added to the scores, -inf where attention is not allowed.
            At most one of the three is set.
        previous: scores of the layer below [B, H, T, S], added to this one's (residual attention).
    """

    causal: bool = False
    allowed: Tensor | None = None
    bias: Tensor | None = None
    previous: Tensor | None = None

    def for_queries(self, number: int | None) -> AttentionMask:
        """The same for that many leading queries; None: all. A causal mask begins with them anyway."""
        if number is None:
            return self
        return AttentionMask(self.causal, *(_rows(matrix, number) for matrix in self[1:]))

    def with_bias(self, bias: Tensor) -> AttentionMask:
        """The same with numbers [1 or B, H, 1 or T, S] added to the scores."""
        if self.bias is not None:
            return AttentionMask(bias=self.bias + bias)
        allowed = self.allowed
        if self.causal:
            allowed = past(bias.shape[-1], bias.shape[-1], bias.device)
        return AttentionMask(bias=bias if allowed is None else torch.where(allowed, bias, -torch.inf))

    def within(self, window: int | None, queries: int, keys: int, device: torch.device) -> AttentionMask:
        """The same, where it is causal, for `window` positions back at most, a query's own included."""
        if window is None or window >= keys:
            return self
        near = past(queries, keys, device).triu(keys - queries - window + 1)
        return AttentionMask(allowed=near if self.allowed is None else near & self.allowed)

    def within_documents(self, document_ids: Tensor) -> AttentionMask:
        """The same between tokens of one document of a packed row; document_ids: [B, S], 0 at padding."""
        same = (document_ids.unsqueeze(-1) == document_ids.unsqueeze(-2)).unsqueeze(1)
        if self.causal:
            same = same.tril()
        if self.allowed is None:
            return AttentionMask(allowed=same)
        # Padding sees padding: a softmax over nothing is NaN, and its gradient would spread.
        return AttentionMask(allowed=same & (self.allowed | (document_ids == 0)[:, None, None]))


def _rows(matrix: Tensor | None, number: int) -> Tensor | None:
    return matrix if matrix is None or matrix.shape[-2] == 1 else matrix[..., :number, :]


def past(queries: int, keys: int, device: torch.device) -> Tensor:
    """[T, S]: the last T of S positions see themselves and what is before."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def _padded(segment_ids: Tensor | None) -> bool:
    """Whether there is padding, or may be.

    Without a mask attention takes a faster kernel. Asking costs nothing on the CPU, but would stall a GPU and
    break a compiled graph.
    """
    if segment_ids is None:
        return False
    return segment_ids.device.type != "cpu" or torch.compiler.is_compiling() or not bool(segment_ids.all())


class Positions(NamedTuple):
    """The positions that ask and answer in one forward pass.

    Attributes:
        segment_ids: [B, S], 0 at padding; None: no padding.
        queries: how many ask: the last T of the S.
        keys: S.
        position_ids: [B, T] where the positions are not counted up.
        generating: earlier keys may be in a cache, and padding on the left; else it is on the right, where no
            real query looks in a causal model.
    """

    segment_ids: Tensor | None
    queries: int
    keys: int
    device: torch.device
    position_ids: Tensor | None = None
    generating: bool = False


def fully_visible(at: Positions) -> AttentionMask:
    """Every query sees every key that is not padding."""
    if at.segment_ids is None or not _padded(at.segment_ids):
        return AttentionMask()
    return AttentionMask(allowed=(at.segment_ids > 0)[:, None, None, :])


def causal(at: Positions) -> AttentionMask:
    """Every query sees the keys up to its own."""
    padded = at.generating and _padded(at.segment_ids)
    if not padded and at.queries == at.keys:
        return AttentionMask(causal=True)
    if not padded and at.queries == 1:
        return AttentionMask()
    seen = past(at.queries, at.keys, at.device)
    if at.segment_ids is None or not padded:
        return AttentionMask(allowed=seen)
    # Padding sees itself: a softmax over nothing is NaN, and that would spread.
    itself = seen.triu(at.keys - at.queries)
    return AttentionMask(allowed=(seen & (at.segment_ids > 0)[:, None] | itself)[:, None])


def causal_with_prefix(at: Positions) -> AttentionMask:
    """The first segment sees itself whole, the rest sees it and its past (UniLM, Dong et al. 2019, §2.2)."""
    if at.segment_ids is None:
        return AttentionMask()
    seen = causal(at).allowed
    if seen is None:
        seen = past(at.queries, at.keys, at.device)
    return AttentionMask(allowed=seen | (at.segment_ids == 1)[:, None, None, :])


MASKS = {"fully_visible": fully_visible, "causal": causal, "causal_with_prefix": causal_with_prefix}
