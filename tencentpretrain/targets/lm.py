from __future__ import annotations

from torch import Tensor, nn

from tencentpretrain.batch import Batch
from tencentpretrain.config import ModelConfig
from tencentpretrain.registry import TARGETS
from tencentpretrain.sizes import DataSizes
from tencentpretrain.targets.output import Part
from tencentpretrain.targets.predicted import predicted, vocabulary_part


@TARGETS.register("lm")
class LmTarget(nn.Module):
    """Language model: the next token at every position."""

    reads = ("lm_labels",)

    def __init__(self, config: ModelConfig, sizes: DataSizes) -> None:
        super().__init__()
        self.output_layer = nn.Linear(config.hidden_size, sizes.vocab_size, bias=config.has_lmtarget_bias)

    @property
    def vocabulary_layer(self) -> nn.Linear:
        """What is tied to the word embedding by `tie_weights`."""
        return self.output_layer

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [..., D] to [..., V]."""
        output: Tensor = self.output_layer(hidden)
        return output

    def forward(self, hidden: Tensor, batch: Batch) -> Part:
        states, labels = predicted(hidden, batch, "lm")
        return vocabulary_part("lm", states, self.output_layer, labels)
