"""A stack of transformer layers: what encoder and decoder share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from tencentpretrain.batch import Batch
from tencentpretrain.config import ModelConfig
from tencentpretrain.layers.cache import Cache
from tencentpretrain.layers.masks import AttentionMask, Positions
from tencentpretrain.layers.norm import make_norm
from tencentpretrain.layers.position import (
    RelativePositionEmbedding,
    Rotary,
    alibi_bias,
    relative_problems,
    rope_problems,
)
from tencentpretrain.layers.recomputation import Recomputation


class TransformerStack(nn.Module):
    """Runs layers over hidden states, with the positions that attention itself knows.

    "pre" normalisation adds one norm at the end.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.recomputation: Recomputation | None = None
        self.window = config.sliding_window
        self.alibi_heads = config.heads_num if config.alibi_position_embedding else None
        self.rotary = Rotary(config) if config.rotary_position_embedding else None
        self.layer_norm = make_norm(config) if config.layernorm_positioning == "pre" else None

    def run(
        self,
        layers: Sequence[nn.Module],
        hidden: Tensor,
        mask: AttentionMask,
        at: Positions,
        relative: RelativePositionEmbedding | None,
        outputs: int | None = None,
        memory: tuple[Tensor, AttentionMask] | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """[B, T, D] to [B, T, D], or to [B, outputs, D]: that many leading positions of the last layer."""
        mask = mask.within(self.window, at.queries, at.keys, at.device)
        if relative is not None:
            mask = mask.with_bias(relative(at.queries, at.keys))
        if self.alibi_heads is not None:
            bias = alibi_bias(self.alibi_heads, at.keys, at.device)
            # Relative to the query, so that what is near is exact in bf16 too.
            mask = mask.with_bias(bias - bias[..., -at.queries :].mT)
        rotation = None
        if self.rotary is not None:
            rotation = self.rotary(at.queries, at.position_ids, at.keys - at.queries, at.device)

        def through(numbers: range, hidden: Tensor, mask: AttentionMask) -> tuple[Tensor, AttentionMask]:
            for number in numbers:
                needed = outputs if number == len(layers) - 1 else None
                kept = None if cache is None else cache.layers[number]
                hidden, mask = layers[number](hidden, mask, rotation, needed, memory, kept)
            return hidden, mask

        if self.recomputation is None or not self.training:
            hidden, mask = through(range(len(layers)), hidden, mask)
        else:
            together = self.recomputation.layers_num
            for start in range(0, len(layers), together):
                group = range(start, min(start + together, len(layers)))
                hidden, mask = self.recomputation.run(through, group, hidden, mask)
        return hidden if self.layer_norm is None else self.layer_norm(hidden)


def positions(hidden: Tensor, batch: Batch, cache: Cache | None, side: str = "") -> Positions:
    """The positions of hidden states [B, T, D] among all that attention may see.

    Args:
        side: what the names of the side's batch fields begin with.
    """
    queries, numbers = hidden.shape[1], batch.get(f"{side}position_ids")
    if cache is None:
        return Positions(batch.get(f"{side}segment_ids"), queries, queries, hidden.device, numbers)
    keys = cache.length + queries
    return Positions(cache.segment_ids, queries, keys, hidden.device, numbers, generating=True)


def stack_problems(config: ModelConfig) -> Iterator[str]:
    """What is wrong with a transformer's options."""
    if config.attention_head_size is None and config.hidden_size % config.heads_num:
        yield (
            f"`heads_num` must divide `hidden_size` ({config.hidden_size}), but is {config.heads_num} "
            "instead."
        )
    if config.heads_num % config.kv_heads_num:
        yield (
            f"`local_kv_heads_num` must divide `heads_num` ({config.heads_num}), but is "
            f"{config.kv_heads_num} instead."
        )
    if config.relative_position_embedding:
        yield from relative_problems(config)
    if config.rotary_position_embedding:
        if config.head_size % 2:
            yield f"`rotary_position_embedding` needs an even head size, but it is {config.head_size}."
        yield from rope_problems(config)
