"""Marian's two tokenizers in one: ids and texts are those of Transformers' MarianTokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from marian_files import CODES, SENTENCES, TRANSLATIONS, marian_tokenizer
from texts import TEXTS, random_texts

from tencentpretrain.config import TokenizerConfig
from tencentpretrain.errors import ConfigError, DataError
from tencentpretrain.tokenizers import Tokenizer, build_tokenizer, load_tokenizer

SPECIAL_TEXTS = [
    ">>fr<< The fox", ">>fr<<The fox", ">>xyz<< The fox", ">>fr<<", ">> fr<< fox", " >>fr<< fox", ">>fox",
    "fox >>fr<< fox", ">>a\nb<< fox", "</s>", "The</s>fox </s> dog", "</s>>>fr<< fox", "<pad><unk>fox<unk>",
    "敏捷 fox 你好", "ß 狐狸", "狐", "<s> fox",
]  # fmt: skip
ALL = [*SENTENCES, *TRANSLATIONS, *TEXTS, *SPECIAL_TEXTS, *random_texts(300, seed=4)]


@pytest.fixture(scope="module", params=[False, True], ids=["one vocabulary", "two vocabularies"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return marian_tokenizer(tmp_path_factory.mktemp("marian"), separate=request.param)


@pytest.fixture(scope="module")
def theirs(directory: Path) -> Any:
    return transformers.MarianTokenizer.from_pretrained(directory)


def check(source: Tokenizer, target: Tokenizer, theirs: Any) -> None:
    # Theirs has the source's id of the padding token on both sides, whatever it is in the target.
    of_both = target.pad_id == theirs.pad_token_id
    texts = [text for text in ALL if of_both or "<pad>" not in text]
    for tokenizer, expected in (
        (source, theirs(texts, add_special_tokens=False)["input_ids"]),
        (target, theirs(text_target=texts, add_special_tokens=False)["input_ids"]),
    ):
        assert [tokenizer.encode(text) for text in texts] == expected
        ids, lengths = tokenizer.encode_batch(texts)
        flat = [id for row in expected for id in row]
        assert ids.tolist() == flat and lengths.tolist() == list(map(len, expected))
    for ids in theirs(text_target=texts)["input_ids"]:
        if of_both or theirs.pad_token_id not in ids:
            assert target.decode(ids) == theirs.decode(ids)
    assert (source.pad_id, source.sep_id, source.unk_id) == (
        theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id,
    )  # fmt: skip
    assert source.vocab_size == len(theirs)


def test_ids_and_texts_are_theirs(directory: Path, theirs: Any) -> None:
    source, target = load_tokenizer(directory), load_tokenizer(directory, side="tgt")
    check(source, target, theirs)
    met = {id for row in theirs(ALL)["input_ids"] for id in row}
    assert met > {source.unk_id, source.ids[CODES[0]]}


def test_saved_and_named_by_options(directory: Path, theirs: Any, tmp_path: Path) -> None:
    loaded = []
    for side, model in (("src", "source.spm"), ("tgt", "target.spm")):
        tokenizer = load_tokenizer(directory, side)  # type: ignore[arg-type]
        tokenizer.save(tmp_path / side)
        loaded.append(load_tokenizer(tmp_path / side))
        vocabulary = directory / "target_vocab.json"
        if side == "src" or not vocabulary.is_file():
            vocabulary = directory / "vocab.json"
        paths = {"spm_model_path": str(directory / model), "vocab_path": str(vocabulary)}
        named = build_tokenizer(TokenizerConfig("marian", **paths))
        assert tokenizer.kind == named.kind == loaded[-1].kind == "marian"
        assert tokenizer.fingerprint == named.fingerprint == loaded[-1].fingerprint
        assert (tmp_path / side / "vocab.json").read_bytes() == vocabulary.read_bytes()
    assert loaded[0].fingerprint != loaded[1].fingerprint
    check(*loaded, theirs)


def test_special_tokens_as_text(directory: Path) -> None:
    """But a language code is one even in a corpus."""
    for side in ("src", "tgt"):
        tokenizer = load_tokenizer(directory, side)  # type: ignore[arg-type]
        found = {text: tokenizer.encode(text, special_tokens=False) for text in SPECIAL_TEXTS}
        assert found[">>fr<< The fox"][0] == tokenizer.ids[">>fr<<"]
        assert not any({tokenizer.pad_id, tokenizer.sep_id} & {*ids} for ids in found.values())
        ids, _ = tokenizer.encode_batch(ALL, special_tokens=False)
        starts = tokenizer.token_starts(ALL)
        assert starts is not None and len(starts) == len(ids) and (starts[1:] >= starts[:-1]).all()
    text = ">>fr<< The fox"
    starts = load_tokenizer(directory).token_starts([text])
    assert starts is not None and starts[:2].tolist() == [0, 7]


@pytest.mark.parametrize("name", ["source.spm", "target.spm", "vocab.json", "target_vocab.json"])
def test_a_file_that_is_missing_is_named(name: str, tmp_path: Path) -> None:
    marian_tokenizer(tmp_path, separate=True)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"; {name} is missing"):
        load_tokenizer(tmp_path)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    marian_tokenizer(tmp_path)
    spm_model_path = str(tmp_path / "source.spm")
    with pytest.raises(ConfigError, match="--vocab_path is required with --tokenizer marian"):
        build_tokenizer(TokenizerConfig("marian", spm_model_path=spm_model_path))
    theirs = transformers.MarianTokenizer.from_pretrained(tmp_path)
    theirs.add_tokens(["foxy"])
    theirs.save_pretrained(tmp_path / "added")
    with pytest.raises(DataError, match=r"are read from a tokenizer\.json only"):
        load_tokenizer(tmp_path / "added")
    (tmp_path / "vocab.json").write_text(json.dumps({"</s>": 0}), encoding="utf-8")
    with pytest.raises(DataError, match="no token '<unk>'"):
        load_tokenizer(tmp_path)
