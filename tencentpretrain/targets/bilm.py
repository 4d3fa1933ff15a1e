from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from tencentpretrain.batch import Batch
from tencentpretrain.config import ModelConfig
from tencentpretrain.registry import ENCODERS, TARGETS
from tencentpretrain.sizes import DataSizes
from tencentpretrain.targets.output import Part
from tencentpretrain.targets.predicted import predicted, vocabulary_part


@TARGETS.register("bilm")
class BilmTarget(nn.Module):
    """Two language models, with one vocabulary layer (Peters et al. 2018, §3.1): the next token from the
    first half of a state, the previous token from the second half.
    """

    features = ()
    reads = ("bilm_labels",)

    def __init__(self, config: ModelConfig, sizes: DataSizes) -> None:
        super().__init__()
        self.output_layer = nn.Linear(
            config.hidden_size // 2, sizes.vocab_size, bias=config.has_lmtarget_bias
        )

    @staticmethod
    def problems(config: ModelConfig) -> Iterator[str]:
        if config.decoder is not None:
            yield f"target 'bilm' goes both ways, but decoder '{config.decoder}' sees no token after its own."
        elif not config.is_dual and not getattr(ENCODERS[config.encoder], "separate_directions", False):
            names = [name for name in ENCODERS if getattr(ENCODERS[name], "separate_directions", False)]
            yield (
                "target 'bilm' needs two halves of a state, each blind to the token it is to predict: one of "
                f"the encoders {', '.join(names)}, but `encoder` is {config.encoder}."
            )
        if config.tie_weights and 2 * config.emb_size != config.hidden_size:
            yield (
                f"`tie_weights` with target 'bilm' needs `emb_size` ({config.emb_size}) equal to half of "
                f"`hidden_size` ({config.hidden_size})."
            )

    @property
    def vocabulary_layer(self) -> nn.Linear:
        """What is tied to the word embedding by `tie_weights`."""
        return self.output_layer

    def forward(self, hidden: Tensor, batch: Batch) -> Part:
        # [B, S, 2h] is [B, 2S, h], in the order of labels [B, S, 2].
        halves = hidden.reshape(len(hidden), -1, self.output_layer.in_features)
        states, labels = predicted(halves, batch, "bilm")
        return vocabulary_part("bilm", states, self.output_layer, labels)
