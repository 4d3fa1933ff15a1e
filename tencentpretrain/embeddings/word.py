from __future__ import annotations

from torch import Tensor, nn

from tencentpretrain.batch import Batch
from tencentpretrain.config import ModelConfig
from tencentpretrain.registry import EMBEDDINGS
from tencentpretrain.sizes import DataSizes


@EMBEDDINGS.register("word")
class WordEmbedding(nn.Module):
    """A vector for each token of the vocabulary: [B, S, emb_size]."""

    reads = ("input_ids",)

    def __init__(self, config: ModelConfig, sizes: DataSizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sizes.vocab_size, config.emb_size)

    def forward(self, batch: Batch) -> Tensor:
        vectors: Tensor = self.embedding(batch["input_ids"])
        return vectors
