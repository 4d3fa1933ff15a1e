"""Tokenizers from Hugging Face directories, and to them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from texts import TEXTS, random_texts
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as RustTokenizer

from tencentpretrain.config import TokenizerConfig
from tencentpretrain.errors import DataError, UserError
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

    shutil.copy(vocabularies.fairseq, tmp_path / "sentencepiece.bpe.model")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CamembertTokenizer"}')
    with pytest.raises(DataError, match="no tokenizer for CamembertTokenizer"):
        load_tokenizer(tmp_path)


SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<mask>"]


def unigram() -> RustTokenizer:
    """As T5's, ALBERT's and XLM-R's: SentencePiece's pieces over normalised text."""
    rust = RustTokenizer(models.Unigram())
    rust.normalizer = normalizers.NFKC()
    rust.pre_tokenizer = pre_tokenizers.Metaspace()
    rust.decoder = decoders.Metaspace()
    rust.train_from_iterator(
        TEXTS * 5, trainers.UnigramTrainer(vocab_size=400, special_tokens=SPECIAL, unk_token="<unk>")
    )
    return rust


def split_bytes() -> RustTokenizer:
    """As Qwen's, Llama 3's and BLOOM's: a pattern of their own cuts before the merges of bytes."""
    rust = RustTokenizer(models.BPE())
    rust.normalizer = normalizers.NFC()
    pattern = Regex(r"(?i:'s|'t)|\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+")
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    rust.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    rust.train_from_iterator(
        TEXTS * 5, trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return rust


def byte_fallback() -> RustTokenizer:
    """As LLaMA's and Mistral's: merges of characters, bytes where there is none."""
    rust = RustTokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    rust.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    rust.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokens = SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)]
    rust.train_from_iterator(
        [text for text in TEXTS if text.isascii()] * 5,
        trainers.BpeTrainer(vocab_size=400, special_tokens=tokens),
    )
    parts = json.loads(rust.to_str())
    parts["added_tokens"] = parts["added_tokens"][: len(SPECIAL)]
    return RustTokenizer.from_str(json.dumps(parts))


@pytest.mark.parametrize("make", [unigram, split_bytes, byte_fallback])
def test_whatever_tokenizer_json_describes(make: Callable[[], Any], tmp_path: Path) -> None:
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=make(), bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    theirs.add_tokens(["<|im_start|>"], special_tokens=True)
    theirs.add_tokens(["naïvety"])
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_tokenizer(tmp_path / "theirs")
    written = ["a</s>b <s>", " <|im_start|>user\n", "<mask>我<pad> ", "some naïvety there"]
    texts = TEXTS + written + random_texts(500, seed=3)
    assert ours.kind == "hfpretrained"
    assert same(ours, theirs, texts)
    assert (ours.cls_id, ours.sep_id, ours.pad_id) == (
        theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id,
    )  # fmt: skip
    assert ours.vocab_size == len(theirs)
    for text in TEXTS + written:
        ids = ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)
    # A corpus does not end a sentence by writing </s>.
    plain = set(ours.encode("".join(written), special_tokens=False))
    assert not plain & (set(theirs.all_special_ids) | {ours.ids["<|im_start|>"]}) - {ours.unk_id}
    assert ours.ids["naïvety"] in plain

    ours.save(tmp_path / "ours")
    assert load_tokenizer(tmp_path / "ours").fingerprint == ours.fingerprint
    named = build_tokenizer(TokenizerConfig("hfpretrained", vocab_path=str(tmp_path / "theirs")))
    assert named.fingerprint == ours.fingerprint
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    assert same(ours, again, texts)


def test_tokenizers_beside_ours(vocabularies: Any, tmp_path: Path) -> None:
    """GPT-2's with a space before the text, XLM-R's without its SentencePiece file: not as ours read them."""
    spaced = transformers.GPT2Tokenizer.from_pretrained(vocabularies.gpt2, add_prefix_space=True)
    fairseq = transformers.XLMRobertaTokenizer.from_pretrained(vocabularies.fairseq.parent)
    for name, theirs in {"spaced": spaced, "unigram": fairseq}.items():
        theirs.save_pretrained(tmp_path / name)
        ours = load_tokenizer(tmp_path / name)
        assert ours.kind == "hfpretrained"
        assert same(ours, theirs, TEXTS)


def test_tokens_added_to_a_sentencepiece_model(vocabularies: Any, tmp_path: Path) -> None:
    """T5's sentinels, the chat tokens of a LLaMA: in tokenizer.json, not in the model beside it."""
    theirs = transformers.XLMRobertaTokenizer.from_pretrained(vocabularies.fairseq.parent)
    theirs.save_pretrained(tmp_path)
    shutil.copy(vocabularies.fairseq, tmp_path / "sentencepiece.bpe.model")
    assert load_tokenizer(tmp_path).kind == "xlmroberta"
    theirs.add_tokens(["<|im_start|>"], special_tokens=True)
    theirs.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert same(ours, theirs, [*TEXTS, "<|im_start|> user"])
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "added_tokens.json").write_text("{}")
    with pytest.raises(DataError, match=r"added_tokens\.json are read from a tokenizer\.json only"):
        load_tokenizer(tmp_path)


def test_flags_are_no_tokens(tmp_path: Path) -> None:
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=split_bytes(), eos_token="</s>")
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | {"add_bos_token": False, "add_eos_token": True}
    path.write_text(json.dumps(settings), encoding="utf-8")
    assert load_tokenizer(tmp_path).sep_id == theirs.eos_token_id


def test_a_special_token_that_merges_make_too(tmp_path: Path) -> None:
    rust = RustTokenizer(models.BPE({"<": 0, "s>": 1, "s": 2, ">": 3, "<s>": 4}, [("s", ">"), ("<", "s>")]))
    rust.add_special_tokens(["<s>"])
    rust.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    assert ours.encode("<s>") == [4] and ours.encode("<s>", special_tokens=False) == [0, 1]


@pytest.mark.parametrize("content", ["{}", '{"model": {"type": "BPE"}}', "[1]", "no JSON"])
def test_no_tokenizer_json(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match=r"is no tokenizer\.json"):
        build_tokenizer(TokenizerConfig("hfpretrained", vocab_path=str(tmp_path / "tokenizer.json")))
