"""Dropout that does not spend more time on random numbers than the layers on arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 1 << 16  # probabilities are multiples of 1 / LEVELS; 0.1 becomes 0.100006


def dropout(hidden: Tensor, probability: float, training: bool) -> Tensor:
    """Zero each element with the given probability and scale the rest up (Srivastava et al. 2014).

    On the CPU torch draws a number per element in one thread, at many times the cost of the multiplication;
    here 64 random bits serve four elements. Elsewhere, and where it is compiled, torch's own is used.
    """
    if not training or probability == 0:
        return hidden
    dropped = round(probability * LEVELS)
    if hidden.device.type != "cpu" or torch.compiler.is_compiling() or dropped == LEVELS:
        return F.dropout(hidden, probability)
    words = torch.empty(-(-hidden.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: hidden.numel()].view(hidden.shape)
    mask = (bits >= dropped - LEVELS // 2).to(hidden.dtype).mul_(LEVELS / (LEVELS - dropped))
    return hidden * mask


class Dropout(nn.Module):
    """`dropout` as a module."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, hidden: Tensor) -> Tensor:
        return dropout(hidden, self.probability, self.training)
