"""Early stopping by validation loss."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tencentpretrain.errors import ConfigError
from tencentpretrain.training import checkpoint
from tencentpretrain.training.checkpoint import Checkpoints
from tencentpretrain.training.engines import Engine
from tencentpretrain.training.stopping import EarlyStopping
from tencentpretrain.training.trainer import Trainer

Run = Callable[..., Trainer]
# The loss rises where the learning rate is this high, after a few steps.
OPTIONS: dict[str, Any] = {
    "total_steps": 400, "eval_steps": 5, "early_stop": 3, "learning_rate": 0.03, "scheduler": "constant",
    "report_steps": 5, "dropout": 0, "save_checkpoint_steps": 1000,
}  # fmt: skip


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def same(one: Path, other: Path) -> bool:
    first, second = weights_of(one), weights_of(other)
    return all(torch.equal(first[name], second[name]) for name in first)


def records_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(f"{output}.logs/metrics.jsonl").read_text().splitlines()]


def numbered(output: Path) -> list[int]:
    """Steps whose weights are there, each with its description."""
    steps = sorted(int(path.name.rpartition("-")[2]) for path in output.parent.glob(f"{output.name}-*[0-9]"))
    assert {path.name for path in output.parent.glob(f"{output.name}-[0-9]*.json")} == {
        f"{output.name}-{step}.json" for step in steps
    }
    return steps


def losses(output: Path) -> dict[int, float]:
    return {record["step"]: record["eval_loss"] for record in records_of(output) if "eval_loss" in record}


def test_patience() -> None:
    stopping = EarlyStopping(2)
    assert [stopping.add(loss, step) for step, loss in enumerate([3.0, 2.0, 2.0, 1.0, math.nan])] == [
        True, True, False, True, False,
    ]  # fmt: skip
    assert (stopping.best, stopping.step, stopping.exhausted) == (1.0, 3, False)
    other = EarlyStopping(2)
    other.restore(*stopping.state())
    other.add(1.5, 5)
    assert other.exhausted and other.step == 3
    never = EarlyStopping(None)
    assert not [never.add(1.0, step) for step in range(99)][-1] and not never.exhausted


def test_it_stops_and_keeps_the_best(run: Run, tmp_path: Path, workplace: Path, caplog: Any) -> None:
    caplog.set_level("INFO")
    options = OPTIONS | {"eval_dataset_path": workplace / "dev"}
    whole = run("whole.bin", **options)
    measured = losses(tmp_path / "whole.bin")
    best = min(measured, key=lambda step: measured[step])
    assert whole.step == best + 3 * 5 < 400 and whole.step == max(measured)
    assert any("stopped early" in line for line in caplog.messages)
    assert any(f"the weights after step {best} are in" in line for line in caplog.messages)
    assert same(tmp_path / "whole.bin", tmp_path / f"whole.bin-{best}")
    assert same(tmp_path / "whole.bin-best", tmp_path / "whole.bin")
    assert not same(tmp_path / "whole.bin", tmp_path / f"whole.bin-{whole.step}")
    assert (
        json.loads((tmp_path / "whole.bin-best.json").read_text())["tokenizer_path"] == "whole.bin.tokenizer"
    )
    assert best > 5  # which was the best at first, and is no longer there
    assert numbered(tmp_path / "whole.bin") == [best, whole.step]
    # The same command finds it done; stopped in between, it goes on to the same end.
    assert run("whole.bin", **options).step == whole.step
    with pytest.raises(KeyboardInterrupt):
        run("parts.bin", stop=(best + 7, 2), **options)
    (tmp_path / f"parts.bin-{best}").unlink()
    assert run("parts.bin", **options).step == whole.step
    assert same(tmp_path / "parts.bin", tmp_path / "whole.bin") and losses(tmp_path / "parts.bin") == measured


@pytest.mark.parametrize("step", [10, 12])
def test_a_validation_that_was_broken_off_is_made_up_for(
    run: Run, tmp_path: Path, workplace: Path, step: int
) -> None:
    """At the last step, and before; also when its repetition is broken off, or a kill follows it."""
    options = OPTIONS | {"eval_dataset_path": workplace / "train", "total_steps": 12, "learning_rate": 1e-3}
    run("whole.bin", **options)
    output, measured = tmp_path / "parts.bin", losses(tmp_path / "whole.bin")
    assert min(measured, key=lambda number: measured[number]) == 12
    with pytest.raises(KeyboardInterrupt):
        run(output.name, stop=(step, 2), **options)
    assert step not in losses(output) and not output.exists()
    validate, evaluate = Trainer._validate, Engine.evaluate

    def interrupted(engine: Engine, batches: Any, stop: list[int], take: Any) -> bool:
        stop.append(2)
        return evaluate(engine, batches, stop, take)

    def cut(trainer: Trainer, *arguments: Any) -> bool:
        validate(trainer, *arguments)
        raise RuntimeError("power cut")

    for owner, name, instead in ((Engine, "evaluate", interrupted), (Trainer, "_validate", cut)):
        with pytest.MonkeyPatch.context() as patch, pytest.raises((KeyboardInterrupt, RuntimeError)):
            patch.setattr(owner, name, instead)
            run(output.name, **options)
    assert step in losses(output)
    run(output.name, **options)
    assert losses(output) == measured and len(records_of(output)) == len(records_of(tmp_path / "whole.bin"))
    for name in ("", "-best"):
        assert same(Path(f"{output}{name}"), tmp_path / f"whole.bin{name}")


def test_best_weights_are_named_after_a_kill(
    run: Run, tmp_path: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = OPTIONS | {"eval_dataset_path": workplace / "dev", "total_steps": 6}
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):

        def cut(*_: Any) -> None:
            raise RuntimeError("power cut")

        patch.setattr(Trainer, "_keep_best", cut)
        run(**options)
    assert not (tmp_path / "model.bin-best").exists()
    with pytest.raises(KeyboardInterrupt):
        run(stop=(6, 2), **(options | {"total_steps": 7}))
    assert same(tmp_path / "model.bin-best", tmp_path / "model.bin-5")


def test_of_best_weights_the_newest_stay(
    run: Run, tmp_path: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside those that `--save_checkpoint_steps` asks for; also after a kill before the others went."""
    options = OPTIONS | {"eval_dataset_path": workplace / "train", "total_steps": 6, "learning_rate": 1e-3}
    options |= {"eval_steps": 1, "save_checkpoint_steps": 2, "scheduler": "linear"}
    withdraw = Checkpoints.withdraw

    def cut(checkpoints: Checkpoints, step: int) -> None:
        assert same(checkpoints.best, Path(f"{checkpoints.output}-{step + 1}"))  # the new ones are complete
        if step == 3:
            raise RuntimeError("power cut")
        withdraw(checkpoints, step)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(Checkpoints, "withdraw", cut)
        run(**options)
    assert numbered(tmp_path / "model.bin") == [2, 3, 4]
    run(**options)
    measured = losses(tmp_path / "model.bin")
    assert sorted(measured, key=lambda step: -measured[step]) == [1, 2, 3, 4, 5, 6]
    assert numbered(tmp_path / "model.bin") == [2, 4, 6]


def test_weights_that_were_asked_for_stay_when_other_steps_are(
    run: Run, tmp_path: Path, workplace: Path
) -> None:
    options = OPTIONS | {"eval_dataset_path": workplace / "train", "learning_rate": 1e-3, "eval_steps": 1}
    run(**options | {"total_steps": 3, "save_checkpoint_steps": 2})
    assert numbered(tmp_path / "model.bin") == [2, 3]
    run(**options | {"total_steps": 6, "save_checkpoint_steps": 4})
    assert numbered(tmp_path / "model.bin") == [2, 3, 4, 6]


def said(caplog: pytest.LogCaptureFixture, words: str) -> bool:
    return any(words in line for line in caplog.messages)


def test_the_best_of_a_branch_gone_back_from_is_not_published(
    run: Run, tmp_path: Path, workplace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Going back before it, also where only the state still has the weights, or nothing has."""
    caplog.set_level("INFO")
    options = OPTIONS | {"eval_dataset_path": workplace / "train", "early_stop": 2, "learning_rate": 1e-3}
    options |= {"save_checkpoint_steps": 12, "keep_checkpoints": 9}
    run(**options | {"total_steps": 20})
    output = tmp_path / "model.bin"
    measured = losses(output)
    assert min(measured, key=lambda step: measured[step]) == 20 and numbered(output) == [12, 20]
    assert json.loads(Path(f"{output}-best.json").read_text())["best"] == {
        "step": 20, "eval_loss": measured[20],
    }  # fmt: skip
    back = options | {"resume": f"{output}.states/12", "learning_rate": 3, "total_steps": 60}
    assert run(**back).stopping.step == 10 and said(caplog, "the weights after step 10 are in")
    for path in (output, Path(f"{output}-best")):
        assert same(path, Path(f"{output}.states/10/model.pt"))
    assert "best" not in json.loads(Path(f"{output}.json").read_text())
    Path(f"{output}-best").unlink()
    shutil.rmtree(f"{output}.states/10")
    caplog.clear()
    assert run(**back).stopping.step == 15 and said(caplog, "the best weights, of step 10, are gone")
    assert same(output, Path(f"{output}.states/15/model.pt"))


def test_only_a_run_with_the_option_follows_the_loss(run: Run, tmp_path: Path, workplace: Path) -> None:
    """Given later, it begins then; left out for a while, what it found before says nothing."""
    options = OPTIONS | {"eval_dataset_path": workplace / "dev", "save_checkpoint_steps": 5}
    without = options | {"early_stop": None}
    output, later = tmp_path / "model.bin", {"total_steps": 30, "learning_rate": 3}
    run(**without | {"total_steps": 10})
    assert not Path(f"{output}-best").exists()
    run("between.bin", **options | {"total_steps": 5})
    run("between.bin", **without | {"total_steps": 10})
    for output in (tmp_path / "model.bin", tmp_path / "between.bin"):
        best = run(output.name, **options | later | {"early_stop": 1}).stopping.step
        measured = losses(output)
        assert min(measured, key=lambda step: measured[step]) <= 10 < best
        assert best == min((step for step in measured if step > 10), key=lambda step: measured[step])
        assert same(output, Path(f"{output}-{best}")) and same(output, Path(f"{output}-best"))


@pytest.mark.parametrize("background", [False, True])
def test_a_best_that_cannot_be_saved_is_left_out(
    run: Run, tmp_path: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    """As with any other state, three failures in a row end the run; one does not."""
    options = OPTIONS | {"eval_dataset_path": workplace / "dev", "async_checkpoint": background}
    options |= {"save_checkpoint_steps": 5}  # the step that failed is not tried a second time
    run("whole.bin", **options | {"total_steps": 20})
    measured = losses(tmp_path / "whole.bin")
    lost, write, attempts = min(measured, key=lambda step: measured[step]), checkpoint.write_json, []

    def write_unless_full(path: Path, value: Any) -> None:
        attempts.append(value["step"])
        if value["step"] == lost:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, value)

    monkeypatch.setattr(checkpoint, "write_json", write_unless_full)
    trainer = run("full.bin", **options | {"total_steps": 25})
    assert attempts.count(lost) == 1 and not (tmp_path / f"full.bin-{lost}").exists()
    measured = losses(tmp_path / "full.bin")
    kept = min(measured.keys() - {lost}, key=lambda step: measured[step])
    assert trainer.step > lost and trainer.stopping.step == kept
    for name in ("full.bin-best", "full.bin"):
        assert same(tmp_path / name, tmp_path / f"full.bin-{kept}")


def test_it_needs_held_out_data(run: Run) -> None:
    with pytest.raises(ConfigError, match="--early_stop follows the loss on --eval_dataset_path"):
        run(early_stop=2)
