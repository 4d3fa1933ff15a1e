"""A tokenizer whose ids can be read off the text: the word '17' has the id 17 + FIRST_ORDINARY."""

from __future__ import annotations

from pathlib import Path

import pytest

from tencentpretrain.config import TokenizerConfig
from tencentpretrain.tokenizers import Tokenizer, build_tokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # FIRST_ORDINARY of them


@pytest.fixture(scope="session")
def vocab_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join((*SPECIAL, *map(str, range(1000)), *"abc，中文")) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer(vocab_path: Path) -> Tokenizer:
    return build_tokenizer(TokenizerConfig(vocab_path=str(vocab_path)))
