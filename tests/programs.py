"""The programs of the project, run in the process of the tests."""

from __future__ import annotations

import logging
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run_main(program: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Run a program's `main` with a command line; its errors are raised, and the log is left as it was."""
    monkeypatch.setattr("sys.argv", [program, *arguments])
    log = logging.getLogger("tencentpretrain")
    before = log.handlers[:], log.level, log.propagate
    try:
        runpy.run_path(str(ROOT / program))["main"]()
    finally:
        log.handlers[:], log.level, log.propagate = before
