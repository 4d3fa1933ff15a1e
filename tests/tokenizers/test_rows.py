"""Texts as padded rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tencentpretrain.config import TokenizerConfig
from tencentpretrain.errors import ConfigError, DataError
from tencentpretrain.tokenizers import Tokenizer, build_tokenizer, encode

PAD, CLS, SEP = 0, 2, 3


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("rows") / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n")
    return build_tokenizer(TokenizerConfig(vocab_path=str(path)))


def test_texts(tokenizer: Tokenizer) -> None:
    batch = encode(tokenizer, ["a b a", "", "b"], seq_length=4)
    assert batch["input_ids"].tolist() == [[CLS, 5, 6, SEP], [CLS, SEP, PAD, PAD], [CLS, 6, SEP, PAD]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert encode(tokenizer, [])["input_ids"].shape == (0, 0)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(4, 20))
def test_pairs_lose_the_end_of_the_longer(
    tokenizer: Tokenizer, first: int, second: int, seq_length: int
) -> None:
    batch = encode(tokenizer, ["a " * first], ["b " * second], seq_length)
    ids, segments = batch["input_ids"][0].tolist(), batch["segment_ids"][0].tolist()
    while first + second > seq_length - 3:
        if first > second:
            first -= 1
        else:
            second -= 1
    assert ids == [CLS, *[5] * first, SEP, *[6] * second, SEP]
    assert segments == [1] * (first + 2) + [2] * (second + 1)


def test_wrong_input(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 texts, but 1 pairs"):
        encode(tokenizer, ["a", "b"], ["a"])
    with pytest.raises(ConfigError, match="leaves no room"):
        encode(tokenizer, ["a"], ["b"], seq_length=3)
    (tmp_path / "vocab.txt").write_text("[UNK]\na\n")
    with pytest.raises(DataError, match="has no cls token"):
        encode(build_tokenizer(TokenizerConfig(vocab_path=str(tmp_path / "vocab.txt"))), ["a"])
