from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tencentpretrain.batch import Batch
from tencentpretrain.config import ClassifierConfig, ClassifierInferConfig, ModelConfig
from tencentpretrain.errors import ConfigError
from tencentpretrain.layers.pooling import pool
from tencentpretrain.registry import TASKS
from tencentpretrain.targets.output import Part
from tencentpretrain.tasks.base import Collected, Score, Split, Task, TaskModel, TaskOutput, stacked
from tencentpretrain.tasks.examples import Examples, TextExamples
from tencentpretrain.tasks.labels import describe_classes, read_classes, read_numbers
from tencentpretrain.tasks.metrics import confusion_matrix, describe, precision_recall_f1
from tencentpretrain.tasks.table import Table


class Classifier(TaskModel):
    """Classes of a whole text or pair: pooled state, linear, tanh, linear.

    Args:
        soft_alpha: weight of the squared distance to `soft_labels` [B, classes], where a batch has them.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, labels_num: int, soft_alpha: float) -> None:
        super().__init__(config, vocab_size)
        self.pooling = config.pooling
        self.soft_alpha = soft_alpha
        self.output_layer_1 = nn.Linear(config.hidden_size, config.hidden_size)
        self.output_layer_2 = nn.Linear(config.hidden_size, labels_num)

    def forward(self, batch: Batch) -> TaskOutput:
        batch = dict(batch)
        hidden = self.encode(batch, outputs=1 if self.pooling == "first" else None)
        pooled = pool(hidden, batch.get("segment_ids"), self.pooling)
        logits = self.output_layer_2(self.output_layer_1(pooled).tanh()).float()  # [B, classes]
        parts = {"cls": self._part(logits, batch)} if "cls_labels" in batch else {}
        return TaskOutput(parts, {}, {"logits": logits})

    def _part(self, logits: Tensor, batch: Batch) -> Part:
        labels = batch["cls_labels"]
        loss_sum = F.cross_entropy(logits, labels, reduction="sum")
        if "soft_labels" in batch:
            distance = (logits - batch["soft_labels"]).square().mean(1).sum()
            loss_sum = self.soft_alpha * distance + (1 - self.soft_alpha) * loss_sum
        count = torch.tensor(len(labels))
        return Part(loss_sum, count, {"acc_cls": ((logits.argmax(1) == labels).sum(), count)})


@TASKS.register("classifier")
class Classification(Task):
    """One of the classes 0 … K-1 for each text or pair of texts; the column `logits` has soft targets."""

    summary = "the classification of sentences or pairs of sentences"
    finetune_options = (ClassifierConfig,)
    infer_options = (ClassifierInferConfig,)

    def read(self, path: Path, split: Split) -> Examples:
        soft = split == "train" and self.config(ClassifierConfig).soft_targets
        required = ["text_a"] if split == "infer" else ["label", "text_a"]
        table = Table(path, required + ["logits"] * soft)
        fields = {}
        if split != "infer":
            classes = read_classes(table, None if self.labels is None else len(self.labels))
            self.labels = self.labels or tuple(map(str, range(max(classes) + 1)))
            fields["cls_labels"] = torch.tensor(classes)
            if soft:
                fields["soft_labels"] = torch.tensor(read_numbers(table, "logits", len(self.labels)))
        columns = table.columns
        return TextExamples(self.tokenizer, columns["text_a"], columns.get("text_b"), self.seq_length, fields)

    def about(self, train: Examples) -> list[str]:
        assert isinstance(train, TextExamples) and self.labels is not None
        return [describe_classes(train.fields["cls_labels"].bincount(minlength=len(self.labels)).tolist())]

    def build(self, config: ModelConfig, vocab_size: int) -> TaskModel:
        given = self.config(ClassifierInferConfig).labels_num
        if self.labels is None and given is not None:
            self.labels = tuple(map(str, range(given)))
        if self.labels is None:
            raise ConfigError(
                "what lies beside the weights does not say how many classes there are; give --labels_num."
            )
        if given is not None and given != len(self.labels):
            raise ConfigError(
                f"`labels_num` is {given}, but the weights were fine-tuned with {len(self.labels)}."
            )
        return Classifier(config, vocab_size, len(self.labels), self.config(ClassifierConfig).soft_alpha)

    def score(self, outputs: Collected, examples: Examples) -> Score:
        assert isinstance(examples, TextExamples) and self.labels is not None
        gold = examples.fields["cls_labels"].numpy()
        confusion = confusion_matrix(gold, stacked(outputs["logits"]).argmax(1), len(self.labels))
        accuracy = float(confusion.trace() / confusion.sum())
        macro_f1 = float(precision_recall_f1(confusion)[:, 2].mean())
        return Score(accuracy, {"accuracy": accuracy, "macro_f1": macro_f1}, describe(confusion))

    def columns(self, outputs: Collected, examples: Examples) -> dict[str, list[str]]:
        options = self.config(ClassifierInferConfig)
        logits = stacked(outputs["logits"])
        found = {"label": [str(label) for label in logits.argmax(1)]}
        if options.output_logits:
            found["logits"] = [_numbers(row) for row in logits]
        if options.output_prob:
            found["prob"] = [_numbers(row) for row in torch.from_numpy(logits).softmax(1).numpy()]
        return found


def _numbers(values: NDArray[np.float32]) -> str:
    return " ".join(map(str, values))
