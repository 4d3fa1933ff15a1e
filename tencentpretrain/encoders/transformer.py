from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from tencentpretrain.batch import Batch
from tencentpretrain.config import ModelConfig
from tencentpretrain.layers.cache import Cache
from tencentpretrain.layers.masks import MASKS
from tencentpretrain.layers.position import RelativePositionEmbedding
from tencentpretrain.layers.stack import TransformerStack, positions, stack_problems
from tencentpretrain.layers.transformer import TransformerLayer
from tencentpretrain.registry import ENCODERS


@ENCODERS.register("transformer")
class TransformerEncoder(TransformerStack):
    """A stack of transformer layers: [B, S, emb_size] to [B, S, D].

    `parameter_sharing` repeats one layer, `factorized_embedding_parameterization` projects the embeddings
    first (both ALBERT, Lan et al. 2020, §3.1).
    """

    reads = ("segment_ids",)
    keeps_documents_apart = True  # of packed rows
    caches = True
    features: tuple[str, ...] = ("attention", "layers")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.mask = MASKS[config.mask]
        self.layers_num = config.layers_num
        self.linear: nn.Linear | None = None
        if config.factorized_embedding_parameterization:
            self.linear = nn.Linear(config.emb_size, config.hidden_size)
        self.transformer: nn.Module
        if config.parameter_sharing:
            self.transformer = TransformerLayer(config)
        else:
            self.transformer = nn.ModuleList(TransformerLayer(config) for _ in range(config.layers_num))
        self.relative_pos_emb: RelativePositionEmbedding | None = None
        if config.relative_position_embedding:
            self.relative_pos_emb = RelativePositionEmbedding(config, config.mask == "fully_visible")
            for layer in self._layers():  # published files name it in every layer too
                layer.relative_pos_emb = self.relative_pos_emb

    def _layers(self) -> list[nn.Module]:
        one = self.transformer
        return list(one) if isinstance(one, nn.ModuleList) else [one] * self.layers_num

    @staticmethod
    def problems(config: ModelConfig) -> Iterator[str]:
        yield from stack_problems(config)
        if config.mask != "causal":
            for name in ("sliding_window", "alibi_position_embedding"):
                if getattr(config, name):
                    yield f"`{name}` looks back only and needs `mask` causal, but it is {config.mask}."

    @staticmethod
    def is_causal(config: ModelConfig) -> bool:
        """Whether a position's state is blind to what follows it, at least after a prefix."""
        return config.mask != "fully_visible"

    def forward(
        self, hidden: Tensor, batch: Batch, outputs: int | None = None, cache: Cache | None = None
    ) -> Tensor:
        """With `outputs`, that many leading positions of the last layer are computed: [B, outputs, D]."""
        at = positions(hidden, batch, cache)
        mask = self.mask(at)
        if "document_ids" in batch:
            mask = mask.within_documents(batch["document_ids"])
        if self.linear is not None:
            hidden = self.linear(hidden)
        return self.run(self._layers(), hidden, mask, at, self.relative_pos_emb, outputs, cache=cache)
