from __future__ import annotations

import errno
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stores import documents_in

from tencentpretrain.config import PreprocessConfig, TokenizerConfig
from tencentpretrain.data.merge import MergeConfig, merge
from tencentpretrain.data.preprocess import preprocess
from tencentpretrain.data.store import TokenStore
from tencentpretrain.errors import ConfigError, DataError
from tencentpretrain.tokenizers import Tokenizer, build_tokenizer

ROOT = Path(__file__).parents[2]


def make(
    tmp_path: Path,
    name: str,
    tokenizer: Tokenizer,
    shard: str | None = None,
    content: str = "1\n2 3\n\n4\n\n5 6\n7\n",
    layout: str = "sentences",
    options: dict[str, object] | None = None,
) -> str:
    (tmp_path / "corpus.txt").write_text(content, encoding="utf-8")
    config = PreprocessConfig(
        corpus_path=(str(tmp_path / "corpus.txt"),), dataset_path=str(tmp_path / name), shard=shard
    )
    preprocess(config, layout, tokenizer, options)
    return str(tmp_path / name)


def test_parts_are_the_whole_without_copies(tokenizer: Tokenizer, tmp_path: Path) -> None:
    options: dict[str, object] = {"seq_length": 64}
    whole = TokenStore.open(make(tmp_path, "whole", tokenizer, options=options))
    parts = [
        make(tmp_path, f"part{number}", tokenizer, f"{number}/9", options=options) for number in range(1, 10)
    ]
    sizes = [TokenStore.open(part).documents_num for part in parts]
    assert sum(sizes) == 3
    assert sizes.count(0) >= 6  # a part without a document is a store too
    joined = merge(MergeConfig(tuple(parts), str(tmp_path / "joined")))
    assert documents_in(joined) == documents_in(whole)
    same = (
        "layout",
        "dtype",
        "tokenizer",
        "options",
        "tokens_num",
        "sentences_num",
        "documents_num",
        "corpus",
    )
    assert [joined.meta[name] for name in same] == [whole.meta[name] for name in same]
    joined.verify()
    assert joined.tokenizer.fingerprint == tokenizer.fingerprint
    tokens = next(Path(part, "00000.tokens") for part, size in zip(parts, sizes, strict=True) if size)
    assert tokens.samefile(tmp_path / "joined" / "00000.tokens")


def test_a_full_disk(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "")

    def fail(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source))

    stores = make(tmp_path, "one", tokenizer), make(tmp_path, "other", tokenizer)
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(DataError, match=r"^--output_path .*joined: No space left on device\. Make room"):
        merge(MergeConfig(stores, str(tmp_path / "joined")))
    assert not (tmp_path / "joined").exists()


def test_where_there_are_no_links_files_are_copied(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    one = make(tmp_path, "one", tokenizer)
    other = make(tmp_path, "other", tokenizer, content="9\n", layout="sentences")
    joined = merge(MergeConfig((one, other), str(tmp_path / "joined")))
    assert documents_in(joined) == documents_in(TokenStore.open(one)) + documents_in(TokenStore.open(other))
    joined.verify()


def test_only_what_belongs_together_is_joined(tokenizer: Tokenizer, vocab_path: Path, tmp_path: Path) -> None:
    parts = [make(tmp_path, f"part{number}", tokenizer, f"{number}/3") for number in (1, 2, 3)]
    again = make(tmp_path, "again", tokenizer, "3/3")
    half = make(tmp_path, "half", tokenizer, "1/2")
    foreign = make(tmp_path, "foreign", tokenizer, "3/3", content="1\n\n2\n\n3\n")
    whole = make(tmp_path, "whole", tokenizer)
    flat = make(tmp_path, "flat", tokenizer, layout="documents")
    (tmp_path / "vocab.txt").write_text(vocab_path.read_text(encoding="utf-8") + "more\n", encoding="utf-8")
    larger = build_tokenizer(TokenizerConfig(vocab_path=str(tmp_path / "vocab.txt")))
    other = make(tmp_path, "other", larger)
    empty = [make(tmp_path, f"empty{number}", tokenizer, f"{number}/2", content="\n") for number in (1, 2)]
    for paths, message in (
        (parts[:2], "of 3 parts, 3 is missing"),
        ([parts[0], parts[0], parts[1]], "is given twice"),
        ([*parts, again], "of 3 parts 4 are given"),
        ([*parts[:2], half], "not parts of one corpus, or of another number of parts"),
        ([*parts[:2], foreign], "not parts of one corpus"),
        ([*parts, whole], "whole is no part of a corpus"),
        ([whole, flat], r"cannot be joined: their layout differs \(sentences, documents\)"),
        ([whole, other], "cannot be joined: their tokenizer differs"),
        (empty, "there is nothing in these token stores"),
        ([str(tmp_path / "joined")], "there is no such token store"),
    ):
        with pytest.raises(DataError, match=message):
            merge(MergeConfig(tuple(paths), str(tmp_path / "joined")))
        assert not (tmp_path / "joined").exists()
    with pytest.raises(DataError, match="is one of --input_paths"):
        merge(MergeConfig((whole,), whole))
    with pytest.raises(DataError, match="lies in one of --input_paths"):
        merge(MergeConfig((whole,), f"{whole}/sub"))
    vocabulary = Path(whole, "tokenizer", "vocab.txt")
    vocabulary.write_bytes(vocabulary.read_bytes() + b"more\n")
    with pytest.raises(DataError, match="files of the tokenizer were changed"):
        merge(MergeConfig((whole,), str(tmp_path / "joined")))
    assert not (tmp_path / "joined").exists()
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="choose another --output_path"):
        merge(MergeConfig((whole,), str(tmp_path / "file")))


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_a_shard_is_i_of_n(shard: str) -> None:
    with pytest.raises(ConfigError, match=r"--shard is .* expected i/n with i from 1 to n, as in 2/8"):
        PreprocessConfig(corpus_path=("x",), shard=shard)


def test_bad_lines_of_a_part_can_be_found(tokenizer: Tokenizer, tmp_path: Path) -> None:
    content = "1 2 3\n" * 40 + "\0\n" + "1 2 3\n" * 40
    path = make(tmp_path, "part", tokenizer, "2/3", content, "documents")
    (line,) = json.loads(Path(path, "meta.json").read_text(encoding="utf-8"))["corpus"]["bad_lines"]
    found = [int(word) for word in line.replace(":", " ").split() if word.isdigit()]
    assert content.encode()[found[1] :].split(b"\n")[found[0] - 1] == b"\0"


def test_the_program(tokenizer: Tokenizer, tmp_path: Path) -> None:
    parts = [make(tmp_path, f"part{number}", tokenizer, f"{number}/2") for number in (1, 2)]
    command = [sys.executable, "scripts/merge_datasets.py", "--input_paths", *parts, "--output_path"]
    done = subprocess.run(
        [*command, str(tmp_path / "all")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert f"{tmp_path / 'all'}: 3 documents, 7 tokens." in done.stdout


@pytest.mark.parametrize("content", ["", "\n\n", "\0\n"])
def test_the_only_part_is_checked_as_the_whole(content: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing in this corpus can be used"):
        make(tmp_path, "part", tokenizer, "1/1", content)


def test_a_part_that_is_done_is_not_done_again(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(make(tmp_path, "part", tokenizer, "1/2"))
    before = path.stat().st_ino
    make(tmp_path, "part", tokenizer, "1/2", content=(tmp_path / "corpus.txt").read_text(encoding="utf-8"))
    assert path.stat().st_ino != before  # the corpus is as it was, but newer
    before = path.stat().st_ino
    config = PreprocessConfig(
        corpus_path=(str(tmp_path / "corpus.txt"),), dataset_path=str(path), shard="1/2"
    )
    report = preprocess(config, "sentences", tokenizer, {})
    assert path.stat().st_ino == before
    assert report.lines_num == TokenStore.open(path).meta["corpus"]["lines_num"]
    assert f"{path} is done already" in capsys.readouterr().err
    tokens = next(path.glob("*.tokens"))
    tokens.write_bytes(tokens.read_bytes()[:-1])
    preprocess(config, "sentences", tokenizer, {})  # and made again where it is damaged
    TokenStore.open(path)
    before = path.stat().st_ino
    preprocess(config, "sentences", tokenizer, {"seq_length": 64})
    assert path.stat().st_ino != before


def test_parts_without_documents_of_several_sentences(
    vocab_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A document a line, which `bert` cannot use: said when a part is made, refused when they are joined."""
    program = runpy.run_path(str(ROOT / "preprocess.py"))["main"]
    (tmp_path / "corpus.txt").write_text("1 2 3\n" * 10)
    for name in ("1", "2", "good"):
        if name == "good":
            (tmp_path / "corpus.txt").write_text("1 2 3\n4 5\n\n" * 10)
        shard = "2/2" if name == "good" else f"{name}/2"
        options = {
            "corpus_path": tmp_path / "corpus.txt", "dataset_path": tmp_path / name, "vocab_path": vocab_path,
            "data_processor": "bert", "shard": shard,
        }  # fmt: skip
        arguments = [f"--{option}={value}" for option, value in options.items()]
        monkeypatch.setattr(sys, "argv", ["preprocess.py", *arguments])
        program()
        said = capsys.readouterr().err
        assert ("no empty line separates documents" in said) == (name == "1"), said
    with pytest.raises(DataError, match="no empty line separates documents"):
        merge(MergeConfig((str(tmp_path / "1"), str(tmp_path / "2")), str(tmp_path / "joined")))
    assert not (tmp_path / "joined").exists()
