from __future__ import annotations

import torch
from torch import Tensor, nn

from tencentpretrain.batch import Batch
from tencentpretrain.config import ModelConfig
from tencentpretrain.registry import EMBEDDINGS
from tencentpretrain.sizes import DataSizes


@EMBEDDINGS.register("seg")
class SegmentEmbedding(nn.Module):
    """A vector for padding, the first and the second segment: [B, S, emb_size]."""

    reads = ("input_ids", "segment_ids")

    def __init__(self, config: ModelConfig, sizes: DataSizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, config.emb_size)

    def forward(self, batch: Batch) -> Tensor:
        segments = batch["segment_ids"] if "segment_ids" in batch else torch.ones_like(batch["input_ids"])
        vectors: Tensor = self.embedding(segments)
        return vectors
