"""How a sequence becomes one vector."""

from __future__ import annotations

import torch
from torch import Tensor


def pool(hidden: Tensor, segment_ids: Tensor | None, pooling: str) -> Tensor:
    """hidden [B, S, D] to [B, D]: its mean, maximum, first or last vector, over what is not padding."""
    if pooling == "first":
        return hidden[:, 0]
    if segment_ids is None:
        segment_ids = torch.ones(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
    real = segment_ids > 0
    if pooling == "mean":
        weights = real.to(hidden.dtype).unsqueeze(-1)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    if pooling == "max":
        return hidden.masked_fill(~real.unsqueeze(-1), -torch.inf).amax(1)
    last = (real.sum(1) - 1).clamp(min=0)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]
