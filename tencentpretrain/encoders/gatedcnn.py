from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tencentpretrain.batch import Batch
from tencentpretrain.config import ModelConfig
from tencentpretrain.encoders.no_attention import mask_problems
from tencentpretrain.layers.cache import Cache
from tencentpretrain.registry import ENCODERS


@ENCODERS.register("gatedcnn")
class GatedCnnEncoder(nn.Module):
    """Convolutions over the last `kernel_size` positions, each gated by another (Dauphin et al. 2017, §2):
    [B, S, emb_size] to [B, S, D]. After every `block_size` layers past the first, their input is added.

    As published, every convolution has two biases, its own and a parameter `*_b`.
    """

    any_width = True
    features = ("convolutions",)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, size = config.hidden_size, config.kernel_size
        self.block_size = config.block_size
        self.conv_1, self.gate_1 = (nn.Conv2d(1, width, (size, config.emb_size)) for _ in range(2))
        self.conv_b1, self.gate_b1 = (nn.Parameter(torch.zeros(1, width, 1, 1)) for _ in range(2))
        more = range(config.layers_num - 1)
        self.conv, self.gate = (
            nn.ModuleList(nn.Conv2d(width, width, (size, 1)) for _ in more) for _ in range(2)
        )
        self.conv_b, self.gate_b = (
            nn.ParameterList(torch.zeros(1, width, 1, 1) for _ in more) for _ in range(2)
        )

    @staticmethod
    def problems(config: ModelConfig) -> Iterator[str]:
        yield from mask_problems(config, causal=True)

    @staticmethod
    def is_causal(config: ModelConfig) -> bool:
        return True

    def forward(
        self, hidden: Tensor, batch: Batch, outputs: int | None = None, cache: Cache | None = None
    ) -> Tensor:
        hidden = residual = _gated(hidden.mT, self.conv_1, self.gate_1, self.conv_b1, self.gate_b1)
        layers = zip(self.conv, self.gate, self.conv_b, self.gate_b, strict=True)
        for number, layer in enumerate(layers, start=1):
            hidden = _gated(hidden, *layer)
            if number % self.block_size == 0:
                hidden = residual = hidden + residual
        return hidden.mT


def _gated(hidden: Tensor, conv: Any, gate: Any, conv_b: Tensor, gate_b: Tensor) -> Tensor:
    """[B, C, S] to [B, D, S]: both convolutions as one over one dimension, preceded by zeros."""
    # [2D, 1, size, C] in the first layer, else [2D, C, size, 1].
    weight = torch.cat([conv.weight, gate.weight])
    weight = (weight.transpose(1, 3) if weight.shape[1] == 1 else weight).squeeze(-1)
    bias = torch.cat([conv.bias + conv_b.flatten(), gate.bias + gate_b.flatten()])
    return F.glu(F.conv1d(F.pad(hidden, (weight.shape[-1] - 1, 0)), weight, bias), dim=1)
