from __future__ import annotations

import math

from torch import Tensor, nn

from tencentpretrain.batch import Batch
from tencentpretrain.config import ModelConfig
from tencentpretrain.registry import EMBEDDINGS
from tencentpretrain.sizes import DataSizes


@EMBEDDINGS.register("word")
class WordEmbedding(nn.Module):
    """A vector for each token of the vocabulary: [B, S, emb_size]; beside sinusoidal positions, whose numbers
    are of size 1, times the root of emb_size (Vaswani et al. 2017, §3.4). As published, the encoder's
    embeddings decide for the decoder's side too.
    """

    reads = ("input_ids",)

    def __init__(self, config: ModelConfig, sizes: DataSizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sizes.vocab_size, config.emb_size)
        self.scale = math.sqrt(config.emb_size) if "sinusoidalpos" in config.embedding else None

    def forward(self, batch: Batch) -> Tensor:
        vectors: Tensor = self.embedding(batch["input_ids"])
        return vectors if self.scale is None else vectors * self.scale
