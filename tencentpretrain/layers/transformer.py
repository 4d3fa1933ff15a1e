"""The transformer layer."""

from __future__ import annotations

from torch import Tensor, nn

from tencentpretrain.config import ModelConfig
from tencentpretrain.layers.attention import MultiHeadedAttention
from tencentpretrain.layers.dropout import Dropout
from tencentpretrain.layers.feed_forward import FeedForward
from tencentpretrain.layers.masks import AttentionMask
from tencentpretrain.layers.norm import make_norm


class TransformerLayer(nn.Module):
    """Attention and feed-forward, each with dropout, residual and normalisation: [B, S, D] to [B, S, D].

    With `outputs`, the states of that many leading positions only are computed, from all: [B, outputs, D].

    `layernorm_positioning` "post" normalises after each residual sum (Vaswani et al. 2017), "pre" before each
    sub-layer (Xiong et al. 2020).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pre = config.layernorm_positioning == "pre"
        self.self_attn = MultiHeadedAttention(config)
        self.layer_norm_1 = make_norm(config)
        self.feed_forward = FeedForward(config)
        self.layer_norm_2 = make_norm(config)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden: Tensor, mask: AttentionMask, outputs: int | None = None) -> Tensor:
        mask = mask.for_queries(outputs)
        if self.pre:
            memory = self.layer_norm_1(hidden)
            hidden = hidden[:, :outputs] + self.dropout(self.self_attn(memory[:, :outputs], memory, mask))
            hidden = hidden + self.dropout(self.feed_forward(self.layer_norm_2(hidden)))
            return hidden
        asking = hidden[:, :outputs]
        hidden = self.layer_norm_1(asking + self.dropout(self.self_attn(asking, hidden, mask)))
        hidden = self.layer_norm_2(hidden + self.dropout(self.feed_forward(hidden)))
        return hidden
