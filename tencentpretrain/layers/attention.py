"""Multi-head attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tencentpretrain.config import ModelConfig
from tencentpretrain.layers.cache import KeysValues
from tencentpretrain.layers.dropout import dropout
from tencentpretrain.layers.masks import AttentionMask, past
from tencentpretrain.layers.norm import NORMS
from tencentpretrain.layers.position import Rotation

KeepKeysValues = Callable[[Callable[[], KeysValues]], KeysValues]


CAUSAL_ROWS = 128  # queries at a time


class MultiHeadedAttention(nn.Module):
    """Scaled dot-product attention (Vaswani et al. 2017, §3.2), with heads that may share keys and values
    (Ainslie et al. 2023).

    `hidden` [B, T, D] asks, `memory` [B, S, D] answers: [B, T, D], and the mask for the next layer.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.dropout = config.dropout
        self.scale = 1.0 if config.remove_attention_scale else None  # None: 1 / sqrt(head_size)
        inner, bias = config.heads_num * config.head_size, not config.remove_transformer_bias
        widths = (inner, *2 * (config.kv_heads_num * config.head_size,))
        self.linear_layers = nn.ModuleList(
            nn.Linear(config.hidden_size, width, bias=bias or config.has_qkv_bias) for width in widths
        )
        self.final_linear = nn.Linear(inner, config.hidden_size, bias=bias)
        self.query_norm: nn.Module | None = None
        self.key_norm: nn.Module | None = None
        if config.has_qk_norm:
            self.query_norm, self.key_norm = (
                NORMS[config.layernorm](config.head_size, config.layernorm_eps) for _ in range(2)
            )

    def forward(
        self,
        hidden: Tensor,
        memory: Tensor,
        mask: AttentionMask,
        rotation: Rotation | None = None,
        cache: KeepKeysValues | None = None,
    ) -> tuple[Tensor, AttentionMask]:
        """With `rotation`, hidden must be the leading positions of memory."""

        def keys_values() -> KeysValues:
            key, value = self._heads(1, memory), self._heads(2, memory)
            key = key if self.key_norm is None else self.key_norm(key)
            return key if rotation is None else rotation.apply(key), value

        query = self._heads(0, hidden)
        query = query if self.query_norm is None else self.query_norm(query)
        if rotation is not None:
            query = rotation.first(query.shape[2]).apply(query)
        key, value = keys_values() if cache is None else cache(keys_values)
        context, mask = self._attend(query, key, value, mask)
        output: Tensor = self.final_linear(context.transpose(1, 2).flatten(-2))
        return output, mask

    def _heads(self, layer: int, states: Tensor) -> Tensor:
        """[B, S, D] to [B, H, S, K]; the number of heads follows from the tensor, so that a layer split over
        devices needs no change."""
        projected: Tensor = self.linear_layers[layer](states)
        return projected.view(*projected.shape[:2], -1, self.head_size).transpose(1, 2)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask
    ) -> tuple[Tensor, AttentionMask]:
        dropping = self.training and self.dropout > 0
        if dropping and query.device.type == "cpu" and not torch.compiler.is_compiling():
            # With dropout torch writes it out too on the CPU, at twice the time.
            if mask.causal:
                return self._causal(query, key, value), mask
            return self._weighted(self._scores(query, key, mask), value), mask
        matrix = mask.allowed if mask.bias is None else mask.bias.to(query.dtype)
        context = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=matrix,
            dropout_p=self.dropout if dropping else 0.0,
            is_causal=mask.causal,
            scale=self.scale,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        return context, mask

    def _scores(self, query: Tensor, key: Tensor, mask: AttentionMask) -> Tensor:
        """[B, H, T, S], -inf where attention is not allowed."""
        scale = self.head_size**-0.5 if self.scale is None else self.scale
        scores = _shared_matmul(query * scale, key.transpose(-1, -2))
        if mask.bias is not None:
            return scores + mask.bias
        allowed = mask.allowed
        if mask.causal:  # the queries are the leading positions, as they are to torch
            allowed = past(key.shape[-2], key.shape[-2], key.device)[: query.shape[-2]]
        if allowed is None:
            return scores
        # A sum costs nothing on the way back, where the softmax has zeros for these scores anyway.
        return scores + scores.new_zeros(allowed.shape).masked_fill_(~allowed, -torch.inf)

    def _causal(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Written out for some queries at a time, without most of the keys that they do not see."""
        parts = []
        for start in range(0, query.shape[2], CAUSAL_ROWS):
            some = query[:, :, start : start + CAUSAL_ROWS]
            keys = start + some.shape[2]
            mask = AttentionMask(allowed=past(some.shape[2], keys, query.device))
            parts.append(self._weighted(self._scores(some, key[:, :, :keys], mask), value[:, :, :keys]))
        return torch.cat(parts, 2)

    def _weighted(self, scores: Tensor, value: Tensor) -> Tensor:
        return _shared_matmul(dropout(scores.softmax(-1).to(value.dtype), self.dropout, self.training), value)


def _shared_matmul(each: Tensor, shared: Tensor) -> Tensor:
    """[B, H, T, N] @ [B, G, N, M] to [B, H, T, M]: the heads of a group are rows of one product."""
    product = each.reshape(len(each), shared.shape[1], -1, each.shape[-1]) @ shared
    return product.view(*each.shape[:3], -1)


class ResidualAttention(MultiHeadedAttention):
    """Attention whose scores are added to the next layer's (RealFormer, He et al. 2021, §3)."""

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask
    ) -> tuple[Tensor, AttentionMask]:
        scores = self._scores(query, key, mask)
        if mask.previous is not None:
            scores = scores + mask.previous
        return self._weighted(scores, value), mask._replace(previous=scores)
