from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from tencentpretrain.batch import Batch
from tencentpretrain.config import ModelConfig
from tencentpretrain.errors import DataError
from tencentpretrain.registry import EMBEDDINGS
from tencentpretrain.sizes import DataSizes


@EMBEDDINGS.register("pos")
class PositionEmbedding(nn.Module):
    """A learned vector for each position: [1 or B, S, emb_size].

    Raises:
        DataError: a sequence is longer than max_seq_length.
    """

    reads = ("input_ids",)

    def __init__(self, config: ModelConfig, sizes: DataSizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.max_seq_length, config.emb_size)

    def forward(self, batch: Batch) -> Tensor:
        if "position_ids" in batch:
            return F.embedding(batch["position_ids"], self.embedding.weight)
        length = batch["input_ids"].shape[1]
        if length > self.embedding.num_embeddings:
            raise DataError(
                f"a sequence of {length} tokens exceeds max_seq_length ({self.embedding.num_embeddings}); "
                "give a smaller seq_length, or a model with a larger max_seq_length."
            )
        # A slice: its gradient is a sum over rows, where a gather's would be B·S scattered additions.
        return self.embedding.weight[:length].unsqueeze(0)
