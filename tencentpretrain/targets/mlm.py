from __future__ import annotations

from torch import Tensor, nn

from tencentpretrain.batch import Batch
from tencentpretrain.config import ModelConfig
from tencentpretrain.layers.activations import ACTIVATIONS
from tencentpretrain.layers.norm import make_norm
from tencentpretrain.registry import TARGETS
from tencentpretrain.sizes import DataSizes
from tencentpretrain.targets.output import Part
from tencentpretrain.targets.predicted import predicted, vocabulary_part


@TARGETS.register("mlm")
class MlmTarget(nn.Module):
    """Masked language model (Devlin et al. 2019, §3.1), computed at the hidden tokens only."""

    features = ()
    reads = ("mlm_labels",)

    def __init__(self, config: ModelConfig, sizes: DataSizes) -> None:
        super().__init__()
        width = config.emb_size if config.factorized_embedding_parameterization else config.hidden_size
        self.activation = ACTIVATIONS[config.hidden_act]
        self.linear_1 = nn.Linear(config.hidden_size, width)
        self.layer_norm = make_norm(config, width)
        self.linear_2 = nn.Linear(width, sizes.vocab_size)

    @property
    def vocabulary_layer(self) -> nn.Linear:
        """What is tied to the word embedding by `tie_weights`."""
        return self.linear_2

    def _transform(self, hidden: Tensor) -> Tensor:
        transformed: Tensor = self.layer_norm(self.activation(self.linear_1(hidden)))
        return transformed

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [..., D] to [..., V]."""
        output: Tensor = self.linear_2(self._transform(hidden))
        return output

    def forward(self, hidden: Tensor, batch: Batch) -> Part:
        states, labels = predicted(hidden, batch, "mlm")
        return vocabulary_part("mlm", self._transform(states), self.linear_2, labels)
