"""pretrain.py as a program: exit status, signals, kill at any moment, messages."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
WORDS = [f"w{number}" for number in range(40)]
CONFIG = {
    "emb_size": 8, "hidden_size": 8, "feedforward_size": 16, "heads_num": 2, "layers_num": 1,
    "max_seq_length": 16, "embedding": ["word", "pos", "seg"], "encoder": "transformer", "target": ["mlm"],
    "mask": "fully_visible",
}  # fmt: skip
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, program, *map(str, arguments)],
        cwd=ROOT, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("command")
    (root / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    (root / "corpus.txt").write_text("".join(" ".join(WORDS[n : n + 9]) + "\n" for n in range(30)))
    (root / "config.json").write_text(json.dumps(CONFIG))
    code, output, errors = finish(
        start(
            "preprocess.py", "--corpus_path", root / "corpus.txt", "--vocab_path", root / "vocab.txt",
            "--dataset_path", root / "dataset", "--data_processor", "mlm", "--seq_length", 16,
        )
    )  # fmt: skip
    assert code == 0, output + errors
    return root


def pretrain(place: Path, output: Path, **options: object) -> subprocess.Popen[str]:
    values = {
        "dataset_path": place / "dataset", "config_path": place / "config.json", "output_model_path": output,
        "total_steps": 20, "report_steps": 5, "save_checkpoint_steps": 10, "batch_size": 4,
    } | options  # fmt: skip
    return start("pretrain.py", *(f"--{name}={value}" for name, value in values.items()))


def test_a_run(place: Path, tmp_path: Path) -> None:
    code, output, errors = finish(pretrain(place, tmp_path / "model.bin", instances_buffer_size=100))
    assert code == 0, errors
    assert "error" not in errors and "Traceback" not in errors
    for decision in ("device: ", "engine: ", "precision: ", "model: ", "data: ", "resume: "):
        assert len(re.findall(rf"INFO\] {decision}", output)) == 1, output
    assert "--instances_buffer_size has no effect: " in output
    lines = re.findall(r"\|\s+(\d+)/\s+20 steps\|\s+[\d.]+ tokens/s\| loss\s+[\d.]+\| acc: [\d.]+", output)
    assert lines == ["5", "10", "15", "20"]
    names = {path.name for path in tmp_path.iterdir()}
    assert {"model.bin", "model.bin.json", "model.bin-10", "model.bin-10.json", "model.bin-20"} <= names
    assert torch.load(tmp_path / "model.bin", weights_only=True)["embedding.word.embedding.weight"].shape == (
        45,
        8,
    )


def test_dry_run_touches_nothing(place: Path, tmp_path: Path) -> None:
    code, output, errors = finish(
        pretrain(place, tmp_path / "model.bin", dry_run=True, log_path=tmp_path / "log")
    )
    assert code == 0, errors
    for word in (
        "modules:",
        "encoder transformer",
        "parameters",
        "tokens",
        "GFLOP",
        "memory: ",
        "seq_length: 16",
    ):
        assert word in output
    assert not list(tmp_path.iterdir())


def test_wrong_input_is_one_message(place: Path, tmp_path: Path) -> None:
    process = pretrain(
        place, tmp_path / "m.bin", hidden_size=7, bath_size=3, learning_rate="high", optimizer="sgd"
    )
    code, output, errors = finish(process)
    assert code == 2 and not output and "Traceback" not in errors
    for problem in (
        "--bath_size: unknown option (did you mean 'batch_size'?)",
        "--learning_rate",
        "'sgd'",
        "heads_num",
    ):
        assert problem in errors
    code, output, errors = finish(pretrain(place, tmp_path / "m.bin", dataset_path=tmp_path / "nothing"))
    assert code == 2 and "there is no such token store" in errors and "Traceback" not in errors
    assert not list(tmp_path.iterdir())


def wait_for(process: subprocess.Popen[str], path: Path) -> None:
    """Until a file has something in it."""
    limit = time.monotonic() + 60
    while not path.exists() or not path.stat().st_size:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, f"no {path}"
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_first(place: Path, tmp_path: Path, number: int, status: int) -> None:
    """The whole process group is told, as by a terminal or a scheduler; loading processes survive it."""
    output = tmp_path / "model.bin"
    options = {"total_steps": 100_000, "save_checkpoint_steps": 100_000, "workers_num": 1}
    process = pretrain(place, output, **options)
    wait_for(process, tmp_path / "model.bin.logs/metrics.jsonl")
    os.killpg(process.pid, number)
    code, told, errors = finish(process)
    assert code == status and "Traceback" not in errors, errors
    (state,) = (tmp_path / "model.bin.states").iterdir()
    assert f"stopped after step {state.name}; the same command continues from there" in told
    assert (tmp_path / f"model.bin-{state.name}").exists() and not output.exists()


def test_killed_at_any_moment(place: Path, tmp_path: Path) -> None:
    """kill -9 while it saves all the time; whatever is there must be complete, and the end the same."""
    options = {"total_steps": 40, "save_checkpoint_steps": 1, "report_steps": 1, "log_level": "ERROR"}
    whole, parts = tmp_path / "whole.bin", tmp_path / "parts.bin"
    uninterrupted = pretrain(place, whole, **options)
    for step in (7, 20):
        process = pretrain(place, parts, **options)
        wait_for(process, Path(f"{parts}-{step}"))
        process.kill()
        process.communicate()
        for weights in tmp_path.glob("parts.bin-*[0-9]"):
            assert torch.load(weights, weights_only=True)
            assert Path(f"{weights}.json").exists()
    code, _, errors = finish(pretrain(place, parts, **options))
    assert code == 0, errors
    assert finish(uninterrupted)[0] == 0
    first, second = torch.load(whole, weights_only=True), torch.load(parts, weights_only=True)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not list(tmp_path.rglob(".*"))
    steps = [
        json.loads(line)["step"] for line in Path(f"{parts}.logs/metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, 41))


def children(process: subprocess.Popen[str]) -> list[int]:
    """The processes of the ranks, in their order."""
    pids = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_several_processes(place: Path, tmp_path: Path) -> None:
    """Asked to stop, they stop together; the loss of one ends the others; torchrun goes on from there."""
    output = tmp_path / "model.bin"
    endless = {"total_steps": 100_000, "save_checkpoint_steps": 100_000, "report_steps": 1, "world_size": 2}
    metrics = tmp_path / "model.bin.logs/metrics.jsonl"
    process = pretrain(place, output, **endless)
    wait_for(process, metrics)
    os.killpg(process.pid, signal.SIGTERM)
    code, told, errors = finish(process)
    assert code == 143 and errors.strip() == "terminated", errors
    (state,) = (tmp_path / "model.bin.states").iterdir()
    assert told.count(f"stopped after step {state.name}; the same command continues from there") == 1

    written = metrics.stat().st_size
    process = pretrain(place, output, **endless)
    while metrics.stat().st_size < written + 500:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    ranks = children(process)
    os.kill(ranks[1], signal.SIGKILL)
    code, told, errors = finish(process)
    assert code == 1 and "error: the process of rank 1 was ended by SIGKILL, and with it the run" in errors
    assert "Traceback" not in errors, errors
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    assert [path.name for path in (tmp_path / "model.bin.states").iterdir()] == [state.name]

    process = start(
        "-m", "torch.distributed.run", "--nproc_per_node", 2, "pretrain.py",
        "--dataset_path", place / "dataset", "--config_path", place / "config.json", "--batch_size", 4,
        "--output_model_path", output, "--total_steps", int(state.name) + 3,
    )  # fmt: skip
    code, told, errors = finish(process)
    assert code == 0, errors
    assert told.count(f"resume: continuing from step {state.name}") == 1 and output.exists()


def ranks_of(agent: subprocess.Popen[str]) -> dict[str, int]:
    """The processes torchrun has started, by rank."""
    pids = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    found = {}
    for pid in pids:
        if rank := re.search(rb"\0RANK=(\d+)\0", Path(f"/proc/{pid}/environ").read_bytes()):
            found[rank[1].decode()] = int(pid)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_torchrun_brings_a_killed_worker_back(place: Path, tmp_path: Path) -> None:
    """The group goes on from its newest state, and the end is that of an undisturbed run."""
    output = tmp_path / "model.bin"
    options = {
        "dataset_path": place / "dataset", "config_path": place / "config.json", "batch_size": 4,
        "total_steps": 40, "save_checkpoint_steps": 3, "report_steps": 1,
    }  # fmt: skip
    undisturbed = pretrain(place, tmp_path / "whole.bin", world_size=2, **options)
    process = start(
        "-m", "torch.distributed.run", "--nproc_per_node", 2, "--max-restarts", 1, "pretrain.py",
        *(f"--{name}={value}" for name, value in (options | {"output_model_path": output}).items()),
    )  # fmt: skip
    wait_for(process, Path(f"{output}-9"))
    os.kill(ranks_of(process)["1"], signal.SIGKILL)
    code, told, errors = finish(process)
    assert code == 0, errors
    resumed = [int(step) for step in re.findall(r"resume: continuing from step (\d+)", told)]
    assert len(resumed) == 1 and resumed[0] >= 9 and resumed[0] % 3 == 0
    code, _, errors = finish(undisturbed)
    assert code == 0, errors
    whole, parts = (torch.load(tmp_path / name, weights_only=True) for name in ("whole.bin", "model.bin"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    lines = Path(f"{output}.logs/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 41))


def test_an_error_of_all_processes_is_told_once(place: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, errors = finish(pretrain(place, tmp_path / "file" / "model.bin", world_size=2))
    assert code == 2 and errors.count("cannot write there") == 1 and errors.count("error: ") == 1, errors
