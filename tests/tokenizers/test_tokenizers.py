"""What all tokenizers share: special tokens, saving, words, decoding."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from texts import CHINESE, ENGLISH, TEXTS

from tencentpretrain.config import TokenizerConfig
from tencentpretrain.errors import ConfigError, DataError
from tencentpretrain.registry import TOKENIZERS
from tencentpretrain.tokenizers import build_tokenizer, load_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write(path: Path, tokens: list[str]) -> str:
    path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    return str(path)


def configs(vocabularies: Any) -> dict[str, TokenizerConfig]:
    bert, spm = str(vocabularies.bert), str(vocabularies.spm)
    merges = str(vocabularies.gpt2 / "merges.txt")
    marian = {"spm_model_path": "source.spm", "vocab_path": "vocab.json"}
    return {
        "bert": TokenizerConfig(vocab_path=bert),
        "bpe": TokenizerConfig("bpe", vocab_path=str(vocabularies.gpt2 / "vocab.json"), merges_path=merges),
        "hfpretrained": TokenizerConfig("hfpretrained", vocab_path=str(vocabularies.json)),
        "char": TokenizerConfig("char", vocab_path=bert),
        "space": TokenizerConfig("space", vocab_path=bert),
        "marian": TokenizerConfig(
            "marian", **{option: str(vocabularies.marian / name) for option, name in marian.items()}
        ),
        "sentencepiece": TokenizerConfig("sentencepiece", spm_model_path=spm),
        "xlmroberta": TokenizerConfig("xlmroberta", spm_model_path=str(vocabularies.fairseq)),
    }


def test_every_registered_tokenizer_is_tested(vocabularies: Any) -> None:
    assert set(TOKENIZERS) == set(configs(vocabularies))


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
def test_shapes_saving_and_copies(kind: str, vocabularies: Any, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(configs(vocabularies)[kind])
    assert tokenizer.kind == kind
    ids, lengths = tokenizer.encode_batch(TEXTS)
    assert (ids.dtype, lengths.dtype, lengths.sum()) == (np.int32, np.int64, len(ids))
    assert ids.min() >= 0
    assert ids.max() < tokenizer.vocab_size == len(tokenizer.tokens)
    assert np.split(ids, np.cumsum(lengths)[:-1])[5].tolist() == tokenizer.encode(TEXTS[5])
    assert [len(part) for part in tokenizer.encode_batch([])] == [0, 0]
    assert [part.tolist() for part in tokenizer.encode_batch(["", ""])] == [[], [0, 0]]

    tokenizer.save(tmp_path / "saved")
    description = json.loads((tmp_path / "saved" / "tencentpretrain_tokenizer.json").read_text())
    assert description["tokenizer"] == kind
    (tmp_path / "model.bin.json").write_text('{"tokenizer_path": "saved"}')
    for same in (
        load_tokenizer(tmp_path / "saved"),
        load_tokenizer(tmp_path / "model.bin"),
        load_tokenizer(str(tmp_path / "model.bin.json")),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert same.encode_batch(TEXTS)[0].tolist() == ids.tolist()
        assert same.fingerprint == tokenizer.fingerprint
        assert (same.special_tokens, same.special_ids) == (tokenizer.special_tokens, tokenizer.special_ids)
    again = load_tokenizer(tmp_path / "saved")
    again.save(tmp_path / "again")
    for file in (tmp_path / "saved").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_decode(vocabularies: Any) -> None:
    expected = {
        "bert": "the quick [MASK] fox.",
        "bpe": "The quick  fox 我!",
        "xlmroberta": "The quick<mask> fox.",
    }
    for kind, text in expected.items():
        tokenizer = build_tokenizer(configs(vocabularies)[kind])
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert build_tokenizer(configs(vocabularies)["char"]).decode([5, 6]) != ""
    space = build_tokenizer(configs(vocabularies)["space"])
    assert space.decode(space.encode("[CLS]  the fox")) == "[CLS] the fox"


def test_special_token_inside_sentencepiece_text(vocabularies: Any) -> None:
    tokenizer = build_tokenizer(configs(vocabularies)["sentencepiece"])
    ids = tokenizer.encode("The[MASK] fox[SEP]")
    assert [ids.count(tokenizer.require(role)) for role in ("mask", "sep")] == [1, 1]
    assert ids == [*tokenizer.encode("The"), tokenizer.mask_id, *tokenizer.encode("fox"), tokenizer.sep_id]
    assert not {tokenizer.mask_id, tokenizer.sep_id} & set(
        tokenizer.encode("The[MASK] fox[SEP]", special_tokens=False)
    )


def test_a_sentencepiece_model_replaces_the_vocabulary(vocabularies: Any) -> None:
    spm = configs(vocabularies)["sentencepiece"].spm_model_path
    for kind in ("bert", "bpe", "char", "space"):
        config = TokenizerConfig(kind, vocab_path=str(vocabularies.bert), spm_model_path=spm)
        assert build_tokenizer(config).kind == "sentencepiece"


def test_char_and_space(tmp_path: Path) -> None:
    vocab = write(tmp_path / "vocab.txt", [*SPECIAL, "a", " ", "我", "ab", "B"])
    char = build_tokenizer(TokenizerConfig("char", vocab_path=vocab))
    assert char.encode(" ab我 B\t") == [5, 1, 7, 6, 9]
    assert char.encode("a[MASK]我") == [5, 4, 7]
    assert char.encode("[MASK]", special_tokens=False) == [1] * 6
    space = build_tokenizer(TokenizerConfig("space", vocab_path=vocab))
    assert space.encode("\tab a  [MASK] 我们 b ") == [8, 5, 4, 1, 1]


def test_words(vocabularies: Any) -> None:
    def split(kind: str, text: str) -> list[str]:
        tokenizer = build_tokenizer(configs(vocabularies)[kind])
        words: list[list[int]] = []
        for id in tokenizer.encode(text):
            if tokenizer.continues_word[id] and words:
                words[-1].append(id)
            else:
                words.append([id])
        return ["".join(tokenizer.tokens[id].removeprefix("##") for id in word) for word in words]

    assert split("bert", "Unrecognised words, 我们") == ["unrecognised", "words", ",", "我", "们"]
    assert split("bpe", "Unrecognised words,") == ["Unrecognised", "Ġwords", ","]
    assert split("bpe", "我们。")[-1] == "ãĢĤ"  # 。 as bytes
    assert split("sentencepiece", "the quick,") == ["▁the", "▁quick", ","]
    assert not any(build_tokenizer(configs(vocabularies)["char"]).continues_word)


def test_names_of_special_tokens(tmp_path: Path) -> None:
    vocab = write(tmp_path / "vocab.txt", ["<s>", "<pad>", "</s>", "<unk>", "[MASK]", "<mask>", "a", "<x>"])
    tokenizer = build_tokenizer(TokenizerConfig(vocab_path=vocab))
    roles = ("pad", "unk", "cls", "sep", "mask")
    assert [tokenizer.require(role) for role in roles] == [1, 3, 0, 2, 4]
    fingerprint = tokenizer.fingerprint
    beside = tmp_path / "special_tokens_map.json"
    beside.write_text(
        '{"mask_token": {"content": "<mask>"}, "cls_token": "[CLS]", "additional_special_tokens": ["<x>"]}'
    )
    tokenizer = build_tokenizer(TokenizerConfig(vocab_path=vocab))
    assert [tokenizer.require(role) for role in roles] == [1, 3, 0, 2, 5]
    assert tokenizer.encode("a<x>a[MASK]") == [6, 7, 6, *[3] * 3]
    assert tokenizer.fingerprint != fingerprint
    given = tmp_path / "map.json"
    given.write_text('{"mask_token": "a", "bos_token": "<x>", "eos_token": null, "cls_token": "[CLS]"}')
    config = TokenizerConfig(vocab_path=vocab, special_tokens_map_path=str(given))
    tokenizer = build_tokenizer(config)
    assert (tokenizer.mask_id, tokenizer.cls_id, tokenizer.special_tokens["sep"]) == (6, None, "</s>")
    with pytest.raises(DataError, match=r"vocab\.txt has no cls token \('\[CLS\]'\)"):
        tokenizer.require("cls")
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").cls_id is None
    given.write_text('{"mask_token": 3}')
    with pytest.raises(DataError, match="mask_token: expected the text of a token"):
        build_tokenizer(config)


def test_fingerprint(vocabularies: Any, tmp_path: Path) -> None:
    config = configs(vocabularies)["bert"]
    tokenizer = build_tokenizer(config)
    crlf = tmp_path / "crlf.txt"
    crlf.write_bytes(b"\xef\xbb\xbf" + vocabularies.bert.read_bytes().replace(b"\n", b"\r\n"))
    assert (
        build_tokenizer(dataclasses.replace(config, vocab_path=str(crlf))).fingerprint
        == tokenizer.fingerprint
    )
    cased = build_tokenizer(dataclasses.replace(config, do_lower_case=False))
    swapped = [*tokenizer.tokens[:-2], *tokenizer.tokens[:-3:-1]]
    other = build_tokenizer(TokenizerConfig(vocab_path=write(tmp_path / "other.txt", swapped)))
    kinds = [build_tokenizer(config).fingerprint for config in configs(vocabularies).values()]
    assert len({tokenizer.fingerprint, cased.fingerprint, other.fingerprint, *kinds}) == len(kinds) + 2

    tokenizer.save(tmp_path / "saved")
    write(tmp_path / "saved" / "vocab.txt", swapped)
    with pytest.raises(DataError, match="were changed after it was saved"):
        load_tokenizer(tmp_path / "saved")


def test_half_a_surrogate_pair(vocabularies: Any) -> None:
    for config in configs(vocabularies).values():
        tokenizer = build_tokenizer(config)
        if tokenizer.kind != "space":  # a word that is in no vocabulary
            with pytest.raises(DataError, match="text 1 of 2 holds half of a surrogate pair"):
                tokenizer.encode_batch([ENGLISH, CHINESE + "\ud83d"])


def test_a_missing_option(vocabularies: Any) -> None:
    for kind in TOKENIZERS:
        with pytest.raises(ConfigError, match="is required with --tokenizer"):
            build_tokenizer(TokenizerConfig(kind))
    with pytest.raises(ConfigError, match="--merges_path is required"):
        build_tokenizer(dataclasses.replace(configs(vocabularies)["bpe"], merges_path=None))
