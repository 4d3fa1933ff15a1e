"""Multi-head attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tencentpretrain.config import ModelConfig
from tencentpretrain.layers.dropout import dropout
from tencentpretrain.layers.masks import AttentionMask


class MultiHeadedAttention(nn.Module):
    """Scaled dot-product attention (Vaswani et al. 2017, §3.2).

    `hidden` [B, T, D] asks, `memory` [B, S, D] answers: [B, T, D].
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.dropout = config.dropout
        self.scale = 1.0 if config.remove_attention_scale else None  # None: 1 / sqrt(head_size)
        inner, bias = config.heads_num * config.head_size, not config.remove_transformer_bias
        self.linear_layers = nn.ModuleList(nn.Linear(config.hidden_size, inner, bias=bias) for _ in range(3))
        self.final_linear = nn.Linear(inner, config.hidden_size, bias=bias)

    def forward(self, hidden: Tensor, memory: Tensor, mask: AttentionMask) -> Tensor:
        # The number of heads follows from the tensor, so that a layer split over devices needs no change.
        query, key, value = (
            layer(states).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for layer, states in zip(self.linear_layers, (hidden, memory, memory), strict=True)
        )
        dropping = self.training and self.dropout > 0
        if dropping and hidden.device.type == "cpu" and not torch.compiler.is_compiling():
            context = self._with_dropout(query, key, value, mask)
        else:
            context = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask.allowed,
                dropout_p=self.dropout if dropping else 0.0,
                is_causal=mask.causal,
                scale=self.scale,
            )
        output: Tensor = self.final_linear(context.transpose(1, 2).flatten(-2))
        return output

    def _with_dropout(self, query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask) -> Tensor:
        """The same attention written out: with dropout torch does so too on the CPU, at twice the time."""
        scale = self.head_size**-0.5 if self.scale is None else self.scale
        scores = (query * scale) @ key.transpose(-1, -2)
        allowed = mask.allowed
        if mask.causal:
            allowed = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        if allowed is not None:
            scores = scores.masked_fill_(~allowed, -torch.inf)
        return dropout(scores.softmax(-1), self.dropout, training=True) @ value
