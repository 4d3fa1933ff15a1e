"""Vocabularies made from a corpus load as they are, the same in every run and for any number of workers."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from texts import CHINESE, ENGLISH
from tqdm import tqdm

from tencentpretrain.config import Options, TokenizerConfig
from tencentpretrain.data import corpora
from tencentpretrain.errors import ConfigError, DataError, UserError
from tencentpretrain.tokenizers import build_tokenizer
from tencentpretrain.tokenizers import build_vocab as module
from tencentpretrain.tokenizers.build_vocab import BuildVocabConfig, build_vocab

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SCRIPT = Path(__file__).parents[2] / "scripts" / "build_vocab.py"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(f"{ENGLISH}\n\n{CHINESE}\n{ENGLISH.upper()} naïve Äpfel 豈\n" * 20, encoding="utf-8")
    return path


def make(tmp_path: Path, corpus: Path, name: str, **options: Any) -> tuple[list[str], str]:
    path = tmp_path / name
    report = build_vocab(BuildVocabConfig((str(corpus),), str(path), **options))
    return path.read_text(encoding="utf-8").split("\n")[:-1], report


def test_counting_as_published(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_bytes("\ufeff b a b \r\n\n[SEP] c b\ta a\n 我a\u3000我 \n".encode())
    tokens, report = make(tmp_path, corpus, "char.txt", delimiter="char")
    assert tokens == [*SPECIAL, " ", "a", "b", "我", *"[SEP]c\t\u3000"]
    assert report == f"{tmp_path / 'char.txt'}: 17 tokens."
    tokens, _ = make(tmp_path, corpus, "space.txt", delimiter="space", min_count=2)
    assert tokens == [*SPECIAL, "b", "a"]
    tokens, report = make(tmp_path, corpus, "large.txt", delimiter="char", vocab_size=8000)
    assert report.endswith(": 17 tokens, fewer than --vocab_size 8,000: this corpus gives no more.")
    tokens, _ = make(tmp_path, corpus, "small.txt", delimiter="char", vocab_size=7)
    assert tokens == [*SPECIAL, " ", "a"]
    tokens, _ = make(tmp_path, corpus, "tabs.txt", delimiter="space")
    tokenizer = build_tokenizer(TokenizerConfig("space", vocab_path=str(tmp_path / "tabs.txt")))
    assert tokenizer.tokens == tokens
    assert tokenizer.encode("c 我a\u3000我 b\ta")[1:] == [tokens.index("我a\u3000我"), 1]


def test_lines_that_are_no_text_are_counted(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt.gz"
    corpus.write_bytes(gzip.compress(b"abc\n\xff\xfe\nabc\nd\x00\n"))
    tokens, report = make(tmp_path, corpus, "vocab.txt", delimiter="char")
    assert tokens == [*SPECIAL, "a", "b", "c"]
    assert report.endswith("8 tokens (2 lines could not be used).")
    for content in (b"", b"\n \n", b"\xff\n"):
        (tmp_path / "bad.txt").write_bytes(content)
        for kind in ("wordpiece", "bpe", "unigram"):
            with pytest.raises(DataError, match=r"bad\.txt: nothing in this corpus can be used"):
                make(tmp_path, tmp_path / "bad.txt", "bad.vocab", type=kind)
            assert not (tmp_path / "bad.vocab").exists()


@pytest.mark.parametrize("lower", [True, False])
def test_wordpiece(lower: bool, corpus: Path, tmp_path: Path) -> None:
    tokens, _ = make(tmp_path, corpus, "vocab.txt", type="wordpiece", vocab_size=225, do_lower_case=lower)
    assert len(tokens) == 225
    assert tokens[:5] == SPECIAL
    tokenizer = build_tokenizer(TokenizerConfig(vocab_path=str(tmp_path / "vocab.txt"), do_lower_case=lower))
    ids = tokenizer.encode(ENGLISH + CHINESE)
    assert tokenizer.unk_id not in ids
    assert len(ids) < len(ENGLISH + CHINESE) * 0.75  # words were joined
    assert all(token == token.lower() for token in tokens[5:]) == lower
    few, _ = make(tmp_path, corpus, "few.txt", type="wordpiece", vocab_size=20, do_lower_case=lower)
    assert len(few) == 20  # more characters than that: the most frequent
    rare, _ = make(tmp_path, corpus, "rare.txt", type="wordpiece", min_count=21)
    assert "我" in few + tokens and "我" not in rare


def test_bpe(corpus: Path, tmp_path: Path) -> None:
    make(tmp_path, corpus, "vocab.json", type="bpe", vocab_size=400)
    make(
        tmp_path,
        corpus,
        "vocab.txt",
        type="bpe",
        vocab_size=400,
        merges_path=str(tmp_path / "other" / "m.txt"),
    )
    one, other = (
        build_tokenizer(
            TokenizerConfig("bpe", vocab_path=str(tmp_path / name), merges_path=str(tmp_path / merges))
        )
        for name, merges in (("vocab.json", "merges.txt"), ("vocab.txt", "other/m.txt"))
    )
    assert one.fingerprint == other.fingerprint
    assert (one.vocab_size, one.tokens[:5]) == (400, SPECIAL)
    assert one.decode(one.encode(CHINESE + ENGLISH)) == CHINESE + ENGLISH
    with pytest.raises(ConfigError, match="at least 261"):
        make(tmp_path, corpus, "vocab.txt", type="bpe", vocab_size=100)


def test_unigram(corpus: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.txt"
    long.write_text(ENGLISH * 50 + "\n" + CHINESE * 200 + "\n", encoding="utf-8")
    report = build_vocab(
        BuildVocabConfig(
            (str(corpus), str(long)), str(tmp_path / "spm.model"), type="unigram", vocab_size=200
        )
    )
    tokenizer = build_tokenizer(TokenizerConfig(spm_model_path=str(tmp_path / "spm.model")))
    assert f": {tokenizer.vocab_size} tokens" in report
    assert 150 < tokenizer.vocab_size <= 200
    assert tokenizer.tokens[:5] == SPECIAL
    assert [tokenizer.require(role) for role in ("pad", "unk", "cls", "sep", "mask")] == [0, 1, 2, 3, 4]
    assert tokenizer.unk_id not in tokenizer.encode(ENGLISH + CHINESE)
    with pytest.raises(ConfigError, match="SentencePiece cannot train 10 pieces"):
        build_vocab(
            BuildVocabConfig((str(corpus),), str(tmp_path / "x.model"), type="unigram", vocab_size=10)
        )
    assert not (tmp_path / "x.model").exists()


@pytest.mark.parametrize("kind", ["char", "space", "wordpiece", "bpe"])
def test_same_in_every_run(kind: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what = ["--delimiter", kind] if kind in ("char", "space") else ["--type", kind, "--vocab_size", "300"]
    outputs = []
    for number in ("1", "3"):
        path = tmp_path / number / "vocab.txt"
        command = [
            sys.executable,
            SCRIPT,
            "--corpus_path",
            corpus,
            "--output_path",
            path,
            "--workers_num",
            number,
        ]
        done = subprocess.run([*command, *what], check=True, capture_output=True)
        assert not done.stderr  # no progress bar where there is no terminal
        outputs.append([file.read_bytes() for file in sorted(path.parent.iterdir())])
    assert outputs[0] == outputs[1]


def test_progress_is_of_work_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    corpus = tmp_path / "corpus.txt"
    corpus.write_text("a b\n" * 5000)
    monkeypatch.setattr(sys, "stderr", Terminal())
    shown, count = [], module.spaced_words

    def observed(texts: list[str]) -> module.Words:
        (bar,) = tqdm._instances
        shown.append(bar.n)
        return count(texts)

    monkeypatch.setattr(module, "spaced_words", observed)
    monkeypatch.setattr(module, "blocks", lambda file: corpora.blocks(file, 5000))
    make(tmp_path, corpus, "vocab.txt", delimiter="space")
    assert shown == [0, 5000, 10_000, 15_000]
    assert "build_vocab: 100%" in sys.stderr.getvalue()
    before = len(sys.stderr.getvalue())
    make(tmp_path, corpus, "vocab.txt", type="bpe")
    assert "build_vocab: 100%" in sys.stderr.getvalue()[before:]


def test_workers_share_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("".join(f"{number:x} " * 20 + "\n" for number in range(5000)))
    monkeypatch.setattr("tencentpretrain.data.corpora.BLOCK_SIZE", 1 << 14)
    one = make(tmp_path, corpus, "one.txt", delimiter="space")
    assert make(tmp_path, corpus, "one.txt", delimiter="space", workers_num=3) == one
    assert len(one[0]) == 5005


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--delimiter is required"),
        (["--delimiter", "word"], "expected one of char, space"),
        (["--type", "bpe", "--delimiter", "char"], "--delimiter has no meaning"),
        (["--delimiter", "char", "--merges_path", "m"], "--merges_path has no meaning"),
        (["--type", "unigram", "--min_count", "2"], "--min_count has no meaning"),
        (["--delimiter", "char", "--vocab_size", "5"], "at least 6"),
    ],
)
def test_options(arguments: list[str], message: str) -> None:
    given = ["--corpus_path", "x", "--output_path", "y", *arguments]
    with pytest.raises(ConfigError, match=message):
        Options("", BuildVocabConfig, arguments=given).build(BuildVocabConfig)


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("corpus.txt", {"delimiter": "char"}, "--output_path .* is what --corpus_path names too"),
        ("corpus.txt", {"type": "wordpiece"}, "--output_path .* is what --corpus_path names too"),
        ("v.txt", {"type": "bpe", "merges_path": "corpus.txt"}, "--merges_path .* what --corpus_path names"),
        (
            "v.txt",
            {"type": "bpe", "merges_path": "v.txt"},
            "--output_path .* is what --merges_path names too",
        ),
        ("merges.txt", {"type": "bpe"}, "--output_path .* is what --merges_path names too"),
    ],
)
@pytest.mark.parametrize("given", ["corpus.txt", "."])
def test_the_corpus_is_never_replaced(
    given: str,
    output: str,
    options: dict[str, str],
    message: str,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(corpus.parent)
    before = corpus.read_bytes()
    with pytest.raises(UserError, match=message):
        build_vocab(BuildVocabConfig((given,), output, vocab_size=400, **options))  # type: ignore[arg-type]
    assert corpus.read_bytes() == before and list(corpus.parent.iterdir()) == [corpus]
