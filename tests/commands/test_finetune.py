"""The fine-tuning and inference programs as their users run them."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.fixture
def task(tmp_path: Path) -> list[str]:
    """A tiny data set and model; the options of a run."""
    words = ["good", "bad", *(f"w{number}" for number in range(20))]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    rows = [f"{number % 2}\tw{number % 20} {words[number % 2]} w{number % 7}" for number in range(160)]
    (tmp_path / "rows.tsv").write_text("\n".join(["label\ttext_a", *rows]), encoding="utf-8")
    sizes = {"emb_size": 16, "hidden_size": 16, "feedforward_size": 32, "heads_num": 2, "layers_num": 1}
    (tmp_path / "config.json").write_text(
        json.dumps(sizes | {"embedding": ["word", "pos"]}), encoding="utf-8"
    )
    options = {"vocab_path": "vocab.txt", "config_path": "config.json", "output_model_path": "model.bin"}
    options |= {"train_path": "rows.tsv", "dev_path": "rows.tsv"}
    return [f"--{name}={tmp_path / value}" for name, value in options.items()] + ["--learning_rate=0.02"]


def start(program: str, *options: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, program, *options]
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True)


def run(program: str, *options: str) -> tuple[int, str, str]:
    process = start(program, *options)
    output, errors = process.communicate(timeout=240)
    return process.returncode, output, errors


def test_fine_tune_then_infer(task: list[str], tmp_path: Path) -> None:
    code, output, errors = run("finetune/run_classifier.py", *task, f"--test_path={tmp_path / 'rows.tsv'}")
    assert code == 0, errors
    assert "Acc. (Correct/Total): 1.0000 (160/160)" in output
    predictions = tmp_path / "new" / "predictions.tsv"
    paths = {"load_model_path": tmp_path / "model.bin", "test_path": tmp_path / "rows.tsv"}
    options = [f"--{name}={path}" for name, path in (paths | {"prediction_path": predictions}).items()]
    code, _, errors = run("inference/run_classifier_infer.py", *options, "--output_prob")
    assert code == 0, errors
    lines = predictions.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "label\tprob"
    assert [line.split("\t")[0] for line in lines[1:]] == [str(number % 2) for number in range(160)]


def test_wrong_input_ends_with_one_message_and_status_2(
    task: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.tsv").write_text("1\tno header\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["run_classifier.py", *task])
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "finetune" / "run_classifier.py"), run_name="__main__")
    signal.signal(signal.SIGTERM, handler)
    errors = capsys.readouterr().err
    assert end.value.code == 2
    assert errors.startswith("error: ") and "rows.tsv, line 1: expected a header" in errors
    assert "Traceback" not in errors and errors.count("\n") == 1
    assert not (tmp_path / "model.bin").exists()


def test_termination_keeps_the_weights(task: list[str], tmp_path: Path) -> None:
    process = start("finetune/run_classifier.py", *task, "--epochs_num=100000", "--report_steps=1")
    assert process.stdout is not None
    for line in process.stdout:
        if "the best score so far" in line:
            break
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 143, errors
    assert "stopped after step" in output
    latest = [path for path in tmp_path.glob("model.bin-*") if path.suffix != ".json"]
    assert len(latest) == 1 and (tmp_path / "model.bin").is_file()
