"""Layer normalisation under the published parameter names."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tencentpretrain.config import ModelConfig


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016), with parameters named `gamma` and `beta`."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.ones(size))
        self.beta = nn.Parameter(torch.zeros(size))

    def forward(self, hidden: Tensor) -> Tensor:
        # Never in less than the hidden states have: on the CPU torch takes no bf16 weights (fsdp) with fp32.
        gamma, beta = (
            each.to(torch.promote_types(each.dtype, hidden.dtype)) for each in (self.gamma, self.beta)
        )
        return F.layer_norm(hidden, gamma.shape, gamma, beta, self.eps)


class RMSNorm(nn.RMSNorm):
    """Root-mean-square normalisation without mean or bias (Zhang & Sennrich 2019; T5, LLaMA)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


NORMS: dict[str, Callable[[int, float], nn.Module]] = {"normal": LayerNorm, "t5": RMSNorm, "rms": RMSNorm}


def make_norm(config: ModelConfig, size: int | None = None) -> nn.Module:
    return NORMS[config.layernorm](size or config.hidden_size, config.layernorm_eps)
