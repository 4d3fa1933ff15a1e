"""scripts/count_model_lines.py: what it counts, and what the table promises."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
TEXT = '''"""A module,

of two paragraphs."""

import os  # counts


class One:  # counts
    """Not this."""

    # nor this
    text = """this
    does"""

    def two(self) -> int:
        "nor this"
        return (
            1
        )
'''


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "scripts" / "count_model_lines.py"
    spec = importlib.util.spec_from_file_location("count_model_lines", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["count_model_lines"] = module  # what classes of the module look themselves up in
    spec.loader.exec_module(module)
    return module


def test_comments_docstrings_and_blank_lines_do_not_count(script: ModuleType) -> None:
    assert sorted(script.code_lines(TEXT)) == [5, 8, 12, 13, 15, 17, 18, 19]


def test_models_that_are_combinations_cost_nothing(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = script.count()
    for name in ("RoBERTa", "GPT-2", "BART", "Pegasus", "LLaMA"):
        assert not rows[name].classes, rows[name].classes
    # The two streams of Sentence-BERT are modules that the siamese LSTM has too.
    assert rows["Sentence-BERT"].alone == 0
    assert "RMSNorm" in rows["T5"].classes and "TransformerLayer" in rows["Transformer"].classes
    for name in ("Transformer", "BERT"):
        assert 0 < sum(rows[name].classes.values()) < script.THEIRS[name][0]
    assert all(sum(row.classes.values()) >= row.alone for row in rows.values())
    script.main()
    table = capsys.readouterr().out.splitlines()
    assert len(table) == len(rows) + 3 and table[4].startswith("| +RoBERTa | +0 |")
