from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from tencentpretrain.batch import Batch
from tencentpretrain.config import ModelConfig
from tencentpretrain.embeddings.embedding import Embedding
from tencentpretrain.layers.norm import make_norm
from tencentpretrain.registry import EMBEDDINGS
from tencentpretrain.sizes import DataSizes


@EMBEDDINGS.register("dual")
class DualEmbedding(nn.Module):
    """An embedding for each of two streams, which `tie_weights` makes one: a batch {"stream_0": …,
    "stream_1": …} to a pair of [B, S, emb_size], whose sizes may differ.

    As published, each is normalised twice, within the stream's embedding and after it, unless
    `remove_stream_layernorm`; where the stream removes its embedding's normalisation, not at all.
    """

    def __init__(self, config: ModelConfig, sizes: DataSizes) -> None:
        super().__init__()
        one, other = config.streams
        self.embedding_0 = Embedding(one.embedding, one, sizes)
        self.embedding_1 = (
            self.embedding_0 if config.tie_weights else Embedding(other.embedding, other, sizes)
        )
        self.stream_0_layer_norm, self.stream_1_layer_norm = (
            nn.Identity()
            if stream.remove_embedding_layernorm or config.remove_stream_layernorm
            else make_norm(stream, stream.emb_size)
            for stream in (one, other)
        )

    @staticmethod
    def problems(config: ModelConfig) -> Iterator[str]:
        if not config.is_dual:  # then it is the decoder's
            yield "`tgt_embedding` cannot be dual: a decoder reads one sequence."

    def forward(self, batch: dict[str, Batch]) -> tuple[Tensor, Tensor]:
        return (
            self.stream_0_layer_norm(self.embedding_0(batch["stream_0"])),
            self.stream_1_layer_norm(self.embedding_1(batch["stream_1"])),
        )
