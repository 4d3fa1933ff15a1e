"""The files of a tiny MarianTokenizer, trained on text that is written here."""

from __future__ import annotations

import io
import json
from pathlib import Path

import sentencepiece

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Translation isn't trivial: naïve approaches don't handle unknown words.",
    "In 2019, models had 110 million parameters.",
    "A text begins with the language of its translation.",
]
TRANSLATIONS = [
    "敏捷的棕色狐狸跳过了懒狗。",
    "翻译并不简单：naive 的方法处理不了生词。",
    "2019年，模型有1.1亿个参数。",
    "文本以其译文的语言开头。",
]
CODES = [">>fr<<", ">>cmn_Hans<<"]


def _pieces(sentences: list[str], path: Path) -> list[str]:
    """Train a model; its pieces without those of control."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 3), model_writer=model, vocab_size=120, character_coverage=0.98,
        hard_vocab_limit=False, num_threads=1, minloglevel=2,
    )  # fmt: skip
    path.write_bytes(model.getvalue())
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [trained.id_to_piece(id) for id in range(3, trained.vocab_size())]


def marian_tokenizer(directory: Path, separate: bool = False) -> Path:
    """source.spm, target.spm, vocab.json and tokenizer_config.json as at Helsinki-NLP's models; with
    `separate`, target_vocab.json too. The model's pieces are not all in the vocabulary,
    whose last token is <pad>: with two vocabularies its ids differ."""
    directory.mkdir(parents=True, exist_ok=True)
    source = _pieces(SENTENCES, directory / "source.spm")[:-4]
    target = _pieces(TRANSLATIONS, directory / "target.spm")
    vocabularies = {"vocab.json": source, "target_vocab.json": target}
    if not separate:
        vocabularies = {"vocab.json": [*source, *target]}
    for name, pieces in vocabularies.items():
        tokens = dict.fromkeys(["</s>", "<unk>", *pieces, *CODES, "<pad>"])
        ids = {token: id for id, token in enumerate(tokens)}
        (directory / name).write_text(json.dumps(ids), encoding="utf-8")
    settings = {"source_lang": "en", "target_lang": "zh", "tokenizer_class": "MarianTokenizer"}
    settings |= {"separate_vocabs": True} if separate else {}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return directory
