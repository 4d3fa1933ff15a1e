from __future__ import annotations

import dataclasses
import itertools
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import PAD, PlainTokenizer, random_documents, write_store

from tencentpretrain import build_model
from tencentpretrain.batch import IGNORED, Batch
from tencentpretrain.config import ModelConfig
from tencentpretrain.config.data import DataConfig
from tencentpretrain.data.loader import DataPosition, LoadedBatch, Loader, depend_on_the_main_process
from tencentpretrain.data.processors import Processor
from tencentpretrain.data.processors.base import Arrays
from tencentpretrain.data.processors.mlm import MlmProcessor
from tencentpretrain.data.random import Ints
from tencentpretrain.data.store import TokenStore
from tencentpretrain.errors import ConfigError, DataError
from tencentpretrain.registry import PROCESSORS

NAMES = ["bert", "mlm", "lm"]
TARGETS = {"bert": ("mlm", "sp"), "mlm": ("mlm",), "lm": ("lm",), "cls": ("cls",)}
Row = tuple[tuple[int, ...], ...]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_store(tmp_path_factory.mktemp("loader") / "store", random_documents(12), shard_tokens=200)


def processor_of(store: TokenStore, name: str = "mlm", **options: Any) -> Processor:
    config = DataConfig(data_processor=name, **({"seq_length": 20} | options))
    processor: Processor = PROCESSORS[name](store, config, PlainTokenizer())
    return processor


def make(store: TokenStore, name: str = "mlm", batch_size: int = 4, seed: int = 7, **options: Any) -> Loader:
    return Loader(processor_of(store, name, seed=seed), batch_size, **({"targets": TARGETS[name]} | options))


def rows_of(loaded: LoadedBatch) -> list[Row]:
    """Rows of an untrimmed batch, fields in order."""
    fields = [array for name, array in sorted(loaded.batch.items()) if not name.endswith("_positions")]
    return [
        tuple(tuple(np.atleast_1d(field[row].numpy()).tolist()) for field in fields)
        for row in range(len(fields[0]))
    ]


def stream(loader: Loader, rows_num: int, position: DataPosition | None = None) -> list[Row]:
    rows: list[Row] = []
    batches = loader.batches(position)
    while len(rows) < rows_num:
        rows += rows_of(next(batches))
    return rows[:rows_num]


@pytest.mark.parametrize("name", NAMES)
def test_an_epoch_has_every_sample_once(store: TokenStore, name: str) -> None:
    loader = make(store, name, trim=False)
    for epoch in range(2):
        found = stream(loader, loader.samples_num(epoch), DataPosition(epoch, 0))
        keys = loader.processor.plan(epoch)
        arrays = loader.processor.build(keys, np.full_like(keys, epoch))
        batch = {field: torch.from_numpy(array) for field, array in arrays.items()}
        everything = rows_of(LoadedBatch(batch, {}, 0, DataPosition()))
        assert sorted(found) == sorted(everything) and found != everything


@pytest.mark.parametrize("name", NAMES)
def test_order_and_contents_come_from_seed_and_epoch(store: TokenStore, name: str) -> None:
    size = make(store, name).samples_num()
    first = stream(make(store, name, trim=False), 3 * size)
    assert stream(make(store, name, trim=False), 3 * size) == first
    assert stream(make(store, name, seed=8, trim=False), 3 * size) != first
    assert first[:size] != first[size : 2 * size]
    drawn = sorted(first[:size]) != sorted(first[size : 2 * size])
    assert drawn == (name != "lm")  # where nothing is drawn but the order


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_size", [1, 5, 1000])
def test_batch_size_makes_no_difference(store: TokenStore, name: str, batch_size: int) -> None:
    expected = stream(make(store, name, trim=False), 150)
    assert stream(make(store, name, batch_size=batch_size, trim=False), 150) == expected


@pytest.mark.parametrize("name", NAMES)
def test_ranks_share_the_global_batch(store: TokenStore, name: str) -> None:
    whole = make(store, name, batch_size=6).batches()
    parts = [
        make(store, name, batch_size=3, rank=rank, world_size=2, trim=False).batches() for rank in range(2)
    ]
    untrimmed = make(store, name, batch_size=6, trim=False).batches()
    for _ in range(25):  # several epochs
        loaded, split = next(untrimmed), [next(part) for part in parts]
        assert rows_of(split[0]) + rows_of(split[1]) == rows_of(loaded)
        assert split[0].position == split[1].position == loaded.position == next(whole).position
        assert loaded.tokens == sum(part.tokens for part in split)
        assert loaded.counts == {
            target: sum(part.counts[target] for part in split) for target in loaded.counts
        }


def test_workers_make_no_difference(store: TokenStore) -> None:
    def first(workers_num: int) -> list[LoadedBatch]:
        loader = make(store, "bert", workers_num=workers_num)
        return list(itertools.islice(loader.batches(DataPosition(0, 3)), 30))

    for alone, helped in zip(first(0), first(2), strict=True):
        assert alone[1:] == helped[1:]
        assert alone.batch.keys() == helped.batch.keys()
        assert all(torch.equal(alone.batch[field], helped.batch[field]) for field in alone.batch)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", NAMES)
def test_going_on_from_any_position(store: TokenStore, name: str, data: st.DataObject) -> None:
    batch_size = data.draw(st.sampled_from([1, 3, 7, 100]))
    steps = data.draw(st.integers(1, 12))
    batches = make(store, name, batch_size=batch_size).batches()
    for _ in range(steps):
        position = next(batches).position
    resumed = make(store, name, batch_size=batch_size).batches(position)
    for _ in range(4):
        left, right = next(batches), next(resumed)
        assert left[1:] == right[1:]
        assert all(torch.equal(left.batch[field], right.batch[field]) for field in left.batch)


def test_positions_count_samples(store: TokenStore) -> None:
    loader = make(store, batch_size=10)
    size = loader.samples_num()
    expected, used = [], 0
    for _ in range(20):
        used += 10
        expected.append(DataPosition(used // size, used % size))
    assert [loaded.position for loaded in itertools.islice(loader.batches(), 20)] == expected


def test_one_pass_is_every_sample_in_order(store: TokenStore) -> None:
    loader = make(store, "bert", batch_size=7, trim=False)
    keys = loader.processor.plan(0)
    expected = loader.processor.build(keys, np.zeros_like(keys))["input_ids"].tolist()
    for _ in range(2):
        batches = list(loader.one_pass())
        assert [row for loaded in batches for row in loaded.batch["input_ids"].tolist()] == expected
    assert [len(loaded.batch["input_ids"]) for loaded in batches[:-1]] == [7] * (len(batches) - 1)
    ranks = [make(store, "bert", batch_size=7, trim=False, rank=rank, world_size=3) for rank in range(3)]
    shares = [
        row for rank in ranks for loaded in rank.one_pass() for row in loaded.batch["input_ids"].tolist()
    ]
    assert sorted(shares) == sorted(expected)


@pytest.mark.parametrize("name", NAMES)
def test_trimming_cuts_padding_only(tmp_path: Path, name: str) -> None:
    store = write_store(tmp_path / "store", random_documents(30, sentences=(1, 3), tokens=(1, 15)))
    processor = processor_of(store, name, seq_length=61)
    widths = set()
    for whole, cut in zip(
        Loader(processor, 2, trim=False).one_pass(), Loader(processor, 2).one_pass(), strict=True
    ):
        longest = int((whole.batch["segment_ids"] > 0).sum(1).max())
        width = cut.batch["input_ids"].shape[1]
        assert longest <= width <= 61 and (width - longest < 8) and (width % 8 == 0 or width == 61)
        widths.add(width)
        for field, array in whole.batch.items():
            if array.ndim == 2:
                assert torch.equal(cut.batch[field], array[:, :width]) and cut.batch[field].is_contiguous()
        assert (whole.batch["input_ids"][:, width:] == PAD).all()
        assert cut.tokens == whole.tokens == int((whole.batch["segment_ids"] > 0).sum())
        assert cut.counts == whole.counts
    assert len(widths) > 1


def check_positions(batch: Batch, counts: dict[str, int], target: str) -> None:
    labels = batch[f"{target}_labels"].flatten()
    assert torch.equal(batch[f"{target}_positions"], (labels != IGNORED).nonzero().squeeze(1))
    assert counts[target] == batch[f"{target}_positions"].numel()


def test_counts_and_positions_of_labels(tmp_path: Path, store: TokenStore) -> None:
    for loaded in make(store, "bert").one_pass():
        check_positions(loaded.batch, loaded.counts, "mlm")
        assert loaded.counts["sp"] == len(loaded.batch["sp_labels"]) and "sp_positions" not in loaded.batch
    for loaded in make(store, "lm").one_pass():
        check_positions(loaded.batch, loaded.counts, "lm")
        assert loaded.counts == {"lm": loaded.tokens}
    labelled = write_store(tmp_path / "store", random_documents(9, (1, 2)), "labelled", labels=list(range(9)))
    for loaded in make(labelled, "cls").one_pass():
        assert loaded.counts == {"cls": len(loaded.batch["cls_labels"])}


def test_fewer_samples_than_a_batch(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", [[[10, 11]], [[12]], [[13, 14, 15]]])
    loader = make(store, "lm", batch_size=8)
    loaded = next(loader.batches())
    assert loaded.position == DataPosition(2, 2) and len(loaded.batch["input_ids"]) == 8
    words = loaded.batch["input_ids"][:, 1].tolist()
    assert sorted(words[:3]) == sorted(words[3:6]) == [10, 12, 13]


def test_loading_leaves_the_random_state_alone(store: TokenStore) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(make(store).batches())
    next(make(store).one_pass())
    assert torch.equal(torch.get_rng_state(), before)


class FixedProcessor(MlmProcessor):
    """The same rows for every key."""

    fields: Arrays

    def build(self, keys: Ints, epochs: Ints) -> Arrays:
        return {name: array[: len(keys)] for name, array in self.fields.items()}


def load_fixed(store: TokenStore, fields: Arrays, target: str, **options: Any) -> LoadedBatch:
    processor = FixedProcessor(store, DataConfig(seq_length=20), PlainTokenizer())  # type: ignore[arg-type]
    processor.fields = fields
    rows = len(fields["input_ids"])
    return next(Loader(processor, rows, targets=(target,), **options).batches())


def ones_up_to(lengths: list[int], width: int) -> np.ndarray:
    return (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)


@pytest.mark.parametrize("tgt_width", [20, 26])  # as wide as the source, or not
def test_source_and_target_are_cut_each_to_its_own_length(store: TokenStore, tgt_width: int) -> None:
    source, target = ones_up_to([3, 9, 1], 20), ones_up_to([2, 4, 7], tgt_width)
    labels = np.where(target > 0, 7, IGNORED)
    fields = {
        "input_ids": source * 5, "segment_ids": source, "decoder_input_ids": target * 6,
        "decoder_segment_ids": target, "lm_labels": labels,
    }  # fmt: skip
    loaded = load_fixed(store, fields, "lm")
    widths = {name: tensor.shape[1] for name, tensor in loaded.batch.items() if tensor.ndim == 2}
    assert widths == {
        "input_ids": 16, "segment_ids": 16, "decoder_input_ids": 8, "decoder_segment_ids": 8, "lm_labels": 8,
    }  # fmt: skip
    for name, width in widths.items():
        assert np.array_equal(loaded.batch[name].numpy(), fields[name][:, :width])
    check_positions(loaded.batch, loaded.counts, "lm")
    assert loaded.counts == {"lm": 2 + 4 + 7}
    assert loaded.tokens == 3 + 9 + 1 + 2 + 4 + 7
    assert load_fixed(store, fields, "lm", trim=False).batch["lm_labels"].shape == (3, tgt_width)


def test_labels_of_both_directions_are_cut_and_counted(store: TokenStore) -> None:
    used = ones_up_to([3, 9], 20)
    labels = np.where(used[:, :, None] > 0, 7, np.full((1, 1, 2), IGNORED))
    loaded = load_fixed(store, {"input_ids": used, "segment_ids": used, "bilm_labels": labels}, "bilm")
    assert loaded.batch["bilm_labels"].shape == (2, 16, 2)
    check_positions(loaded.batch, loaded.counts, "bilm")
    assert loaded.counts == {"bilm": 2 * (3 + 9)}


def test_the_loss_of_a_prefix_is_not_counted_by_the_loader_or_the_target(store: TokenStore) -> None:
    """Only labels that are tokens of the second segment, the first of which the prefix predicts."""
    segments = np.array([[1, 1, 2, 2, 2, 0, 0, 0], [1, 2, 2, 2, 2, 2, 2, 2], [1, 1, 1, 1, 0, 0, 0, 0]])
    ids = np.arange(24).reshape(3, 8) + 5
    labels = np.where(np.roll(segments, -1, 1) > 0, np.roll(ids, -1, 1), IGNORED)
    labels[:, 7] = IGNORED
    labels[1, 7] = 99  # the row goes on elsewhere
    expected = labels.copy()
    expected[0, 0] = expected[2, :3] = IGNORED
    fields = {"input_ids": ids, "segment_ids": segments, "lm_labels": labels}

    counted = load_fixed(store, fields, "lm", prefix_lm_loss=True)
    everything = load_fixed(store, fields, "lm")
    assert counted.batch["lm_labels"].tolist() == expected.tolist()
    check_positions(counted.batch, counted.counts, "lm")
    assert (counted.counts, everything.counts) == ({"lm": 3 + 8}, {"lm": 4 + 8 + 3})

    sizes = {"hidden_size": 8, "emb_size": 8, "feedforward_size": 8, "heads_num": 2, "layers_num": 1}
    config = ModelConfig(mask="causal_with_prefix", target=("lm",), prefix_lm_loss=True, dropout=0.0, **sizes)
    model = build_model(config, 100)
    for loaded in (counted, everything):  # whether the loader knew of it or not
        output = model(loaded.batch)
        assert int(output.count) == 3 + 8
        torch.testing.assert_close(output.loss_sum, model(counted.batch).loss_sum)
    alone = build_model(dataclasses.replace(config, prefix_lm_loss=False), 100)
    alone.load_state_dict(model.state_dict())
    torch.testing.assert_close(alone(counted.batch).loss, output.loss)
    with pytest.raises(DataError, match="`prefix_lm_loss` needs segment_ids"):
        model({name: tensor for name, tensor in counted.batch.items() if name != "segment_ids"})


class TaughtProcessor(MlmProcessor):
    """Brings a teacher's logits, which are no labels of a target."""

    provides = (*MlmProcessor.provides, "soft_labels")

    def build(self, keys: Ints, epochs: Ints) -> Arrays:
        return super().build(keys, epochs) | {"soft_labels": np.ones((len(keys), 3), np.float32)}


def test_a_target_without_labels_of_its_own_counts_rows(store: TokenStore) -> None:
    processor = TaughtProcessor(store, DataConfig(seq_length=20), PlainTokenizer())  # type: ignore[arg-type]
    for loaded in Loader(processor, 7, targets=("mlm", "length", "soft")).one_pass():
        rows = len(loaded.batch["input_ids"])
        predicted = int((loaded.batch["mlm_labels"] != IGNORED).sum())
        assert loaded.counts == {"mlm": predicted, "length": rows, "soft": rows}
        assert "soft_positions" not in loaded.batch


class RefusingProcessor(MlmProcessor):
    def build(self, keys: Ints, epochs: Ints) -> Arrays:
        raise ConfigError(["the first thing is wrong:", "and the second"])


@pytest.mark.parametrize("workers_num", [0, 1])
def test_what_a_worker_refuses_reaches_the_user_as_it_was_said(store: TokenStore, workers_num: int) -> None:
    processor = RefusingProcessor(store, DataConfig(seq_length=20), PlainTokenizer())  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as error:
        next(Loader(processor, 4, workers_num).batches())
    assert str(error.value) == "the first thing is wrong:\n  and the second"


def test_workers_whose_main_process_was_killed_while_they_started_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("multiprocessing.parent_process", lambda: SimpleNamespace(pid=os.getppid() + 1))
    with pytest.raises(SystemExit):
        depend_on_the_main_process(0)


def test_workers_outlive_the_saving_of_the_main_process() -> None:
    """A scheduler's SIGTERM reaches them too; one that dies breaks off what the main process does."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    try:
        depend_on_the_main_process(0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert 3000 < signal.alarm(0) <= 3600
    finally:
        signal.alarm(0)
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
