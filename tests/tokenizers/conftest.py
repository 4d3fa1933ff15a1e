"""Small vocabularies of every kind, made once from text that is written here."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from marian_files import marian_tokenizer
from texts import TEXTS
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@dataclasses.dataclass(frozen=True)
class Vocabularies:
    bert: Path  # vocab.txt, lower-cased
    cased: Path  # vocab.txt
    gpt2: Path  # directory with vocab.json, merges.txt
    fairseq: Path  # SentencePiece model with fairseq's special pieces first
    spm: Path  # SentencePiece model with BERT's special pieces
    json: Path  # tokenizer.json of a unigram model
    marian: Path  # directory with the files of a MarianTokenizer


@pytest.fixture(scope="session")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Vocabularies:
    root = tmp_path_factory.mktemp("vocabularies")
    for name, lower in (("bert", True), ("cased", False)):
        rust = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        rust.normalizer = normalizers.BertNormalizer(lowercase=lower)
        rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        known = TEXTS[:8] + TEXTS[12:16]
        rust.train_from_iterator(
            known, trainers.WordPieceTrainer(vocab_size=700, special_tokens=SPECIAL, show_progress=False)
        )
        ids = rust.get_vocab()
        (root / name).mkdir()
        lines = "".join(f"{token}\n" for token in sorted(ids, key=ids.__getitem__))
        (root / name / "vocab.txt").write_text(lines, encoding="utf-8")
    rust = tokenizers.Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    rust.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=600, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
        ),
    )
    (root / "gpt2").mkdir()
    rust.model.save(str(root / "gpt2"))
    rust = tokenizers.Tokenizer(models.Unigram())
    rust.pre_tokenizer = pre_tokenizers.Metaspace()
    rust.decoder = decoders.Metaspace()
    specials = ["<unk>", "<s>", "</s>", "<pad>", "<mask>"]
    rust.train_from_iterator(
        TEXTS * 3,
        trainers.UnigramTrainer(
            vocab_size=400, special_tokens=specials, unk_token="<unk>", show_progress=False
        ),
    )
    (root / "json").mkdir()
    rust.save(str(root / "json" / "tokenizer.json"))
    fairseq = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
    berts = {"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3, "pad_piece": "[PAD]", "unk_piece": "[UNK]"}
    berts |= {"bos_piece": "[CLS]", "eos_piece": "[SEP]", "control_symbols": ["[MASK]"]}
    for name, options in (("fairseq", fairseq), ("spm", berts)):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([text for text in TEXTS if "\0" not in text] * 3),
            model_writer=model, vocab_size=500,
            character_coverage=0.98, hard_vocab_limit=False, num_threads=1, minloglevel=2, **options,
        )  # fmt: skip
        (root / name).mkdir()
        (root / name / "sentencepiece.bpe.model").write_bytes(model.getvalue())
    return Vocabularies(
        root / "bert" / "vocab.txt",
        root / "cased" / "vocab.txt",
        root / "gpt2",
        root / "fairseq" / "sentencepiece.bpe.model",
        root / "spm" / "sentencepiece.bpe.model",
        root / "json" / "tokenizer.json",
        marian_tokenizer(root / "marian"),
    )
