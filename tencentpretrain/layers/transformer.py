"""The transformer layer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from tencentpretrain.config import ModelConfig
from tencentpretrain.layers.attention import MultiHeadedAttention, ResidualAttention
from tencentpretrain.layers.cache import LayerCache
from tencentpretrain.layers.dropout import Dropout
from tencentpretrain.layers.feed_forward import FeedForward
from tencentpretrain.layers.masks import AttentionMask
from tencentpretrain.layers.norm import make_norm
from tencentpretrain.layers.position import Rotation


class TransformerLayer(nn.Module):
    """Attention, in a decoder attention to the encoder, and feed-forward, each with dropout, residual and
    normalisation: [B, S, D] to [B, S, D].

    `layernorm_positioning` "post" normalises after each residual sum (Vaswani et al. 2017), "pre" before each
    sub-layer (Xiong et al. 2020).
    """

    def __init__(self, config: ModelConfig, decoder: bool = False) -> None:
        super().__init__()
        residual = config.has_residual_attention and not decoder
        attention = ResidualAttention if residual else MultiHeadedAttention
        self.pre = config.layernorm_positioning == "pre"
        self.self_attn = attention(config)
        self.layer_norm_1 = make_norm(config)
        self.context_attn: nn.Module | None = None
        if decoder:
            self.context_attn = MultiHeadedAttention(config)
            self.layer_norm_3 = make_norm(config)
        self.feed_forward = FeedForward(config)
        self.layer_norm_2 = make_norm(config)
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        hidden: Tensor,
        mask: AttentionMask,
        rotation: Rotation | None = None,
        outputs: int | None = None,
        memory: tuple[Tensor, AttentionMask] | None = None,
        cache: LayerCache | None = None,
    ) -> tuple[Tensor, AttentionMask]:
        """Hidden states, and the mask for the next layer.

        Args:
            outputs: compute that many leading positions only, from all: [B, outputs, D].
            memory: of a decoder: the encoder's states [B, S, D], and which of them are seen.
        """
        states = self.layer_norm_1(hidden) if self.pre else hidden
        attended, mask = self.self_attn(
            states[:, :outputs], states, mask.for_queries(outputs), rotation, cache and cache.itself
        )
        hidden = self._add(hidden[:, :outputs], attended, self.layer_norm_1)
        last = self.layer_norm_2
        if self.context_attn is not None:
            assert memory is not None
            asking = self.layer_norm_2(hidden) if self.pre else hidden
            attended, _ = self.context_attn(asking, *memory, cache=cache and cache.memory)
            hidden = self._add(hidden, attended, self.layer_norm_2)
            last = self.layer_norm_3
        fed = self.feed_forward(last(hidden) if self.pre else hidden)
        return self._add(hidden, fed, last), mask

    def _add(self, hidden: Tensor, change: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
        hidden = hidden + self.dropout(change)
        return hidden if self.pre else norm(hidden)
