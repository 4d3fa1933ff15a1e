"""Rows of a toy language."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

WORDS = [f"w{number}" for number in range(40)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def toy_rows(count: int, seed: int, pairs: bool = False) -> list[list[str]]:
    """Rows label, text: 1 if 'good' is in it, 0 if 'bad' is; of a pair, whether both end with one word."""
    random = np.random.default_rng(seed)
    rows = []
    for label in random.integers(0, 2, count).tolist():
        words = [WORDS[word] for word in random.integers(0, len(WORDS), random.integers(2, 12))]
        if pairs:
            first, second = ("good", "good") if label else ("bad", "good")
            rows.append([str(label), " ".join([*words[:3], first]), second])
        else:
            words.insert(int(random.integers(0, len(words))), "good" if label else "bad")
            rows.append([str(label), " ".join(words)])
    return rows


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    path.write_text("".join("\t".join(row) + "\n" for row in [header, *rows]), encoding="utf-8")
    return path
