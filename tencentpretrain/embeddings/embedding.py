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
    """Adds the named embeddings up, then normalises and drops out: a batch to [B, S, emb_size]."""

    def __init__(self, names: Sequence[str], config: ModelConfig, sizes: DataSizes) -> None:
        super().__init__()
        self.names = tuple(names)
        for name in self.names:
            self.add_module(name, EMBEDDINGS[name](config, sizes))
        self.layer_norm = None if config.remove_embedding_layernorm else make_norm(config, config.emb_size)
        self.dropout = Dropout(config.dropout)

    def forward(self, batch: Batch) -> Tensor:
        total: Tensor = self.get_submodule(self.names[0])(batch)
        for name in self.names[1:]:
            total = total + self.get_submodule(name)(batch)
        if self.layer_norm is not None:
            total = self.layer_norm(total)
        dropped: Tensor = self.dropout(total)
        return dropped
