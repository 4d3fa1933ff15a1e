"""An update of fine-tuning whose loss or gradient is not finite is left out."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tencentpretrain.errors import UserError
from tencentpretrain.tasks import finetuning
from tencentpretrain.tasks.finetuning import Finetuning
from tencentpretrain.tasks.runner import finetune

STEPS = 16  # of an epoch


def spoil(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """The gradients of these updates are infinite."""
    update = Finetuning._update

    def spoilt(run: Finetuning, *arguments: Any, **options: Any) -> Any:
        if run.step + 1 in steps:
            weight = next(iter(run.engine.model.parameters()))
            weight.grad = torch.full_like(weight, math.inf)
        return update(run, *arguments, **options)

    monkeypatch.setattr(Finetuning, "_update", spoilt)


def test_it_is_counted_and_its_rows_are_told(
    arguments: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    batches = finetuning.training_batches

    def kept(*which: Any) -> Any:
        drawn.append(batches(*which))
        return drawn[-1]

    monkeypatch.setattr(finetuning, "training_batches", kept)
    spoil(monkeypatch, 3, STEPS, 2 * STEPS)
    finetune("classifier", arguments(epochs_num=2, report_steps=8, log_path=tmp_path / "log"))
    told = re.findall(r"step (\d+): no update.*epoch:number: of rank 0 (.*)", (tmp_path / "log").read_text())
    expected = [(3, 1, drawn[0][2]), (STEPS, 1, drawn[0][-1]), (2 * STEPS, 2, drawn[1][-1])]
    assert told == [(str(step), " ".join(f"{epoch}:{row}" for row in rows)) for step, epoch, rows in expected]
    lines = (tmp_path / "model.bin.logs/metrics.jsonl").read_text().splitlines()
    reports = [record for record in map(json.loads, lines) if "loss" in record]
    assert [record["skipped_steps"] for record in reports] == [1, 2, 2, 3]
    assert all(np.isfinite([record["loss"], record["grad_norm"]]).all() for record in reports)
    weights = torch.load(tmp_path / "model.bin", weights_only=True)
    assert all(weight.isfinite().all() for weight in weights.values())


def test_too_many_in_a_row_end_the_run(
    arguments: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("tencentpretrain"), "handlers", [])
    for first, kept in ((STEPS - 3, "Nothing was saved"), (STEPS + 3, "The best weights so far are in")):
        with monkeypatch.context() as patch:
            spoil(patch, *range(first, first + 4))
            with pytest.raises(UserError, match=rf"of 4 updates in a row .* up to step {first + 3} .*{kept}"):
                finetune("classifier", arguments(epochs_num=2, report_steps=100, max_skipped_steps=4))
        assert (tmp_path / "model.bin").exists() == (first > STEPS)
