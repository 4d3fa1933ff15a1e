"""Weights that are not finite are not kept."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tencentpretrain.errors import UserError
from tencentpretrain.tasks.finetuning import Finetuning
from tencentpretrain.tasks.runner import finetune

STEPS = 16  # of an epoch


@pytest.mark.parametrize(
    ("step", "interrupted", "kept"),
    [
        (STEPS, False, "Nothing was saved"),
        (STEPS + 3, True, "The best weights so far are in"),
        (2 * STEPS, False, "The best weights so far are in"),
    ],
    ids=["end of the first epoch", "interrupted", "last step"],
)
def test_an_infinite_gradient(
    arguments: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    interrupted: bool,
    kept: str,
) -> None:
    update = Finetuning._update

    def poisoned(run: Finetuning, batch: dict[str, torch.Tensor]) -> None:
        if run.step == step - 1:
            weight = next(iter(run.engine.model.parameters()))
            weight.grad = torch.full_like(weight, math.inf)
            if interrupted:
                os.kill(os.getpid(), signal.SIGINT)
        update(run, batch)

    monkeypatch.setattr(Finetuning, "_update", poisoned)
    with pytest.raises(UserError, match=rf"gradient stopped being finite before step {step}\. {kept}"):
        finetune("classifier", arguments(epochs_num=2, report_steps=100))
    saved = [path for path in tmp_path.glob("model.bin*") if path.suffix == ".bin" or "-" in path.name]
    assert [path.name for path in saved] == ([] if step == STEPS else ["model.bin"])
    for path in saved:
        assert all(weight.isfinite().all() for weight in torch.load(path, weights_only=True).values())
