"""The sum of the embeddings that a configuration names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tencentpretrain.batch import Batch
from tencentpretrain.config import ModelConfig
from tencentpretrain.layers.dropout import Dropout
from tencentpretrain.layers.norm import make_norm
from tencentpretrain.registry import EMBEDDINGS
from tencentpretrain.sizes import DataSizes


class Embedding(nn.Module):
    """Adds the named embeddings up, then normalises and drops out: a batch to [B, S, emb_size].

    "dual" stands alone and has done so in each of its streams: a batch of two to a pair of [B, S, emb_size].
    """

    def __init__(self, names: Sequence[str], config: ModelConfig, sizes: DataSizes) -> None:
        super().__init__()
        self.names = tuple(names)
        for name in self.names:
            self.add_module(name, EMBEDDINGS[name](config, sizes))
        self.layer_norm: nn.Module | None = None
        if not (config.is_dual or config.remove_embedding_layernorm):
            self.layer_norm = make_norm(config, config.emb_size)
        self.dropout = Dropout(config.dropout)

    def forward(self, batch: Batch) -> Tensor:
        total: Tensor = self.get_submodule(self.names[0])(batch)
        if isinstance(total, tuple):
            return total
        for name in self.names[1:]:
            # Sinusoids are computed in fp32, also in a model of another type.
            total = total + self.get_submodule(name)(batch).to(total.dtype)
        if self.layer_norm is not None:
            total = self.layer_norm(total)
        dropped: Tensor = self.dropout(total)
        return dropped
