"""A task of a user's own: all that it has to say, and what it gets for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from toys import toy_rows, write_table

from tencentpretrain.batch import Batch
from tencentpretrain.config import ModelConfig
from tencentpretrain.layers.pooling import pool
from tencentpretrain.registry import TASKS
from tencentpretrain.targets.output import Part
from tencentpretrain.tasks.base import Collected, Score, Split, Task, TaskModel, TaskOutput, stacked
from tencentpretrain.tasks.examples import Examples, TextExamples
from tencentpretrain.tasks.labels import read_numbers
from tencentpretrain.tasks.runner import finetune, infer
from tencentpretrain.tasks.table import Table


class Regressor(TaskModel):
    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
        self.output_layer = nn.Linear(config.hidden_size, 1)

    def forward(self, batch: Batch) -> TaskOutput:
        values = self.output_layer(pool(self.encode(batch), batch["segment_ids"], "mean")).squeeze(1).float()
        parts = {}
        if "values" in batch:
            loss_sum = (values - batch["values"]).square().sum()
            parts["regression"] = Part(loss_sum, torch.tensor(len(values)), {})
        return TaskOutput(parts, {}, {"values": values})


class Regression(Task):
    summary = "a number for each text"

    def read(self, path: Path, split: Split) -> Examples:
        table = Table(path, ["text_a"] if split == "infer" else ["label", "text_a"])
        values = [] if split == "infer" else read_numbers(table, "label", 1)
        fields = {"values": torch.tensor(values).squeeze(1)} if values else {}
        return TextExamples(self.tokenizer, table.columns["text_a"], None, self.seq_length, fields)

    def build(self, config: ModelConfig, vocab_size: int) -> TaskModel:
        return Regressor(config, vocab_size)

    def score(self, outputs: Collected, examples: Examples) -> Score:
        assert isinstance(examples, TextExamples)
        error = float(np.abs(stacked(outputs["values"]) - examples.fields["values"].numpy()).mean())
        return Score(-error, {"error": error}, f"mean error: {error:.3f}")

    def columns(self, outputs: Collected, examples: Examples) -> dict[str, list[str]]:
        return {"label": [f"{value:.2f}" for value in outputs["values"]]}


@pytest.fixture
def registered() -> Iterator[None]:
    TASKS.register("toy_regression")(Regression)
    yield
    del TASKS._entries["toy_regression"]


@pytest.mark.usefixtures("registered")
def test_a_task_of_ones_own_is_trained_and_predicts(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    for name, seed, count in (("train", 0, 256), ("dev", 1, 64)):
        rows = [["2.5" if label == "1" else "-1.5", text] for label, text in toy_rows(count, seed)]
        table = write_table(tmp_path / f"{name}.tsv", ["label", "text_a"], rows)
    finetune("toy_regression", arguments(train_path=tmp_path / "train.tsv", dev_path=table, epochs_num=5))
    lines = (tmp_path / "model.bin.logs" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert min(record.get("eval_error", 9.0) for record in map(json.loads, lines)) < 0.5
    paths = {
        "load_model_path": tmp_path / "model.bin",
        "test_path": table,
        "prediction_path": tmp_path / "out.tsv",
    }
    infer("toy_regression", [f"--{name}={path}" for name, path in paths.items()])
    predictions = (tmp_path / "out.tsv").read_text(encoding="utf-8").splitlines()
    assert predictions[0] == "label"
    assert np.mean([abs(float(a) - float(b[0])) for a, b in zip(predictions[1:], rows, strict=True)]) < 0.5
