"""Vocabulary files that cannot be used are named for what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tencentpretrain.config import TokenizerConfig
from tencentpretrain.errors import DataError
from tencentpretrain.tokenizers import build_tokenizer
from tencentpretrain.tokenizers.vocabulary import read_merges, read_vocabulary

GOOD = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.txt", None, "no such file"),
        ("vocab.txt", b"", "is empty"),
        ("vocab.txt", b" \n\n", "is empty"),
        ("vocab.txt", GOOD + b"a\n\xff\xfe\n", "line 7: not UTF-8"),
        ("vocab.txt", GOOD + b"a\nb\na\n", "line 8: token 'a' is on line 6 already"),
        ("vocab.txt", b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        ("vocab.txt", b"<!DOCTYPE html><html>", "HTML page"),
        ("vocab.txt", b"[PAD]\n[CLS]\na\n", r"has no unk token \('\[UNK\]'\)"),
        ("vocab.json", b'{"a": 0,\n "b": 1,\n}', "line 2: trailing comma"),
        ("vocab.json", b'{"a": 0, "a": 1}', "'a' is given twice"),
        ("vocab.json", b'["a"]', "expected an object"),
        ("vocab.json", b'{"[UNK]": 0, "b": 2}', "token 'b' has id 2"),
        ("vocab.json", b'{"[UNK]": 0, "b": 0}', "token 'b' has id 0"),
        ("vocab.json", b'{"[UNK]": 0, "b": "1"}', "token 'b' has id '1'|token '.UNK.' has id 0"),
    ],
)
def test_vocabulary(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        build_tokenizer(TokenizerConfig(vocab_path=str(path)))
    assert str(path) in str(caught.value)


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a directory, expected a vocabulary"):
        build_tokenizer(TokenizerConfig(vocab_path=str(tmp_path)))
    with pytest.raises(DataError, match="is a directory, expected a SentencePiece model"):
        build_tokenizer(TokenizerConfig(spm_model_path=str(tmp_path)))


def test_without_mask(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(GOOD.replace(b"[MASK]\n", b"a\n"))
    tokenizer = build_tokenizer(TokenizerConfig(vocab_path=str(path)))
    assert tokenizer.encode("a") == [4]
    assert tokenizer.mask_id is None
    with pytest.raises(DataError, match=r"vocab.txt has no mask token \('\[MASK\]'\)"):
        tokenizer.require("mask")


def test_counts_blank_lines_and_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes("\ufeff[PAD]\t3\r\na 17\n\n \n\u3000\nb\u2028\n\n".encode())
    assert read_vocabulary(path) == ["[PAD]", "a", "", " ", "\u3000", "b\u2028", ""]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (b"#version: 0.2\na b\nab\n", "line 3: expected two parts"),
        (b"a b c\n", "line 1: expected two parts"),
        ("我 们\n".encode(), "has no token '我', which the merge '我 们' needs"),
    ],
)
def test_merges(content: bytes | None, message: str, vocabularies: Any, tmp_path: Path) -> None:
    path = tmp_path / "merges.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        build_tokenizer(
            TokenizerConfig("bpe", vocab_path=str(vocabularies.gpt2 / "vocab.json"), merges_path=str(path))
        )


def test_merges_of_a_line_vocabulary(vocabularies: Any, tmp_path: Path) -> None:
    vocab_path, merges_path = vocabularies.gpt2 / "vocab.json", str(vocabularies.gpt2 / "merges.txt")
    lines = tmp_path / "vocab.txt"
    lines.write_text("\n".join(read_vocabulary(vocab_path)), encoding="utf-8")
    one, other = (
        build_tokenizer(TokenizerConfig("bpe", vocab_path=str(path), merges_path=merges_path))
        for path in (vocab_path, lines)
    )
    assert one.fingerprint == other.fingerprint
    assert len(read_merges(Path(merges_path))) > 100


@pytest.mark.parametrize("content", [b"not a model", b"\x00" * 100])
def test_sentencepiece(content: bytes, vocabularies: Any, tmp_path: Path) -> None:
    path = tmp_path / "spm.model"
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged or no SentencePiece model"):
        build_tokenizer(TokenizerConfig(spm_model_path=str(path)))
    path.write_bytes(vocabularies.spm.read_bytes()[:-5000])
    with pytest.raises(DataError, match="damaged or no SentencePiece model"):
        build_tokenizer(TokenizerConfig(spm_model_path=str(path)))
