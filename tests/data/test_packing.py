"""Packing: every sample in exactly one row, rows nearly full, and a model that cannot tell the difference."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import PlainTokenizer, random_documents, write_store

from tencentpretrain import build_model
from tencentpretrain.batch import Batch
from tencentpretrain.config import ModelConfig, PreprocessConfig, TokenizerConfig
from tencentpretrain.config.data import DataConfig
from tencentpretrain.data.loader import LoadedBatch, Loader
from tencentpretrain.data.packing import pack
from tencentpretrain.data.preprocess import preprocess
from tencentpretrain.data.store import TokenStore
from tencentpretrain.errors import ConfigError
from tencentpretrain.registry import PROCESSORS
from tencentpretrain.tokenizers import build_tokenizer
from tencentpretrain.training.settings import packing_problems

TARGETS = {"bert": ("mlm", "sp"), "albert": ("mlm", "sp"), "mlm": ("mlm",), "lm": ("lm",), "llm_sft": ("lm",)}
LAYOUTS = {"llm_sft": "instructions"}
WIDTH = 24
SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenStore]:
    folder = tmp_path_factory.mktemp("packing")
    return {
        "sentences": write_store(folder / "a", random_documents(60), shard_tokens=500),
        "instructions": write_store(folder / "b", random_documents(60, sentences=(2, 2)), "instructions"),
    }


def loader(stores: dict[str, TokenStore], name: str, packing: bool = True, **options: Any) -> Loader:
    config = DataConfig(data_processor=name, seq_length=WIDTH, packing=packing)
    store = stores[LAYOUTS.get(name, "sentences")]
    processor = PROCESSORS[name](store, config, PlainTokenizer())
    return Loader(processor, 4, **({"targets": TARGETS[name], "trim": packing} | options))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=300), st.integers(40, 60))
def test_every_sample_has_one_row_and_no_row_is_too_long(lengths: list[int], room: int) -> None:
    order, rows = pack(np.array(lengths), room)
    assert sorted(order) == list(range(len(lengths)))
    assert (np.diff(rows) >= 0).all() and set(rows) == set(range(rows[-1] + 1))
    filled = np.bincount(rows, np.array(lengths)[order])
    assert filled.max() <= room
    # The first sample of a row would not have fitted into the row before.
    firsts = np.array(lengths)[order[np.flatnonzero(np.diff(rows, prepend=-1))]]
    assert (filled[:-1] + firsts[1:].min(initial=room) > room).all() or len(filled) == 1


def test_rows_are_nearly_full() -> None:
    lengths = np.random.default_rng(0).geometric(1 / 60, 8192).clip(1, 128)
    _, rows = pack(lengths, 128)
    assert lengths.sum() / (128 * (rows[-1] + 1)) > 0.99


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="no sample corpora beside the repository")
@pytest.mark.parametrize(
    ("name", "corpus"),
    [
        ("mlm", "CLUECorpusSmall_sampled.txt"),
        ("lm", "CLUECorpusSmall_sampled.txt"),
        ("bert", "CLUECorpusSmall_bert_sampled.txt"),
        ("llm_sft", "news-commentary-v13-en-zh_sampled.txt"),
    ],
)
def test_rows_of_the_sample_corpora_are_nearly_full(name: str, corpus: str, tmp_path: Path) -> None:
    path = SAMPLES / "corpora" / corpus
    if name == "llm_sft":
        pairs = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
        path = tmp_path / "instructions.jsonl"
        path.write_text("".join(json.dumps({"instruction": a, "output": b}) + "\n" for a, b in pairs))
    tokenizer = build_tokenizer(TokenizerConfig(vocab_path=str(SAMPLES / "vocab" / "google_zh_vocab.txt")))
    store_path = str(tmp_path / "store")
    preprocess(PreprocessConfig((str(path),), store_path), PROCESSORS[name].layout, tokenizer)
    store = TokenStore.open(store_path)
    for width in (256 if name == "llm_sft" else 128, 512):  # no two of most of the pairs fit into 128
        config = DataConfig(data_processor=name, seq_length=width, packing=True)
        tokens = rows = 0
        for loaded in Loader(PROCESSORS[name](store, config, tokenizer), 64, trim=False).one_pass():
            tokens, rows = tokens + loaded.tokens, rows + len(loaded.batch["input_ids"])
        assert tokens / (rows * width) >= 0.97


@pytest.mark.parametrize("name", TARGETS)
def test_an_epoch_has_the_same_samples_and_counts(stores: dict[str, TokenStore], name: str) -> None:
    def totals(packing: bool) -> tuple[Counter[str], Counter[int]]:
        counts: Counter[str] = Counter()
        shown: Counter[int] = Counter()
        for loaded in loader(stores, name, packing).one_pass():
            counts.update(loaded.counts | {"tokens": loaded.tokens})
            shown.update(loaded.batch["input_ids"][loaded.batch["segment_ids"] > 0].tolist())
        return counts, shown

    assert totals(True) == totals(False)


@pytest.mark.parametrize("name", TARGETS)
def test_the_model_cannot_tell_packed_samples_from_padded_ones(
    stores: dict[str, TokenStore], name: str
) -> None:
    mask = {"lm": "causal", "llm_sft": "causal_with_prefix"}.get(name, "fully_visible")
    for positions in ({"embedding": ("word", "pos")}, {"rotary_position_embedding": True}):
        model = build_model(
            ModelConfig(
                hidden_size=16, emb_size=16, feedforward_size=32, heads_num=2, layers_num=2, dropout=0.0,
                max_seq_length=WIDTH, mask=mask, target=TARGETS[name], **positions,
            ),
            1000,
        )  # fmt: skip
        sums = {}
        for packing in (True, False):
            parts = [model(loaded.batch).parts for loaded in loader(stores, name, packing).one_pass()]
            sums[packing] = {
                target: sum(part[target].loss_sum.item() for part in parts) for target in TARGETS[name]
            }
        for target in TARGETS[name]:
            assert sums[True][target] == pytest.approx(sums[False][target], rel=1e-5)


def test_a_document_changes_nothing_in_its_neighbours(stores: dict[str, TokenStore]) -> None:
    batch = next(loader(stores, "mlm").batches()).batch
    config = ModelConfig(
        hidden_size=16, emb_size=16, feedforward_size=32, heads_num=2, layers_num=2, max_seq_length=WIDTH
    )
    model = build_model(config, 1000).eval()
    first = batch["document_ids"] == 1
    assert (batch["document_ids"] == 2).any()
    changed = batch | {
        "input_ids": torch.where(first, 5 + (batch["input_ids"] + 1) % 900, batch["input_ids"])
    }
    before, after = model.encode(batch), model.encode(changed)
    assert torch.equal(before[~first], after[~first])
    assert not torch.equal(before[first], after[first])


def field_rows(loaded: LoadedBatch) -> list[Batch]:
    fields = ("input_ids", "document_ids", "position_ids", "mlm_labels")
    return [
        {name: loaded.batch[name][row] for name in fields} for row in range(len(loaded.batch["input_ids"]))
    ]


@settings(max_examples=10)
@given(start=st.integers(1, 40), workers=st.sampled_from([0, 2]))
def test_batches_continue_where_they_stopped(stores: dict[str, TokenStore], start: int, workers: int) -> None:
    whole = list(itertools.islice(loader(stores, "mlm").batches(), start + 4))
    rest = loader(stores, "mlm", workers_num=workers).batches(whole[start - 1].position)
    for expected, found in zip(whole[start:], rest, strict=False):
        assert expected.batch.keys() == found.batch.keys()
        assert all(torch.equal(expected.batch[name], found.batch[name]) for name in expected.batch)
        assert expected.position == found.position


def test_two_ranks_get_the_rows_of_one(stores: dict[str, TokenStore]) -> None:
    ranks = [loader(stores, "mlm", rank=rank, world_size=2, trim=False).batches() for rank in (0, 1)]
    one = loader(stores, "mlm", trim=False)
    one.batch_size *= 2
    for expected in itertools.islice(one.batches(), 20):
        found = [row for rank in ranks for row in field_rows(next(rank))]
        for one_row, other in zip(field_rows(expected), found, strict=True):
            assert all(torch.equal(one_row[name], other[name]) for name in one_row)


def test_epochs_are_packed_differently(stores: dict[str, TokenStore]) -> None:
    source = loader(stores, "mlm")
    seen: dict[int, list[Any]] = {0: [], 1: []}
    for loaded in source.batches():
        if loaded.position.epoch > 1:
            break
        seen[loaded.position.epoch].append(loaded.batch["input_ids"].tolist())
    assert seen[0] and seen[1] and seen[0] != seen[1]


def test_the_number_of_rows_is_known(stores: dict[str, TokenStore]) -> None:
    source = loader(stores, "lm")
    assert source.rows_num() == sum(len(loaded.batch["input_ids"]) for loaded in source.one_pass())


@pytest.mark.parametrize("name", list(PROCESSORS))
def test_every_processor_packs_its_samples_or_is_refused(name: str, tmp_path: Path) -> None:
    layout = PROCESSORS[name].layout
    of_two = layout in ("pairs", "instructions", "labelled")
    documents = random_documents(60, sentences=(2, 2) if of_two else (1, 8))
    labels = [number % 2 for number in range(60)] if layout == "labelled" else None
    store = write_store(tmp_path / "store", documents, layout, labels)
    tokenizer = PlainTokenizer()
    tokenizer.sentinel_ids = (5, 6, 7, 8)  # type: ignore[attr-defined]
    config = DataConfig(data_processor=name, seq_length=WIDTH, tgt_seq_length=WIDTH, packing=True)
    processor = PROCESSORS[name](store, config, tokenizer)
    help_text = next(field for field in dataclasses.fields(DataConfig) if field.name == "packing").metadata
    if name in re.search(r"\((.*)\)", help_text["help"])[1].split():  # type: ignore[index]
        keys = processor.plan(0)
        epochs = np.zeros_like(keys)
        shown = processor.build(keys, epochs)["segment_ids"] > 0
        assert processor.lengths(keys, epochs).tolist() == shown.sum(axis=1).tolist()
        assert sum(loaded.tokens for loaded in Loader(processor, 4).one_pass()) == shown.sum()
    else:
        with pytest.raises(ConfigError, match=rf"'{name}' cannot share a row; those of .*mlm"):
            Loader(processor, 4)


def test_encoders_and_poolings_that_mix_the_samples_of_a_row_are_refused() -> None:
    assert packing_problems(ModelConfig()) == []
    assert "encoder 'gru'" in packing_problems(ModelConfig(encoder="gru"))[0]
    assert "`pooling` first" in packing_problems(ModelConfig(target=("cls",), pooling="mean"))[0]
