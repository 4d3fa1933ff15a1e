"""Ids are those of Transformers' tokenizers, text by text."""

from __future__ import annotations

from typing import Any

import pytest
import sentencepiece
import transformers
from texts import TEXTS, random_texts

from tencentpretrain.config import TokenizerConfig
from tencentpretrain.tokenizers import Tokenizer, build_tokenizer

SPECIAL_TEXTS = {
    "bert": [
        "[MASK]",
        "a[MASK]b",
        " [CLS] x [SEP][SEP] y [PAD]",
        "[UNK]我[MASK]",
        "[[MASK]]",
        "[Mask] [mask]",
    ],
    "bpe": ["<|endoftext|>", "a<|endoftext|> b", "<|endoftext|><|endoftext|>", "<|endoftext"],
    "xlmroberta": ["<mask>", "a<mask> b", "<s> x</s></s> y<pad>", "<unk>我<mask> ", "<<mask>>", "<MASK>"],
}
SPECIAL_TEXTS["cased"] = SPECIAL_TEXTS["bert"]


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
    return build_tokenizer(config), transformers.XLMRobertaTokenizer.from_pretrained(
        vocabularies.fairseq.parent
    )


def differences(ours: Tokenizer, theirs: Any, texts: list[str], special_tokens: bool = True) -> list[Any]:
    ids, lengths = ours.encode_batch(texts, special_tokens)
    expected = theirs(texts, add_special_tokens=False)["input_ids"]
    found, start = [], 0
    for text, length, wanted in zip(texts, lengths.tolist(), expected, strict=True):
        if ids[start : start + length].tolist() != wanted:
            found.append((text, ids[start : start + length].tolist(), wanted))
        start += length
    assert start == len(ids)
    return found


@pytest.mark.parametrize("kind", ["bert", "cased", "bpe"])
def test_all_sorts_of_text(kind: str, vocabularies: Any) -> None:
    texts = TEXTS + SPECIAL_TEXTS[kind] + random_texts(1500, seed=1)
    assert differences(*pair(kind, vocabularies), texts) == []


@pytest.mark.parametrize("kind", ["bert", "cased"])
def test_characters_in_every_position(kind: str, vocabularies: Any) -> None:
    # All scripts that have case, marks or punctuation; of ideographs, syllables and planes above every 37th.
    points = [
        *range(0x3200),
        *range(0x3200, 0xD800, 37),
        *range(0xF900, 0x10000),
        *range(0x10000, 0x30000, 37),
    ]
    texts = [
        "".join(f"a{c}b 我{c}{c}的 {c}," for c in map(chr, points[at : at + 32]))
        for at in range(0, len(points), 32)
    ]
    assert differences(*pair(kind, vocabularies), texts) == []


@pytest.mark.parametrize("kind", ["bert", "bpe"])
def test_special_tokens_as_text(kind: str, vocabularies: Any) -> None:
    ours, theirs = pair(kind, vocabularies)
    theirs.split_special_tokens = theirs._tokenizer.encode_special_tokens = True
    assert differences(ours, theirs, SPECIAL_TEXTS[kind] + TEXTS, special_tokens=False) == []
    assert not ours.special_ids & set(
        ours.encode_batch(SPECIAL_TEXTS[kind], special_tokens=False)[0].tolist()
    ) - {ours.unk_id}


def test_words_forgotten_and_interrupted(vocabularies: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pair("bert", vocabularies)
    monkeypatch.setattr("tencentpretrain.tokenizers.words.WORDS_MAX", 20)
    for at in range(0, 200, 5):
        assert differences(ours, theirs, random_texts(5, seed=at)) == []
    with monkeypatch.context() as patch:
        patch.setattr("tencentpretrain.tokenizers.words.flatten", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ours.encode("wordsneverseen before")
    assert differences(ours, theirs, ["wordsneverseen before", *TEXTS]) == []


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


# Transformers 5 runs XLM-RoBERTa on its own port of SentencePiece, which loses a second combining mark and
# U+0085, and splits runs of one character in another of several equally likely ways. SentencePiece itself is
# what the models were trained with.
def plain(text: str) -> bool:
    return not any(
        part in text for part in ("\x85", "a\u030a\u0327", "xxx", "yyy", "aaa", "?!?!", "一一", "……", "...")
    )


def test_xlmroberta(vocabularies: Any) -> None:
    texts = [text for text in TEXTS + SPECIAL_TEXTS["xlmroberta"] if plain(text)]
    assert len(texts) > 25
    assert differences(*pair("xlmroberta", vocabularies), texts) == []


def test_sentencepiece_and_its_offset(vocabularies: Any) -> None:
    texts = TEXTS + random_texts(300, seed=2)
    model = sentencepiece.SentencePieceProcessor(model_file=str(vocabularies.fairseq))
    ours = build_tokenizer(TokenizerConfig(spm_model_path=str(vocabularies.fairseq)))
    xlmroberta = build_tokenizer(
        TokenizerConfig(tokenizer="xlmroberta", spm_model_path=str(vocabularies.fairseq))
    )
    for text in texts:
        ids = model.encode(text)
        assert ours.encode(text) == ids
        assert xlmroberta.encode(text) == [id + 1 if id else 3 for id in ids]
    assert xlmroberta.vocab_size == model.vocab_size() + 2
    assert xlmroberta.tokens[:5] == ["<s>", "<pad>", "</s>", "<unk>", model.id_to_piece(3)]
