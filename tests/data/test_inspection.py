from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from stores import random_documents, write_store

from tencentpretrain.config import DataConfig, PreprocessConfig
from tencentpretrain.data import inspection
from tencentpretrain.data.inspection import InspectConfig, Lengths, describe, examples
from tencentpretrain.data.preprocess import preprocess
from tencentpretrain.data.store import TokenStore
from tencentpretrain.errors import UserError
from tencentpretrain.tokenizers import Tokenizer

ROOT = Path(__file__).parents[2]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("shard_tokens", [50, 2**30])
def test_lengths(shard_tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "AT_ONCE", 7)
    documents = random_documents(100)
    found = Lengths(write_store(tmp_path / "store", documents, shard_tokens=shard_tokens))
    lengths = np.array([sum(map(len, document)) for document in documents])
    assert (found.shortest, found.longest, found.counts.sum()) == (lengths.min(), lengths.max(), 100)
    for low, high, count in zip(found.borders[:-1], found.borders[1:], found.counts[:-1], strict=True):
        assert count == ((lengths >= low) & (lengths < high)).sum()
    for share in (0.5, 0.9, 0.99):
        limit = found.at_most(share)
        assert (lengths <= limit).mean() >= share and limit <= found.longest
        assert (lengths <= limit / 1.3).mean() < share
    even = Lengths(write_store(tmp_path / "even", [[[9] * 8]] * 2))
    assert even.at_most(0.99) == 8  # no longer than the longest


def inspect(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "scripts/inspect_dataset.py",
        "--dataset_path",
        str(tmp_path / "store"),
        *options,
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def make(tmp_path: Path, tokenizer: Tokenizer, content: str, layout: str) -> None:
    (tmp_path / "corpus.txt").write_text(content, encoding="utf-8")
    config = PreprocessConfig(
        corpus_path=(str(tmp_path / "corpus.txt"),), dataset_path=str(tmp_path / "store"), dedup="exact"
    )
    preprocess(config, layout, tokenizer, {"data_processor": "mlm", "seq_length": 16})


def test_the_program(tokenizer: Tokenizer, tmp_path: Path) -> None:
    make(tmp_path, tokenizer, "1 2 3 4 5 6 7\n1 2\n8\n1 2\n", "documents")
    done = inspect(tmp_path, "--verify_dataset")
    assert done.returncode == 0, done.stderr
    for words in (
        "layout 'documents', 2 bytes a token, 1 shards",
        "tokenizer: bert, 1,011 tokens",
        "3 documents, 3 sentences, 10 tokens",
        "tokens of a document: 1 to 7, mean 3.3",
        "4 lines, 1 documents that were there before",
        "options: data_processor mlm, seq_length 16",
        "Every file has its checksum, and the tokenizer is the one it was made with.",
        "example 3",
        "input_ids: [CLS] ",
        "mlm_labels: ",
        "segment_ids: 1×9\n",
    ):
        assert words in done.stdout, words
    assert (tmp_path / "store-lengths.png").read_bytes().startswith(PNG)
    done = inspect(
        tmp_path, "--data_processor", "lm", "--examples", "1", "--output_path", str(tmp_path / "x.png")
    )
    assert "lm_labels: " in done.stdout
    assert "example 2" not in done.stdout
    assert (tmp_path / "x.png").exists()


def test_labels_and_what_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    make(tmp_path, tokenizer, "0\t1 2\n1\t3\n1\t4\n", "labelled")
    done = inspect(tmp_path, "--data_processor", "cls")
    assert "labels: 1: 2, 0: 1" in done.stdout
    assert "cls_labels: 1" in done.stdout
    done = inspect(tmp_path, "--data_processor", "bert")
    assert done.returncode == 2
    assert "has the layout 'labelled', data processor 'bert' needs 'sentences'" in done.stderr
    tokens = tmp_path / "store" / "00000.tokens"
    tokens.write_bytes(bytes(tokens.stat().st_size))
    done = inspect(tmp_path, "--verify_dataset")
    assert done.returncode == 2
    assert "00000.tokens was changed after it was made" in done.stderr


def test_only_labels_that_occur_are_listed(tmp_path: Path) -> None:
    labels = [65535, 3, 3, 3]
    store = write_store(tmp_path / "few", [[[9]]] * len(labels), "labelled", labels)
    assert "\nlabels: 3: 3, 65535: 1\n" in describe(store, Lengths(store))
    labels = [*range(100, 150), 149, 7, 7]
    store = write_store(tmp_path / "many", [[[9]]] * len(labels), "labelled", labels)
    (line,) = (line for line in describe(store, Lengths(store)).split("\n") if line.startswith("labels: "))
    assert line.startswith("labels: 7: 2, 149: 2, 100: 1, 101: 1, ") and line.endswith(", 117: 1, 31 more")


@pytest.mark.parametrize("packing", [False, True])
def test_no_more_examples_than_an_epoch_has(packing: bool, tokenizer: Tokenizer, tmp_path: Path) -> None:
    make(tmp_path, tokenizer, "".join(f"{number} 1 2 3\n" for number in range(10, 40)), "documents")
    store = TokenStore.open(tmp_path / "store")
    config = DataConfig(data_processor="mlm", seq_length=16, packing=packing)
    assert len(list(examples(store, config, 5))) == 5
    found = list(examples(store, config, 1000))
    assert len(found) == (15 if packing else 30)
    inputs = [line for row in found for line in row.split("\n") if "  input_ids: " in line]
    assert all(sum(f" {number} " in line for line in inputs) <= 1 for number in range(10, 40))


def test_any_name_of_a_store_can_be_drawn(tmp_path: Path) -> None:
    for name in (os.fsdecode(b"d\xff"), "a$b_{$c"):
        store = write_store(tmp_path / name, [[[9] * 8]])
        found = inspection.inspect(InspectConfig(str(store.path), examples=0), DataConfig())
        assert found[-1].endswith(f"{name}-lengths.png: lengths of documents.")
        assert (tmp_path / f"{name}-lengths.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("output", ["store/meta.json", "store/new.png", "link/00000.tokens", "store"])
def test_nothing_is_drawn_into_the_store(output: str, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", [[[9] * 8]])
    (tmp_path / "link").symlink_to("store")
    before = sorted(store.path.iterdir()), (store.path / "meta.json").read_bytes()
    config = InspectConfig(str(store.path), str(tmp_path / output), examples=0)
    with pytest.raises(
        UserError, match=f"--output_path .*{output} is in the token store .*; give another path"
    ):
        inspection.inspect(config, DataConfig())
    assert (sorted(store.path.iterdir()), (store.path / "meta.json").read_bytes()) == before
