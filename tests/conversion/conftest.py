from __future__ import annotations

import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tiny_models import VOCABULARY, tiny_bert

from tencentpretrain.conversion.program import convert

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bert_directory(tmp_path: Path) -> Path:
    """A saved BertForPreTraining with its vocabulary."""
    directory = tmp_path / "bert"
    tiny_bert().save_pretrained(directory)
    (directory / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return directory


class Run(NamedTuple):
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def run_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Run]]:
    """Runs a script on an input and an output path, in this process: importing torch takes seconds."""
    on_term = signal.getsignal(signal.SIGTERM)

    def run(script: str, source: Path, target: Path, *further: str) -> Run:
        paths = ["--input_model_path", str(source), "--output_model_path", str(target)]
        monkeypatch.setattr(sys, "argv", [script, *paths, *further])
        code = 0
        try:
            runpy.run_path(str(ROOT / "scripts" / f"{script}.py"), run_name="__main__")
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Run(code, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, on_term)


@pytest.fixture
def run_convert(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What scripts/convert.py prints; errors are raised."""

    def run(to: str, source: Path, target: Path, *options: str) -> str:
        files = ["--input_model_path", str(source), "--output_model_path", str(target)]
        monkeypatch.setattr(sys, "argv", ["program", "--to", to, *files, *options])
        convert()
        return capsys.readouterr().out

    return run
