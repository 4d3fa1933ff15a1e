"""The table of scripts/count_model_lines.py: what it counts, and what it promises."""

from __future__ import annotations

from tencentpretrain.inspection.lines import THEIRS, code_lines, count, table

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


def test_comments_docstrings_and_blank_lines_do_not_count() -> None:
    assert sorted(code_lines(TEXT)) == [5, 8, 12, 13, 15, 17, 18, 19]


def test_models_that_are_combinations_cost_nothing() -> None:
    rows = count()
    for name in ("RoBERTa", "GPT-2", "BART", "Pegasus", "LLaMA"):
        assert not rows[name].classes, rows[name].classes
    # The two streams of Sentence-BERT are modules that the siamese LSTM has too.
    assert rows["Sentence-BERT"].alone == 0
    assert "RMSNorm" in rows["T5"].classes and "TransformerLayer" in rows["Transformer"].classes
    for name in ("Transformer", "BERT"):
        assert 0 < sum(rows[name].classes.values()) < THEIRS[name][0]
    assert all(sum(row.classes.values()) >= row.alone for row in rows.values())
    lines = table().splitlines()
    assert len(lines) == len(rows) + 3 and lines[4].startswith("| +RoBERTa | +0 |")
