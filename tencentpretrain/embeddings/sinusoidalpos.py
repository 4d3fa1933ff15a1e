from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tencentpretrain.batch import Batch
from tencentpretrain.config import ModelConfig
from tencentpretrain.registry import EMBEDDINGS
from tencentpretrain.sizes import DataSizes


@EMBEDDINGS.register("sinusoidalpos")
class SinusoidalPositionEmbedding(nn.Module):
    """Sines and cosines of the position (Vaswani et al. 2017, §3.5): [1 or B, S, emb_size].

    As published, wavelengths run from 2π to 10000·2π with both ends included, and positions begin at 2; sines
    and cosines alternate for text and are halves for speech; the encoder's embeddings decide for both sides.
    Marian's positions begin at 0, and its wavelengths leave the last one out.
    """

    reads = ("input_ids",)

    def __init__(self, config: ModelConfig, sizes: DataSizes) -> None:
        super().__init__()
        variant = config.sinusoidal_variant
        if variant == "auto":
            variant = "concatenated" if "speech" in config.embedding else "interleaved"
        self.interleaved = variant == "interleaved"
        self.size = config.emb_size
        half = config.emb_size // 2
        self.first, self.waves = (0, half) if variant == "marian" else (2, half - 1)

    @staticmethod
    def problems(config: ModelConfig) -> list[str]:
        if config.emb_size % 2 == 0 and config.emb_size > 2:
            return []
        return [f"embedding 'sinusoidalpos' needs an even `emb_size` above 2, but it is {config.emb_size}."]

    def forward(self, batch: Batch) -> Tensor:
        tokens = batch["input_ids"]
        positions = batch.get("position_ids")
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        # In float32 a position of a thousand would leave four digits of an angle.
        numbers = torch.arange(self.size // 2, device=tokens.device, dtype=torch.float64)
        speeds = torch.exp(numbers * (-math.log(10000.0) / self.waves))
        angles = (positions + self.first).unsqueeze(-1) * speeds
        parts = (angles.sin().float(), angles.cos().float())
        return torch.stack(parts, -1).flatten(-2) if self.interleaved else torch.cat(parts, -1)
