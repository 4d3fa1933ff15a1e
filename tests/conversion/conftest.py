from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import VOCABULARY, tiny_bert


@pytest.fixture
def bert_directory(tmp_path: Path) -> Path:
    """A saved BertForPreTraining with its vocabulary."""
    directory = tmp_path / "bert"
    tiny_bert().save_pretrained(directory)
    (directory / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return directory
