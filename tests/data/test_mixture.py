"""Mixtures: shares, every sample of a source once per epoch of it, resuming, refusals."""

from __future__ import annotations

import itertools
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stores import FIRST_ORDINARY, PlainTokenizer, write_store

from tencentpretrain.config import DataConfig, Options
from tencentpretrain.data.loader import Loader
from tencentpretrain.data.mixture import MixtureProcessor, _split, check_options, open_sources
from tencentpretrain.data.processors.base import Processor
from tencentpretrain.data.store import TokenStore
from tencentpretrain.data.writer import StoreWriter
from tencentpretrain.errors import ConfigError, DataError
from tencentpretrain.registry import PROCESSORS

SIZES = (30, 90, 10)


@pytest.fixture(scope="module")
def processors(tmp_path_factory: pytest.TempPathFactory) -> list[Processor]:
    """Of sources whose tokens tell where they are from: document n of source s is the token 100 s + 5 + n."""
    folder = tmp_path_factory.mktemp("mixture")
    found = []
    for source, size in enumerate(SIZES):
        store = write_store(
            folder / str(source), [[[100 * source + 5 + n]] for n in range(size)], "documents"
        )
        config = DataConfig(data_processor="mlm", seq_length=8, seed=3)
        found.append(PROCESSORS["mlm"](store, config, PlainTokenizer()))
    return found


def documents(mixture: MixtureProcessor, epoch: int) -> list[int]:
    keys = mixture.plan(epoch)
    arrays = mixture.build(keys, np.full_like(keys, epoch))
    labels = np.where(arrays["mlm_labels"] >= 0, arrays["mlm_labels"], arrays["input_ids"])
    return labels[:, 1].tolist()


def test_shares_are_as_asked(processors: list[Processor]) -> None:
    mixture = MixtureProcessor(processors, (0.5, 0.3, 0.2))
    for epoch in range(4):
        shares = Counter(token // 100 for token in documents(mixture, epoch))
        assert [shares[source] for source in range(3)] == [65, 39, 26]
    assert mixture.epochs(130) == pytest.approx([65 / 30, 39 / 90, 26 / 10])


def test_a_source_is_gone_through_epoch_by_epoch(processors: list[Processor]) -> None:
    mixture = MixtureProcessor(processors, (0.5, 0.3, 0.2))
    seen = [token for epoch in range(6) for token in documents(mixture, epoch)]
    for source, size in enumerate(SIZES):
        own = [token for token in seen if token // 100 == source]
        epochs = [own[begin : begin + size] for begin in range(0, len(own) - size + 1, size)]
        assert len(epochs) > 1 and all(len(set(epoch)) == size for epoch in epochs)
        assert epochs[0] != epochs[1]  # every epoch has an order of its own


def test_without_weights_every_sample_comes_once(processors: list[Processor]) -> None:
    mixture = MixtureProcessor(processors, [None] * len(processors))
    for epoch in range(3):
        assert len(set(documents(mixture, epoch))) == sum(SIZES)


def test_without_weights_samples_count_not_tokens(tmp_path: Path) -> None:
    stores = [
        write_store(tmp_path / name, [[[10 + n] * length] for n in range(number)], "documents")
        for name, number, length in (("many_short", 40, 1), ("few_long", 4, 6))
    ]
    config = DataConfig(data_processor="mlm", seq_length=8)
    processors = [PROCESSORS["mlm"](store, config, PlainTokenizer()) for store in stores]
    mixture = MixtureProcessor(processors, [None, None])
    assert mixture.epochs(44) == [1.0, 1.0]
    assert np.unique(mixture.plan(0)).size == 44


@pytest.mark.parametrize("packing", [False, True])
def test_batches_continue_where_they_stopped(processors: list[Processor], packing: bool) -> None:
    def loader() -> Loader:
        config = DataConfig(data_processor="mlm", seq_length=8, seed=3, packing=packing)
        own = [PROCESSORS["mlm"](each.store, config, PlainTokenizer()) for each in processors]
        return Loader(MixtureProcessor(own, (0.5, 0.3, 0.2)), 4, targets=("mlm",))

    whole = list(itertools.islice(loader().batches(), 80))
    assert whole[-1].position.epoch > 0
    for expected, found in zip(whole[41:], loader().batches(whole[40].position), strict=False):
        assert all(torch.equal(expected.batch[name], found.batch[name]) for name in expected.batch)


def test_a_source_that_would_be_gone_through_too_often_is_refused(
    processors: list[Processor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tencentpretrain.data.mixture.MOST_EPOCHS", 20)
    weights = (0.2, 0.2, 0.6)  # in an epoch of 130 samples the last source, of 10, has 7.8 epochs
    mixture = MixtureProcessor(processors, weights)
    mixture.check_epochs(259)
    with pytest.raises(ConfigError, match=r"/2 with probability 0\.6 would be gone through 23 times"):
        mixture.check_epochs(260)  # the third epoch begins
    monkeypatch.setattr("tencentpretrain.data.mixture.MOST_EPOCHS", 7)
    with pytest.raises(ConfigError, match="gone through 8 times, at most 7 are possible; give it a smaller"):
        MixtureProcessor(processors, weights)


def test_rows_of_different_widths_go_together(tmp_path: Path) -> None:
    class Wide(Processor):
        name, provides, layout, readable = "wide", ("input_ids",), "documents", ("documents",)

        def plan(self, epoch: int) -> Any:
            return np.arange(3)

        def build(self, keys: Any, epochs: Any) -> Any:
            width = self.store.tokens_num
            return {
                "input_ids": np.ones((len(keys), width), int),
                "lm_labels": np.ones((len(keys), width), int),
            }

    stores = [write_store(tmp_path / str(size), [[[9] * size]], "documents") for size in (2, 5)]
    both = [Wide(store, DataConfig(), PlainTokenizer()) for store in stores]  # type: ignore[arg-type]
    mixture = MixtureProcessor(both, (0.5, 0.5))
    keys = mixture.plan(0)
    arrays = mixture.build(keys, np.zeros_like(keys))
    narrow = arrays["input_ids"][:, 4] == 0
    assert arrays["input_ids"].shape == (6, 5) and narrow.sum() == 3
    assert (arrays["lm_labels"][narrow, 2:] == -100).all()


def test_weights_are_read_from_paths(tmp_path: Path) -> None:
    assert _split("a:0.7") == ("a", 0.7)
    assert _split("a:b") == ("a:b", None) and _split("a") == ("a", None)
    (tmp_path / "c:2").mkdir()
    assert _split(str(tmp_path / "c:2")) == (str(tmp_path / "c:2"), None)
    with pytest.raises(ConfigError, match="must be above 0"):
        _split("a:0")


def test_a_store_without_documents_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "empty", [], "documents")
    with pytest.raises(DataError, match="the dataset is empty"):
        open_sources([str(tmp_path / "empty")])


def test_options_in_which_stores_differ_must_be_given(tmp_path: Path) -> None:
    stores = [write_store(tmp_path / name, [[[9]]], "documents") for name in "ab"]
    stores[0].options |= {"seq_length": 64, "seed": 5}
    stores[1].options |= {"seq_length": 32, "seed": 5}
    with pytest.raises(ConfigError, match=r"--seq_length .* \(64 and 32\)"):
        check_options(stores, Options("", DataConfig, arguments=[]))
    check_options(stores, Options("", DataConfig, arguments=["--seq_length", "64"]))
    del stores[1].options["seq_length"]
    with pytest.raises(ConfigError, match=r"--seq_length .* \(64 and none\)"):
        check_options(stores, Options("", DataConfig, arguments=[]))


def test_epochs_that_are_alike_are_not_planned_to_be_counted(processors: list[Processor]) -> None:
    mixture = MixtureProcessor(processors, (0.5, 0.3, 0.2))
    mixture.plan(50)
    planned = [len(sizes) for sizes in mixture._sizes]
    assert planned == [1, 1, 1]


def test_a_plan_takes_16_bytes_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("mixture", "processors.stream"):
        monkeypatch.setattr(f"tencentpretrain.data.{module}.CHUNK", 2**9)
    (tmp_path / "store").mkdir()
    writer = StoreWriter(tmp_path / "store", PlainTokenizer(), "documents")  # type: ignore[arg-type]
    writer.append(np.full(2**16, FIRST_ORDINARY), np.full(2**15, 2), np.arange(2**15))
    writer.close({}, {})
    other = write_store(tmp_path / "other", [[[FIRST_ORDINARY]]] * 100)
    config = DataConfig(data_processor="mlm", seq_length=8)
    stores = (TokenStore.open(tmp_path / "store"), other)
    mixture = MixtureProcessor(
        [PROCESSORS["mlm"](store, config, PlainTokenizer()) for store in stores], [0.9, 0.1]
    )
    mixture.plan(0)
    tracemalloc.start()
    plan = mixture.plan(1)  # which has the end of one epoch and the beginning of the next
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert plan.size > 30_000 and peak < 18 * plan.size + 200 * 2**9
