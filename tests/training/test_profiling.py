"""--profile"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tencentpretrain.training.trainer import Trainer

Run = Callable[..., Trainer]
PHASES = ["data", "forward", "backward", "clipping", "optimizer", "rest", "all"]


def test_trace_and_table(run: Run, tmp_path: Path, workplace: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    options = {"accumulation_steps": 2, "eval_dataset_path": workplace / "dev", "eval_steps": 4}
    trainer = run("profiled.bin", profile=True, **options)
    run("plain.bin", **options)
    one, other = (torch.load(tmp_path / f"{name}.bin", weights_only=True) for name in ("profiled", "plain"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert "forward" not in vars(trainer.engine)  # nothing is left behind
    logs = tmp_path / "profiled.bin.logs"
    with gzip.open(logs / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    calls = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert [calls.count(phase) for phase in PHASES[:5]] == [6, 6, 6, 3, 3]  # three steps of two batches
    assert any(event["name"] == "aten::addmm" for event in events)
    text = (logs / "profile.txt").read_text()
    rows = re.findall(r"^(\w+) +([\d.]+) +([\d.]+)%$", text, re.MULTILINE)
    assert [name for name, _, _ in rows] == PHASES
    *parts, whole = (float(share) for _, _, share in rows)
    assert whole == 100 and sum(parts) == pytest.approx(100, abs=0.5)
    assert "aten::" in text.split("\n\n", 1)[1]
    assert any("profile of steps 4 to 6" in line for line in caplog.messages)


@pytest.mark.parametrize("total_steps", [1, 4])
def test_short_runs(run: Run, tmp_path: Path, total_steps: int) -> None:
    run(profile=True, total_steps=total_steps)
    assert (tmp_path / "model.bin.logs/profile.txt").exists()
