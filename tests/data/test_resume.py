"""A run that is interrupted and continued writes the bytes of one that is not."""

from __future__ import annotations

import dataclasses
import gzip
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pyarrow.parquet
import pytest
import zstandard

from tencentpretrain.config import PreprocessConfig
from tencentpretrain.data import preprocess as module
from tencentpretrain.data.preprocess import preprocess
from tencentpretrain.data.store import TokenStore
from tencentpretrain.data.writer import PROGRESS, StoreWriter
from tencentpretrain.errors import DataError
from tencentpretrain.files import read_json
from tencentpretrain.tokenizers import Tokenizer


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAVE_SECONDS", 0)
    monkeypatch.setattr(module, "SHARD_TOKENS", 300)


def lines(count: int, seed: int) -> bytes:
    """Some lines are blank, some cannot be used, many documents are there twice."""
    generator = random.Random(seed)
    options = [b"", b"", b"1 \xff", b"%d", b"%d 5", b"7 %d 9", b"1 2 3", b"1 2"]
    found = [generator.choice(options) for _ in range(count)]
    return b"\n".join(line % generator.randrange(20) if b"%" in line else line for line in found)


def corpus(directory: Path, count: int) -> None:
    directory.mkdir()
    (directory / "a.txt").write_bytes(lines(count, 1))
    (directory / "b.txt.gz").write_bytes(gzip.compress(lines(count, 2)))
    (directory / "c.txt.zst").write_bytes(
        zstandard.compress(lines(count, 3)) + zstandard.compress(b"\n4 5\n")
    )
    rows = [{"text": text.decode()} for text in lines(count, 4).split(b"\n") if b"\xff" not in text]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), directory / "d.parquet", row_group_size=7)


def contents(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def config_for(tmp_path: Path, **options: object) -> PreprocessConfig:
    names: dict[str, object] = {
        "corpus_path": (str(tmp_path / "corpus"),),
        "dataset_path": str(tmp_path / "store"),
    }
    return PreprocessConfig(**names | options)  # type: ignore[arg-type]


@pytest.mark.parametrize("dedup", [None, "exact"])
@pytest.mark.parametrize("layout", ["sentences", "documents"])
def test_interrupted_at_every_block(
    layout: str, dedup: str | None, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus(tmp_path / "corpus", 60)
    config = config_for(tmp_path, dedup=dedup)
    whole = dataclasses.replace(config, dataset_path=str(tmp_path / "whole"))
    preprocess(whole, layout, tokenizer, block_size=60)
    store = TokenStore.open(whole.dataset_path)
    assert (store.meta["corpus"]["duplicates_num"] > 0) == (dedup == "exact")
    append, calls = StoreWriter.append, 0

    def interrupted(self: StoreWriter, *arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls % 2 == 0:
            raise KeyboardInterrupt
        append(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(StoreWriter, "append", interrupted)
    tries = 0
    while not Path(config.dataset_path).exists():
        try:
            preprocess(config, layout, tokenizer, block_size=60)
        except KeyboardInterrupt:
            tries += 1
            assert calls == 2 * tries, "a block that was done is done again"
    assert tries > 5
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "store", "whole"]


@pytest.mark.parametrize("kills_num", [5, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("processes_num", [1, 2])
def test_killed_at_random_moments(
    processes_num: int, kills_num: int, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    corpus(tmp_path / "corpus", 400)
    config = config_for(tmp_path, dedup="exact", processes_num=processes_num)

    def run(config: PreprocessConfig) -> None:
        preprocess(config, "sentences", tokenizer, block_size=200)

    start = time.monotonic()
    whole = dataclasses.replace(config, dataset_path=str(tmp_path / "whole"))
    run(whole)
    duration = time.monotonic() - start
    context = multiprocessing.get_context("fork")
    generator = random.Random(processes_num)
    positions, furthest = [0], 0
    while kills_num:
        process = context.Process(target=run, args=(config,))
        process.start()
        process.join(generator.uniform(0, duration / 3))
        assert process.pid is not None
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills_num -= 1
        if Path(config.dataset_path).exists():
            if process.exitcode == 0:
                assert contents(tmp_path / "store") == contents(tmp_path / "whole")
            shutil.rmtree(config.dataset_path)
            positions = [0]
        positions += progress_in(tmp_path)
        assert positions == sorted(positions)
        furthest = max(furthest, positions[-1])
    run(config)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
    assert furthest > 0


def progress_in(tmp_path: Path) -> Iterator[int]:
    for file in tmp_path.glob(f".store.*/{PROGRESS}"):
        yield read_json(file)["points"][-1]["position"][2]


def interrupt(config: PreprocessConfig, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave an unfinished store."""
    with monkeypatch.context() as patch:

        def stop(*arguments: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(StoreWriter, "close", stop)
        with pytest.raises(KeyboardInterrupt):
            preprocess(config, "documents", tokenizer)


@pytest.mark.parametrize("dedup", [None, "exact"])
def test_stopped_while_it_goes_back_to_the_files_two_corpora_share(
    dedup: str | None, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What such a run took away, the next one with the first corpus must not think to be there."""
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"{ord(name)}\n" + "1 2\n3 4\n5\n" * 30, encoding="utf-8")

    def config(others: str, store: str = "store") -> PreprocessConfig:
        paths = tuple(str(tmp_path / f"{name}.txt") for name in others)
        return config_for(tmp_path, corpus_path=paths, dataset_path=str(tmp_path / store), dedup=dedup)

    interrupt(config("ab"), tokenizer, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(module, "tokenise_all", interrupted := Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            preprocess(config("ac"), "documents", tokenizer)
    assert interrupted.called
    preprocess(config("ab"), "documents", tokenizer)
    preprocess(config("ab", "whole"), "documents", tokenizer)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_another_corpus_or_option_begins_anew(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus").mkdir()
    file = tmp_path / "corpus" / "a.txt"
    file.write_text("1\n2\n", encoding="utf-8")
    config = config_for(tmp_path)
    interrupt(config, tokenizer, monkeypatch)
    file.write_text("3\n4\n", encoding="utf-8")
    preprocess(config, "documents", tokenizer)
    assert "continues" not in capsys.readouterr().err
    assert TokenStore.open(config.dataset_path).shards[0].tokens.tolist() == [8, 9]
    for options in ({"dedup": "exact"}, {"resume": "never"}, {"shard": "1/2"}):
        interrupt(config, tokenizer, monkeypatch)
        preprocess(dataclasses.replace(config, **options), "documents", tokenizer)  # type: ignore[arg-type]
        assert "continues" not in capsys.readouterr().err
    interrupt(config, tokenizer, monkeypatch)
    preprocess(dataclasses.replace(config, processes_num=2), "documents", tokenizer)
    assert "An interrupted run continues after 4 bytes." in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "store"]


def test_a_run_that_was_killed_and_whose_number_another_process_has(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("1\n2\n", encoding="utf-8")
    config = config_for(tmp_path)
    interrupt(config, tokenizer, monkeypatch)
    (left,) = tmp_path.glob(".store.*")
    left.rename(tmp_path / f".store.{os.getppid()}.tmp")
    preprocess(config, "documents", tokenizer)
    assert "An interrupted run continues after 4 bytes." in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "store"]


@pytest.mark.parametrize("dedup", [None, "exact"])
@pytest.mark.parametrize("max_bad_lines", [1000, 20])
def test_what_was_done_before_a_bad_file_is_kept(
    dedup: str | None,
    max_bad_lines: int,
    tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    corpus(tmp_path / "corpus", 100)
    bad, good = tmp_path / "corpus" / "zz.txt.gz", gzip.compress(lines(100, 5), compresslevel=0)
    bad.write_bytes(good[: len(good) // 2])
    config = config_for(tmp_path, dedup=dedup)
    for limit in (max_bad_lines, 1000):
        with pytest.raises(DataError, match="What was done is kept"):
            preprocess(
                dataclasses.replace(config, max_bad_lines=limit), "sentences", tokenizer, block_size=60
            )
    bad.write_bytes(good)
    capsys.readouterr()
    preprocess(config, "sentences", tokenizer, block_size=60)
    done = sum(file.stat().st_size for file in (tmp_path / "corpus").iterdir()) - len(good)
    assert f"An interrupted run continues after {done:,} bytes." in capsys.readouterr().err
    preprocess(
        dataclasses.replace(config, dataset_path=str(tmp_path / "whole")),
        "sentences",
        tokenizer,
        block_size=60,
    )
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "store", "whole"]


def test_a_bad_file_that_goes_on_behind_the_border_of_a_shard(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Closed shards of documents of one sentence need no list of documents, but going on in one does."""
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.tsv").write_text("1\t1 2 3\n" * 30, encoding="utf-8")
    bad = tmp_path / "corpus" / "b.tsv.gz"
    good = gzip.compress(b"0\t4 5 6\n" * 400, compresslevel=0)
    bad.write_bytes(good[: len(good) // 2])
    config = config_for(tmp_path)
    with pytest.raises(DataError, match="What was done is kept"):
        preprocess(config, "labelled", tokenizer, block_size=60)
    assert list(tmp_path.glob(".store.*/00001.tokens"))
    bad.write_bytes(good)
    preprocess(config, "labelled", tokenizer, block_size=60)
    whole = dataclasses.replace(config, dataset_path=str(tmp_path / "whole"))
    preprocess(whole, "labelled", tokenizer, block_size=60)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
    assert not list((tmp_path / "store").glob("*.documents"))
