from __future__ import annotations

from torch import Tensor

from tencentpretrain.batch import Batch
from tencentpretrain.config import ModelConfig
from tencentpretrain.errors import ConfigError
from tencentpretrain.registry import TARGETS
from tencentpretrain.sizes import DataSizes
from tencentpretrain.targets.output import Part
from tencentpretrain.targets.predicted import PooledClassifier


@TARGETS.register("cls")
class ClsTarget(PooledClassifier):
    """Classification of a whole sequence as a pre-training target.

    Raises:
        ConfigError: the number of classes is not known.
    """

    reads = ("cls_labels",)

    def __init__(self, config: ModelConfig, sizes: DataSizes) -> None:
        if sizes.labels_num is None:
            raise ConfigError("target 'cls' needs the number of classes: give --labels_num.")
        super().__init__(config.hidden_size, sizes.labels_num, config.pooling)

    def forward(self, hidden: Tensor, batch: Batch) -> Part:
        return self.part("cls", hidden, batch)
