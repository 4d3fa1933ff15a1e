from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tencentpretrain.config import ModelConfig
from tencentpretrain.encoders.no_attention import mask_problems
from tencentpretrain.encoders.transformer import TransformerEncoder
from tencentpretrain.layers.masks import AttentionMask
from tencentpretrain.registry import ENCODERS


class FourierMixing(nn.Module):
    """In the place of attention, the real part of the discrete Fourier transform over positions and features
    (Lee-Thorp et al. 2022, §3.2): [B, S, D] to the leading positions [B, T, D].

    A row is transformed over its own length. As published, padding is mixed in, and results depend on how
    much of it there is; that is what padding in segment 1 gives.
    """

    def forward(
        self, hidden: Tensor, memory: Tensor, mask: AttentionMask, rotation: None = None, cache: None = None
    ) -> tuple[Tensor, AttentionMask]:
        if mask.allowed is None:
            mixed = torch.fft.fft2(memory.float()).real
        else:
            real = mask.allowed[:, 0]  # [B, 1, S]
            lengths = real.sum(-1, keepdim=True).clamp(min=1)
            positions = torch.arange(memory.shape[1], device=memory.device)
            # Whole turns are taken off while numbers are whole, and so exact.
            angles = positions[:, None] * positions % lengths * (2 * math.pi / lengths)
            waves = torch.fft.fft(memory.float())
            mixed = (angles.cos() * real) @ waves.real + (angles.sin() * real) @ waves.imag
        return mixed[:, : hidden.shape[1]].to(hidden.dtype), mask


@ENCODERS.register("fnet")
class FNetEncoder(TransformerEncoder):
    """A transformer with Fourier transforms for attention (Lee-Thorp et al. 2022)."""

    keeps_documents_apart = False
    features = ("layers",)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        for layer in self._layers():
            layer.self_attn = FourierMixing()

    @staticmethod
    def problems(config: ModelConfig) -> Iterator[str]:
        yield from mask_problems(config, causal=False)
