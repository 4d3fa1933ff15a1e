from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import CLS, FIRST_ORDINARY, MASK, PAD, SEP, PlainTokenizer, random_documents, write_store

from tencentpretrain.batch import FIELDS, IGNORED
from tencentpretrain.config.data import DataConfig
from tencentpretrain.data.processors import Processor, plans
from tencentpretrain.data.processors.base import first_at_least, fit_pair
from tencentpretrain.data.random import Ints
from tencentpretrain.data.store import TokenStore
from tencentpretrain.data.writer import StoreWriter
from tencentpretrain.errors import ConfigError, DataError
from tencentpretrain.registry import PROCESSORS

VOCABULARY = 60_000


def make(name: str, store: TokenStore, tokenizer: PlainTokenizer | None = None, **options: Any) -> Processor:
    config = DataConfig(data_processor=name, **options)
    processor: Processor = PROCESSORS[name](store, config, tokenizer or PlainTokenizer(VOCABULARY))
    return processor


def numbered(lengths: list[list[int]]) -> list[list[list[int]]]:
    """Documents of sentences of these lengths; every token is its position + FIRST_ORDINARY."""
    counter = itertools.count(FIRST_ORDINARY)
    return [[[next(counter) for _ in range(length)] for length in document] for document in lengths]


def all_rows(processor: Processor, epoch: int = 0) -> dict[str, Ints]:
    """Every sample of an epoch with the hidden tokens put back."""
    keys = processor.plan(epoch)
    rows = processor.build(keys, np.full_like(keys, epoch))
    assert set(rows) == set(processor.provides)
    for name, array in rows.items():
        assert array.shape == (len(keys), processor.config.seq_length)[: array.ndim]
        assert array.dtype == np.int64 and len(FIELDS[name].shape.split()) == array.ndim
    if "mlm_labels" in rows:
        rows["input_ids"] = np.where(rows["mlm_labels"] == IGNORED, rows["input_ids"], rows["mlm_labels"])
        assert (rows["input_ids"] != MASK).all()
    real = rows["segment_ids"] > 0
    assert (rows["input_ids"][~real] == PAD).all() and (rows["input_ids"][real] != PAD).all()
    assert (np.diff(real.astype(int), axis=1) <= 0).all()  # padding on the right
    return rows


def flat(document: list[list[int]]) -> list[int]:
    return [token for sentence in document for token in sentence]


DOCUMENTS = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=6), min_size=1, max_size=12)
SHARDS = st.sampled_from([10, 2**30])


@settings(max_examples=40, deadline=None)
@given(lengths=DOCUMENTS, width=st.integers(4, 20), shard=SHARDS, same=st.booleans(), full=st.booleans())
def test_lm_predicts_every_token_once(
    tmp_path_factory: Any, lengths: list[list[int]], width: int, shard: int, same: bool, full: bool
) -> None:
    documents = numbered(lengths)
    store = write_store(tmp_path_factory.mktemp("lm") / "store", documents, "sentences", shard_tokens=shard)
    tokenizer = PlainTokenizer(VOCABULARY, one_separator=same)
    rows = all_rows(make("lm", store, tokenizer, seq_length=width, full_sentences=full))
    sep = tokenizer.require("sep")
    texts = [[CLS, *flat(document), sep] for document in documents]
    if full and same:
        texts = [flat([text[:-1] for text in texts])]  # one separator between two documents
    elif full:
        texts = [flat(texts)]
    inputs = [
        row[kept].tolist() for row, kept in zip(rows["input_ids"], rows["segment_ids"] > 0, strict=True)
    ]
    labels = [
        row[kept].tolist() for row, kept in zip(rows["lm_labels"], rows["segment_ids"] > 0, strict=True)
    ]
    assert (rows["lm_labels"][rows["segment_ids"] == 0] == IGNORED).all()
    assert flat(inputs) == flat([text[:-1] for text in texts])
    assert flat(labels) == flat([text[1:] for text in texts])
    if full:
        assert all(len(row) == width for row in inputs[:-1])


@settings(max_examples=40, deadline=None)
@given(lengths=DOCUMENTS, width=st.integers(4, 20), shard=SHARDS, full=st.booleans())
def test_mlm_covers_every_token_once(
    tmp_path_factory: Any, lengths: list[list[int]], width: int, shard: int, full: bool
) -> None:
    documents = numbered(lengths)
    store = write_store(tmp_path_factory.mktemp("mlm") / "store", documents, "sentences", shard_tokens=shard)
    rows = all_rows(make("mlm", store, seq_length=width, full_sentences=full))
    pieces = []
    for row, kept in zip(rows["input_ids"], rows["segment_ids"] > 0, strict=True):
        piece = row[kept].tolist()
        assert piece[0] == CLS and piece[-1] == SEP and piece[1] != SEP and piece[-2] not in (CLS, SEP)
        pieces.append(piece[1:-1])
    assert [token for token in flat(pieces) if token != SEP] == flat(
        [flat(document) for document in documents]
    )
    ends = {flat(document)[-1] for document in documents}
    for piece in pieces:
        for token, following in itertools.pairwise(piece):
            assert (following == SEP) == (full and token in ends) or token == SEP
    if full:
        assert all(len(piece) >= width - 4 for piece in pieces[:-1])
    else:
        assert len(pieces) == sum(-(-len(flat(document)) // (width - 2)) for document in documents)


def bert_samples(rows: dict[str, Ints]) -> list[tuple[list[int], list[int], bool]]:
    """Positions of the tokens of both segments, and whether the second is random."""
    samples = []
    for row, segments, random in zip(rows["input_ids"], rows["segment_ids"], rows["sp_labels"], strict=True):
        first, second = row[segments == 1].tolist(), row[segments == 2].tolist()
        assert first[0] == CLS and first[-1] == SEP and second[-1] == SEP
        assert (segments[: len(first)] == 1).all()
        a, b = ([token - FIRST_ORDINARY for token in segment] for segment in (first[1:-1], second[:-1]))
        samples.append((a, b, bool(random)))
    return samples


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=12), min_size=2, max_size=8),
    width=st.integers(5, 40),
    seed=st.integers(0, 1000),
    short=st.sampled_from([0.0, 0.1, 1.0]),
    shard=SHARDS,
)
def test_bert_pairs(
    tmp_path_factory: Any, lengths: list[list[int]], width: int, seed: int, short: float, shard: int
) -> None:
    lengths[0] = [*lengths[0], 3]  # at least one document of two sentences
    documents = numbered(lengths)
    store = write_store(tmp_path_factory.mktemp("bert") / "store", documents, shard_tokens=shard)
    processor = make("bert", store, seq_length=width, seed=seed, short_seq_prob=short)
    starts = np.cumsum([0, *flat(lengths)])  # token at which a sentence begins
    document_of = np.repeat(np.arange(len(documents)), [sum(document) for document in lengths])
    sentence_of = np.repeat(np.arange(len(starts) - 1), flat(lengths))
    used = np.zeros(len(document_of), int)
    expected: int | None = 0  # the sentence with which the next sample begins, where known
    least = 0
    for first, second, random in bert_samples(all_rows(processor)):
        assert first and second and len(first) + len(second) <= width - 3
        assert first == list(range(first[0], first[-1] + 1)) and second == list(
            range(second[0], second[-1] + 1)
        )
        begin = sentence_of[first[0]]
        assert begin >= least
        whole = len(first) + len(second) < width - 3  # else a segment may have been cut
        assert begin == expected or expected is None or not whole
        if whole:
            assert {first[0], first[-1] + 1, second[0], second[-1] + 1} <= set(starts.tolist())
        used[first] += 1
        if random:
            assert document_of[second[0]] != document_of[first[0]]
        else:
            assert document_of[second[0]] == document_of[first[0]]
            assert second[0] == first[-1] + 1 if whole else second[0] > first[-1]
            used[second] += 1
        assert len(set(document_of[first])) == len(set(document_of[second])) == 1
        least = sentence_of[(first if random else second)[-1]] + 1
        expected = least if whole else None
    assert used.max() == 1  # no text twice, but as a random second segment


def test_bert_uses_every_sentence_once_where_nothing_is_cut(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", numbered([[1] * 300, [1] * 41, [1]]))
    for epoch in range(3):
        samples = bert_samples(all_rows(make("bert", store, seq_length=20), epoch))
        own = [first + ([] if random else second) for first, second, random in samples]
        assert flat(own) == list(range(342))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Many documents of many sentences of one token: a sample's drawn length is its length."""
    return write_store(tmp_path_factory.mktemp("large") / "store", numbered([[1] * 500 for _ in range(100)]))


def test_distributions_of_bert(large: TokenStore) -> None:
    processor = make("bert", large, seq_length=32, short_seq_prob=0.1)
    rows = [all_rows(processor, epoch) for epoch in range(4)]
    samples = [sample for part in rows for sample in bert_samples(part)]
    inner = [sample for sample in samples if (sample[0][-1] + 1) % 500 and (sample[1][-1] + 1) % 500]
    error = 5 * np.sqrt(0.25 / len(inner))
    assert abs(np.mean([random for *_, random in inner]) - 0.5) < error
    lengths = np.array([len(first) + len(second) for first, second, _ in inner])
    assert lengths.max() == 29 and lengths.min() == 2
    # A tenth is drawn short, evenly over 2 … 29.
    assert abs((lengths < 29).mean() - 0.1 * 27 / 28) < error
    shares = np.bincount(lengths[lengths < 29], minlength=29)[2:] / (lengths < 29).sum()
    assert np.abs(shares - 1 / 27).max() < 5 * np.sqrt(1 / 27 / (lengths < 29).sum())
    # The border between the segments lies evenly between the sentences.
    splits = np.array(
        [len(first) for (first, second, _), length in zip(inner, lengths, strict=True) if length == 29]
    )
    shares = np.bincount(splits, minlength=29)[1:] / splits.size
    assert splits.max() == 28 and np.abs(shares - 1 / 28).max() < 5 * np.sqrt(1 / 28 / splits.size)
    # Random second segments come from everywhere.
    others = np.array([second[0] for _, second, random in inner if random])
    counts = np.histogram(others, bins=20, range=(0, 50_000))[0]
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 60


@given(first=st.integers(0, 60), second=st.integers(0, 60), room=st.integers(2, 50))
def test_fitting_a_pair_shortens_the_longer_text(first: int, second: int, room: int) -> None:
    lengths = [first, second]
    while sum(lengths) > room:
        lengths[0 if lengths[0] > lengths[1] else 1] -= 1
    found = fit_pair(np.array([first]), np.array([second]), room)
    assert [int(length[0]) for length in found] == lengths


@given(
    values=st.lists(st.integers(0, 30), max_size=30),
    wanted=st.lists(st.integers(0, 31), min_size=1, max_size=5),
)
def test_searching(values: list[int], wanted: list[int]) -> None:
    array = np.sort(np.array(values, np.int64))
    low, high = np.zeros(len(wanted), np.int64), np.full(len(wanted), len(values))
    found = first_at_least(lambda ids: array[ids], low, high, np.array(wanted))
    assert found.tolist() == np.searchsorted(array, wanted).tolist()


def test_long_sentences_are_cut_at_both_ends(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", numbered([[200, 200] for _ in range(140)]))
    processor = make("bert", store, seq_length=23, short_seq_prob=0.0)
    fronts = []
    for first, second, _ in bert_samples(all_rows(processor)):
        assert len(first) == len(second) == 10
        fronts += [first[0] % 200, second[0] % 200]
    assert np.mean(fronts) == pytest.approx(95, abs=2) and np.var(fronts) == pytest.approx(190 / 4, rel=0.4)


def test_cls_rows(tmp_path: Path) -> None:
    documents = numbered([[3], [2, 2], [30], [30, 2], [9, 9], [1, 30]])
    store = write_store(tmp_path / "store", documents, "labelled", labels=[0, 1, 2, 1, 0, 5])
    rows = all_rows(make("cls", store, seq_length=12))
    assert rows["cls_labels"].tolist() == [0, 1, 2, 1, 0, 5]
    expected = []
    for (first, *rest), (a, b) in zip(
        documents, [(3, 0), (2, 2), (10, 0), (7, 2), (5, 4), (1, 8)], strict=True
    ):
        row = [CLS, *first[:a], SEP, *(rest[0][:b] if rest else []), *([SEP] if rest else [])]
        segments = [1] * (a + 2) + [2] * (len(row) - a - 2)
        padding = [0] * (12 - len(row))
        expected.append((row + padding, segments + padding))
    assert rows["input_ids"].tolist() == [row for row, _ in expected]
    assert rows["segment_ids"].tolist() == [segments for _, segments in expected]


@pytest.mark.parametrize("name", ["bert", "mlm", "lm"])
def test_shards_make_no_difference(tmp_path: Path, name: str) -> None:
    documents = random_documents(40)
    one = make(name, write_store(tmp_path / "one", documents), seq_length=16)
    several = make(name, write_store(tmp_path / "several", documents, shard_tokens=50), seq_length=16)
    assert len(several.store.shards) > 5
    for left, right in zip(all_rows(one).items(), all_rows(several).items(), strict=True):
        assert left[0] == right[0] and (left[1] == right[1]).all()


@pytest.mark.parametrize("name", ["bert", "mlm"])
def test_epochs_differ_and_dup_factor_repeats_them(tmp_path: Path, name: str) -> None:
    store = write_store(tmp_path / "store", random_documents(40))

    def content(epoch: int, **options: Any) -> list[list[int]]:
        processor = make(name, store, seq_length=16, **options)
        keys = processor.plan(epoch)
        rows: list[list[int]] = processor.build(keys, np.full_like(keys, epoch))["input_ids"].tolist()
        return rows

    assert content(0) == content(0) != content(1)
    assert content(0, seed=8) != content(0)
    assert content(0) != content(3)
    assert [content(epoch, dup_factor=3) for epoch in (3, 4, 5)] == [content(epoch) for epoch in range(3)]


def test_planning_in_parts_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write_store(tmp_path / "store", random_documents(50))
    whole = {name: make(name, store, seq_length=16).plan(0) for name in ("bert", "lm", "mlm")}
    for chunk in (1, 7):
        monkeypatch.setattr("tencentpretrain.data.processors.plans.CHUNK", chunk)
        monkeypatch.setattr("tencentpretrain.data.processors.stream.CHUNK", chunk)
        for name, plan in whole.items():
            assert (make(name, store, seq_length=16).plan(0) == plan).all()
            assert plan.dtype == np.int64 and (np.diff(plan) > 0).all()


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=60), st.integers(1, 70))
def test_samples_follow_each_other(sentences: list[tuple[int, bool]], chunk: int) -> None:
    """Each says how many sentences a sample takes that begins with it, and whether it begins a document."""
    size = len(sentences)
    borders = [0, *(place for place in range(1, size) if sentences[place][1]), size]
    ends = np.array(borders[1:])[np.searchsorted(borders, np.arange(size), side="right") - 1]
    following = np.minimum(np.arange(size) + [count for count, _ in sentences], ends)

    class Store:
        sentences_num = size

        def document_of_sentence(self, ids: Ints) -> Ints:
            return np.searchsorted(borders, ids, side="right") - 1

        def document_starts(self, documents: Ints) -> Ints:
            return np.array(borders)[documents]

    expected = [0]
    while expected[-1] < size:
        expected.append(following[expected[-1]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "CHUNK", chunk)
        found = plans.joined(plans.sample_starts(Store(), lambda ids: following[ids]))  # type: ignore[arg-type]
    assert found.tolist() == expected[:-1]


@pytest.mark.parametrize("name", ["bert", "albert", "bart", "gsg", "mlm", "lm"])
def test_a_plan_takes_8_bytes_a_sample(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, sentences = 2**18, 2**15
    (tmp_path / "store").mkdir()
    writer = StoreWriter(tmp_path / "store", PlainTokenizer(), "sentences")  # type: ignore[arg-type]
    lengths = np.full(sentences, tokens // sentences)
    writer.append(np.full(tokens, FIRST_ORDINARY), lengths, np.arange(0, sentences, 4))
    writer.close({}, {})
    monkeypatch.setattr(plans, "CHUNK", 2**9)
    monkeypatch.setattr("tencentpretrain.data.processors.stream.CHUNK", 2**9)
    processor = make(name, TokenStore.open(tmp_path / "store"), seq_length=24)
    processor.plan(0)
    tracemalloc.start()
    plan = processor.plan(0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert plan.size > 10_000 and peak < 8.6 * plan.size + 400 * 2**9


def test_vocabularies_without_some_special_tokens(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", random_documents(5))
    for name in ("bert", "mlm"):
        with pytest.raises(DataError, match="mask"):
            make(name, store, PlainTokenizer(mask=False))
    assert make("lm", store, PlainTokenizer(mask=False)).plan(0).size
    labelled = write_store(tmp_path / "labelled", random_documents(5, (1, 2)), "labelled", labels=[0] * 5)
    for role, name in itertools.product(("cls", "sep"), ("bert", "mlm", "lm", "cls")):
        tokenizer = PlainTokenizer()
        del tokenizer.roles[role]
        with pytest.raises(DataError, match=role):
            make(name, labelled if name == "cls" else store, tokenizer)


def test_datasets_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    lines = write_store(tmp_path / "lines", numbered([[3], [4], [5]]))
    one = write_store(tmp_path / "one", numbered([[3, 4, 5]]))
    labelled = write_store(tmp_path / "labelled", numbered([[3], [4]]), "labelled", labels=[0, 1])
    empty = write_store(tmp_path / "empty", [])
    with pytest.raises(DataError, match="no document has two sentences"):
        make("bert", lines)
    with pytest.raises(DataError, match="one document of"):
        make("bert", one)
    with pytest.raises(DataError, match=r"layout 'labelled'.*'bert' needs 'sentences'"):
        make("bert", labelled)
    with pytest.raises(DataError, match=r"layout 'sentences'.*'cls' needs 'labelled'"):
        make("cls", one)
    for name in ("bert", "mlm", "lm", "cls"):
        with pytest.raises(DataError, match="is empty"):
            make(name, empty)
    with pytest.raises(ConfigError, match="at least 5"):
        make("bert", write_store(tmp_path / "good", numbered([[3, 4], [5]])), seq_length=4)
