"""Tokenizers from Hugging Face directories, and to them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from texts import TEXTS

from tencentpretrain.config import TokenizerConfig
from tencentpretrain.errors import DataError
from tencentpretrain.tokenizers import Tokenizer, build_tokenizer, load_tokenizer


def same(ours: Tokenizer, theirs: Any, texts: list[str]) -> bool:
    expected = theirs(texts, add_special_tokens=False)["input_ids"]
    return [ours.encode(text) for text in texts] == expected


@pytest.mark.parametrize("name", ["bert", "cased"])
def test_bert(name: str, vocabularies: Any, tmp_path: Path) -> None:
    theirs = transformers.BertTokenizer(
        str(getattr(vocabularies, name)), do_lower_case=name == "bert", additional_special_tokens=["[E1]"]
    )
    theirs.save_pretrained(tmp_path / "new")  # tokenizer.json alone
    ours = load_tokenizer(tmp_path / "new")
    texts = [*TEXTS, "a[E1]b [MASK]"]
    assert ours.vocab_size == len(theirs)
    assert ours.tokens[-1] == "[E1]"
    assert same(ours, theirs, texts)
    ours.save(tmp_path / "saved")
    assert same(load_tokenizer(tmp_path / "saved"), theirs, texts)

    old = tmp_path / "old"
    old.mkdir()
    shutil.copy(getattr(vocabularies, name), old / "vocab.txt")
    (old / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": name == "bert"}))
    assert same(load_tokenizer(old), theirs, TEXTS)
    (old / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "strip_accents": False}))
    with pytest.raises(DataError, match="strip_accents False"):
        load_tokenizer(old)


def test_gpt2(vocabularies: Any, tmp_path: Path) -> None:
    theirs = transformers.GPT2Tokenizer.from_pretrained(vocabularies.gpt2)
    theirs.save_pretrained(tmp_path / "new")
    for directory in (vocabularies.gpt2, tmp_path / "new"):
        ours = load_tokenizer(directory)
        assert same(ours, theirs, [*TEXTS, "a<|endoftext|>b"])
        assert ours.pad_id == ours.cls_id == ours.sep_id == theirs.eos_token_id
    (tmp_path / "written").mkdir()
    ours.write_files(tmp_path / "written")
    assert same(ours, transformers.GPT2Tokenizer.from_pretrained(tmp_path / "written"), TEXTS)


def test_xlmroberta(vocabularies: Any) -> None:
    ours = load_tokenizer(vocabularies.fairseq.parent)
    config = TokenizerConfig("xlmroberta", spm_model_path=str(vocabularies.fairseq))
    assert (ours.kind, ours.fingerprint) == ("xlmroberta", build_tokenizer(config).fingerprint)


def test_plain_sentencepiece(vocabularies: Any, tmp_path: Path) -> None:
    for name in ("spiece.model", "tokenizer.model"):
        (tmp_path / name).mkdir()
        shutil.copy(vocabularies.spm, tmp_path / name / name)
        assert load_tokenizer(tmp_path / name).kind == "sentencepiece"


def test_foreign_directories(vocabularies: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tokenizer in it"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match="expected a directory with a tokenizer"):
        load_tokenizer(tmp_path / "nothing.bin")
    (tmp_path / "weights.bin.json").write_text("{}")
    with pytest.raises(DataError, match="names no tokenizer"):
        load_tokenizer(tmp_path / "weights.bin")

    theirs = transformers.GPT2Tokenizer.from_pretrained(vocabularies.gpt2, add_prefix_space=True)
    theirs.save_pretrained(tmp_path / "spaced")
    with pytest.raises(DataError, match="add_prefix_space True"):
        load_tokenizer(tmp_path / "spaced")
    transformers.XLMRobertaTokenizer.from_pretrained(vocabularies.fairseq.parent).save_pretrained(
        tmp_path / "unigram"
    )
    with pytest.raises(DataError, match="Unigram model; give a SentencePiece file"):
        load_tokenizer(tmp_path / "unigram")
    shutil.copy(vocabularies.fairseq, tmp_path / "spaced" / "sentencepiece.bpe.model")
    (tmp_path / "spaced" / "tokenizer_config.json").write_text('{"tokenizer_class": "CamembertTokenizer"}')
    with pytest.raises(DataError, match="no tokenizer for CamembertTokenizer"):
        load_tokenizer(tmp_path / "spaced")
