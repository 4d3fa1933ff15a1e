"""Two processes fine-tune as one does. They are started once, and do all their work then."""

from __future__ import annotations

import json
import logging
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from toys import toy_rows, write_table

from tencentpretrain.tasks.finetuning import Finetuning
from tencentpretrain.tasks.runner import finetune
from tencentpretrain.training import report
from tencentpretrain.training.engines.processes import run_processes

RUNS: dict[str, dict[str, Any]] = {
    "plain": {"test_path": "dev.tsv"},
    "fgm": {"use_adv": True, "fgm_epsilon": 0.1},
    "pgd": {"use_adv": True, "adv_type": "pgd", "pgd_k": 2},
}


def run(place: Path, toy: Path, name: str, **options: Any) -> str:
    """Fine-tune; what it ended with."""
    values = {
        "train_path": place / "train.tsv", "dev_path": toy / "dev.tsv", "vocab_path": toy / "vocab.txt",
        "config_path": toy / "config.json", "output_model_path": place / name, "seq_length": 24,
        "learning_rate": 1e-2, "epochs_num": 2, "batch_size": 8, "report_steps": 1, "pooling": "mean",
        "precision": "fp32", "dropout": 0, "log_path": place / f"{name}.log", "log_level": "ERROR",
    } | options  # fmt: skip
    if "test_path" in values:
        values["test_path"] = toy / values["test_path"]
    try:
        finetune("classifier", [f"--{option}={value}" for option, value in values.items()])
    except (Exception, KeyboardInterrupt) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        logging.getLogger("tencentpretrain").handlers.clear()
    return "done"


def work(place: Path, toy: Path) -> None:
    torch.set_num_threads(1)
    report.draw_curves = lambda records, path: None
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    outcomes = {name: run(place, toy, f"two-{name}", **options) for name, options in RUNS.items()}
    outcomes["wrong"] = run(place, toy, "wrong", dev_path=place / "wrong.tsv")
    update = Finetuning._update

    def signalled(self: Finetuning, *arguments: Any, **options: Any) -> Any:
        if rank == 1 and self.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, *arguments, **options)

    Finetuning._update = signalled  # type: ignore[method-assign]
    outcomes["stopped"] = run(place, toy, "stopped")
    (place / f"outcomes-{rank}.json").write_text(json.dumps(outcomes))


@pytest.fixture(scope="module")
def place(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one process and two have done the same; the last batch of an epoch is of one row."""
    place = tmp_path_factory.mktemp("finetuning")
    write_table(place / "train.tsv", ["label", "text_a"], toy_rows(81, seed=5))
    write_table(place / "wrong.tsv", ["label", "text_a"], [["0", "w1"], ["5", "w2"]])
    draw, report.draw_curves = report.draw_curves, lambda records, path: None
    try:
        for name, options in RUNS.items():
            assert run(place, toy, f"one-{name}", **options) == "done"
    finally:
        report.draw_curves = draw
    run_processes(partial(work, place, toy), 2, (0, 1), None)
    return place


def outcomes(place: Path, name: str) -> list[str]:
    return [json.loads((place / f"outcomes-{rank}.json").read_text())[name] for rank in range(2)]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_fine_tune_as_one(place: Path, name: str) -> None:
    assert outcomes(place, name) == ["done", "done"]
    one, two = (torch.load(place / f"{number}-{name}", weights_only=True) for number in ("one", "two"))
    assert one.keys() == two.keys()
    for weight in one:
        torch.testing.assert_close(two[weight], one[weight], rtol=1e-5, atol=1e-5)
    records = [
        [
            json.loads(line)
            for line in (place / f"{number}-{name}.logs/metrics.jsonl").read_text().splitlines()
        ]
        for number in ("one", "two")
    ]
    assert len(records[0]) == len(records[1]) == 2 * 11 + 2 + (name == "plain")
    measured = {"time", "tokens_per_second", "memory_gb", "data_wait", "mfu"}
    for first, second in zip(*records, strict=True):
        assert first.keys() == second.keys()
        for key in first.keys() - measured:
            assert second[key] == pytest.approx(first[key], rel=1e-4), (first["step"], key)


def test_one_process_tells_and_writes(place: Path) -> None:
    text = (place / "two-plain.log").read_text()
    assert text.count("engine: ddp, 2 processes, gloo") == text.count("epoch 2 of 2, development set:") == 1
    assert not list(place.glob(".*"))


def test_an_error_of_all_is_told_once(place: Path) -> None:
    first, second = outcomes(place, "wrong")
    assert first.startswith("DataError: ") or first.startswith("UserError: ")
    assert second.startswith("SharedError: ") and first.count("line 3: label 5 is out of range") == 1


def test_a_signal_to_one_ends_both(place: Path) -> None:
    assert outcomes(place, "stopped") == ["Terminated: "] * 2
    assert "stopped after step 5; the weights as they are: " in (place / "stopped.log").read_text()
    assert (place / "stopped-5").exists() and not (place / "stopped").exists()
