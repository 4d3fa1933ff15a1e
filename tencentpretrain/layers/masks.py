"""What may attend to what, said once per forward pass and lowered to the cheapest form attention accepts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class AttentionMask(NamedTuple):
    """Visibility of keys to queries.

    Attributes:
        causal: a query sees its own position and those before it.
        allowed: bool, broadcastable to [B, H, S, S], True where attention is allowed; None: everywhere.
            At most one of the two is set.
    """

    causal: bool = False
    allowed: Tensor | None = None

    def for_queries(self, number: int | None) -> AttentionMask:
        """The same for that many leading queries; None: all. A causal mask begins with them anyway."""
        if number is None or self.allowed is None or self.allowed.shape[-2] == 1:
            return self
        return AttentionMask(allowed=self.allowed[..., :number, :])


def fully_visible(segment_ids: Tensor | None) -> AttentionMask:
    """Every query sees every key that is not padding. segment_ids: [B, S], 0 at padding."""
    if segment_ids is None:
        return AttentionMask()
    real = segment_ids > 0
    # Without a mask attention takes a faster kernel. Asking costs nothing on the CPU, but would stall a GPU
    # and break a compiled graph.
    if real.device.type == "cpu" and not torch.compiler.is_compiling() and bool(real.all()):
        return AttentionMask()
    return AttentionMask(allowed=real[:, None, None, :])


def causal(segment_ids: Tensor | None) -> AttentionMask:
    """Every query sees the keys up to its own; padding is on the right, where no real query looks."""
    return AttentionMask(causal=True)


def causal_with_prefix(segment_ids: Tensor | None) -> AttentionMask:
    """The first segment sees itself whole, the rest sees it and its past (UniLM, Dong et al. 2019, §2.2)."""
    if segment_ids is None:
        return AttentionMask()
    length = segment_ids.shape[1]
    past = torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
    return AttentionMask(allowed=(past | (segment_ids == 1)[:, None, :])[:, None])


MASKS = {"fully_visible": fully_visible, "causal": causal, "causal_with_prefix": causal_with_prefix}
