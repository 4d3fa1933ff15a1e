from __future__ import annotations

from torch import Tensor

from tencentpretrain.batch import Batch
from tencentpretrain.config import ModelConfig
from tencentpretrain.registry import TARGETS
from tencentpretrain.sizes import DataSizes
from tencentpretrain.targets.output import Part
from tencentpretrain.targets.predicted import PooledClassifier


@TARGETS.register("sp")
class SpTarget(PooledClassifier):
    """Sentence prediction: whether the second segment follows the first (Devlin et al. 2019, §3.1)."""

    reads = ("sp_labels",)

    def __init__(self, config: ModelConfig, sizes: DataSizes) -> None:
        super().__init__(config.hidden_size, 2, config.pooling)

    def forward(self, hidden: Tensor, batch: Batch) -> Part:
        return self.part("sp", hidden, batch)
