"""What a downstream task is. Everything that is the same for all of them is in runner.py."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tencentpretrain.batch import Batch
from tencentpretrain.config import ModelConfig
from tencentpretrain.model import Body
from tencentpretrain.sizes import DataSizes
from tencentpretrain.targets.output import TargetOutput
from tencentpretrain.tasks.examples import Examples
from tencentpretrain.tokenizers.base import Tokenizer

Split = Literal["train", "dev", "test", "infer"]
Outputs = dict[str, Tensor]  # of one batch; the first dimension is its examples
Collected = dict[str, list[NDArray[Any]]]  # of a file: one array per example, in the order of the file
Configs = Mapping[type[Any], Any]  # the options in force, by the class that declares them

C = TypeVar("C")


class Score(NamedTuple):
    """How good predictions are.

    Attributes:
        value: the higher the better; the weights with the best one on the development set are kept.
        metrics: name to number, for metrics.jsonl.
        text: lines for a reader.
    """

    value: float
    metrics: dict[str, float]
    text: str


@dataclasses.dataclass(frozen=True)
class TaskOutput(TargetOutput):
    """A target's output, whose parts are empty without labels, and what the task scores and writes."""

    outputs: Outputs


class TaskModel(Body, ABC):
    """A body; a task's model adds its head under published names."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__(config, DataSizes(vocab_size))
        self.tie_weights()

    @abstractmethod
    def forward(self, batch: Batch) -> TaskOutput:
        """Outputs, and the loss if the batch has labels."""


class Task(ABC):
    """Reader, head, loss, metric and prediction columns of one kind of problem.

    Args:
        tokenizer: turns text to ids.
        seq_length: longest input, in tokens.
        configs: all options in force.
        labels: the classes, where the weights already fix them; else reading the training set does.
    """

    summary: ClassVar[str]  # completes "fine-tune a model for …"
    provides: ClassVar[tuple[str, ...]] = ("input_ids", "segment_ids")  # batch fields of `read`
    finetune_options: ClassVar[tuple[type[Any], ...]] = ()
    infer_options: ClassVar[tuple[type[Any], ...]] = ()

    def __init__(
        self, tokenizer: Tokenizer, seq_length: int, configs: Configs, labels: tuple[str, ...] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.seq_length = seq_length
        self.configs = configs
        self.labels = labels

    def config(self, kind: type[C]) -> C:
        """The options that `kind` declares; its defaults, where the program does not have them."""
        found = self.configs.get(kind)
        return kind() if found is None else found

    @abstractmethod
    def read(self, path: Path, split: Split) -> Examples:
        """The examples of a file, tokenised. The training set is read first; labels are not needed to infer.

        Raises:
            DataError: with the line number, when the file is not what the task expects.
        """

    def about(self, train: Examples) -> list[str]:
        """Lines that tell a user what the training set holds."""
        return []

    @abstractmethod
    def build(self, config: ModelConfig, vocab_size: int) -> TaskModel:
        """The model; its weights are initialised by the caller.

        Raises:
            ConfigError: what it needs to know was said nowhere.
        """

    @abstractmethod
    def score(self, outputs: Collected, examples: Examples) -> Score:
        """How good the outputs for a labelled file are."""

    @abstractmethod
    def columns(self, outputs: Collected, examples: Examples) -> dict[str, list[str]]:
        """Columns of the prediction file by name; one entry per row of the input, in its order."""


def stacked(arrays: list[NDArray[Any]]) -> NDArray[np.float32]:
    """Collected outputs that have one shape, as one array [n, …]."""
    return np.stack(arrays).astype(np.float32, copy=False)
