"""Ids are those of Transformers' tokenizers, text by text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from texts import TEXTS, random_texts

from tencentpretrain.config import TokenizerConfig
from tencentpretrain.tokenizers import Tokenizer, build_tokenizer



KINDS = ["bert", "cased", "bpe", "xlmroberta"]


def pair(kind: str, vocabularies: Any) -> tuple[Tokenizer, Any]:
    if kind in ("bert", "cased"):
        path, lower = getattr(vocabularies, kind), kind == "bert"
        config = TokenizerConfig(vocab_path=str(path), do_lower_case=lower)
        return build_tokenizer(config), transformers.BertTokenizer(str(path), do_lower_case=lower)
    if kind == "bpe":
        vocab, merges = str(vocabularies.gpt2 / "vocab.json"), str(vocabularies.gpt2 / "merges.txt")
        config = TokenizerConfig(tokenizer="bpe", vocab_path=vocab, merges_path=merges)
        return build_tokenizer(config), transformers.GPT2Tokenizer(vocab, merges)
    config = TokenizerConfig(tokenizer="xlmroberta", spm_model_path=str(vocabularies.fairseq))
    return build_tokenizer(config), transformers.XLMRobertaTokenizer.from_pretrained(vocabularies.fairseq.parent)


def mismatches(ours: Tokenizer, theirs: Any, texts: list[str]) -> list[tuple[str, list[int], list[int]]]:
    flat, lengths = ours.encode_batch(texts)
    found, start = [], 0
    for text, length in zip(texts, lengths.tolist(), strict=True):
        ids = flat[start : start + length].tolist()
        start += length
        expected = theirs.encode(text, add_special_tokens=False)
        if ids != expected:
            found.append((text, ids, expected))
    assert start == len(flat)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_texts(kind: str, vocabularies: Any) -> None:
    assert mismatches(*pair(kind, vocabularies), TEXTS) == []
