from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from tencentpretrain.batch import Batch
from tencentpretrain.config import ModelConfig
from tencentpretrain.layers.cache import Cache
from tencentpretrain.layers.masks import Positions, causal, fully_visible
from tencentpretrain.layers.position import RelativePositionEmbedding
from tencentpretrain.layers.stack import TransformerStack, positions, stack_problems
from tencentpretrain.layers.transformer import TransformerLayer
from tencentpretrain.registry import DECODERS


@DECODERS.register("transformer")
class TransformerDecoder(TransformerStack):
    """A stack of transformer layers that see their past and the encoder's states (Vaswani et al. 2017, §3.1):
    [B, T, emb_size] and [B, S, D] to [B, T, D].
    """

    reads = ("segment_ids", "decoder_segment_ids")
    caches = True
    features = ("attention", "layers")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.transformer_decoder = nn.ModuleList(
            TransformerLayer(config, decoder=True) for _ in range(config.decoder_depth)
        )
        self.self_pos_emb: RelativePositionEmbedding | None = None
        if config.relative_position_embedding:
            self.self_pos_emb = RelativePositionEmbedding(config, bidirectional=False)

    @staticmethod
    def problems(config: ModelConfig) -> Iterator[str]:
        yield from stack_problems(config)
        if config.emb_size != config.hidden_size:
            yield (
                f"decoder 'transformer' needs `emb_size` ({config.emb_size}) equal to `hidden_size` "
                f"({config.hidden_size})."
            )

    def forward(self, hidden: Tensor, memory: Tensor, batch: Batch, cache: Cache | None = None) -> Tensor:
        at = positions(hidden, batch, cache, "decoder_")
        source = Positions(batch.get("segment_ids"), at.queries, memory.shape[1], memory.device)
        return self.run(
            list(self.transformer_decoder),
            hidden,
            causal(at),
            at,
            self.self_pos_emb,
            memory=(memory, fully_visible(source)),
            cache=cache,
        )
