from __future__ import annotations

from torch import Tensor, nn

from tencentpretrain.batch import Batch
from tencentpretrain.config import ModelConfig
from tencentpretrain.layers.cache import Cache
from tencentpretrain.registry import ENCODERS


@ENCODERS.register("dual")
class DualEncoder(nn.Module):
    """An encoder for each of two streams, which `tie_weights` makes one (Reimers & Gurevych 2019; Radford et
    al. 2021): a pair of [B, S, emb_size] to a pair of [B, S, D], whose sizes may differ.
    """

    any_width = True  # each stream checks its own

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        one, other = config.streams
        self.encoder_0 = ENCODERS[one.encoder](one)
        self.encoder_1 = self.encoder_0 if config.tie_weights else ENCODERS[other.encoder](other)

    def forward(
        self,
        hidden: tuple[Tensor, Tensor],
        batch: dict[str, Batch],
        outputs: int | None = None,
        cache: Cache | None = None,
    ) -> tuple[Tensor, Tensor]:
        return (
            self.encoder_0(hidden[0], batch["stream_0"], outputs),
            self.encoder_1(hidden[1], batch["stream_1"], outputs),
        )
