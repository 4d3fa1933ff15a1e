from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from tencentpretrain.batch import Batch, second_segment_only
from tencentpretrain.config import ModelConfig
from tencentpretrain.errors import DataError
from tencentpretrain.registry import ENCODERS, TARGETS
from tencentpretrain.sizes import DataSizes
from tencentpretrain.targets.output import Part
from tencentpretrain.targets.predicted import predicted, vocabulary_part


@TARGETS.register("lm")
class LmTarget(nn.Module):
    """Language model: the next token at every position, or of the second segment only (`prefix_lm_loss`)."""

    features = ("next token",)
    reads = ("lm_labels",)

    def __init__(self, config: ModelConfig, sizes: DataSizes) -> None:
        super().__init__()
        self.smoothing = config.label_smoothing
        self.second_segment = config.prefix_lm_loss
        self.scale = config.hidden_size**-0.5 if config.scale_tied_output else None
        self.output_layer = nn.Linear(config.hidden_size, sizes.vocab_size, bias=config.has_lmtarget_bias)

    @staticmethod
    def problems(config: ModelConfig) -> Iterator[str]:
        sees = getattr(ENCODERS[config.encoder], "is_causal", lambda config: False)
        if config.decoder is None and not config.is_dual and not sees(config):
            if config.encoder == "transformer":
                yield (
                    "target 'lm' needs `mask` causal or causal_with_prefix, or a decoder; with fully_visible "
                    "every position sees the token it is to predict."
                )
            else:
                yield (
                    f"target 'lm' needs a decoder behind encoder '{config.encoder}', whose positions see the "
                    "token they are to predict."
                )
        if config.tie_weights and config.emb_size != config.hidden_size:
            yield (
                f"`tie_weights` with target 'lm' needs `emb_size` ({config.emb_size}) equal to `hidden_size` "
                f"({config.hidden_size})."
            )
        if config.prefix_lm_loss and config.decoder is not None:
            yield "`prefix_lm_loss` is for models without a decoder; a decoder has no labels elsewhere."

    @property
    def vocabulary_layer(self) -> nn.Linear:
        """What is tied to the word embedding by `tie_weights`."""
        return self.output_layer

    def _scaled(self, hidden: Tensor) -> Tensor:
        return hidden if self.scale is None else hidden * self.scale

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [..., D] to [..., V]."""
        output: Tensor = self.output_layer(self._scaled(hidden))
        return output

    def forward(self, hidden: Tensor, batch: Batch) -> Part:
        if self.second_segment:
            if "segment_ids" not in batch:
                raise DataError("`prefix_lm_loss` needs segment_ids in the batch, 2 in the second segment.")
            batch = batch | {"lm_labels": second_segment_only(batch["lm_labels"], batch["segment_ids"])}
        states, labels = predicted(hidden, batch, "lm")
        return vocabulary_part("lm", self._scaled(states), self.output_layer, labels, self.smoothing)
