"""Rows of albert, bart, bilm, gsg, t5 and of documents of two texts, against what they are made from."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import CLS, FIRST_ORDINARY, MASK, PAD, SEP, PlainTokenizer, random_documents, write_store
from test_processors import DOCUMENTS, SHARDS, VOCABULARY, flat, numbered

from tencentpretrain.batch import IGNORED
from tencentpretrain.config.data import DataConfig
from tencentpretrain.data import masking, random
from tencentpretrain.data.processors import Processor, bart, t5
from tencentpretrain.data.processors.bart import POISSON
from tencentpretrain.data.processors.chunks import Chunks
from tencentpretrain.data.processors.plans import joined
from tencentpretrain.data.processors.t5 import random_spans
from tencentpretrain.data.random import Ints, streams
from tencentpretrain.data.store import TokenStore
from tencentpretrain.errors import ConfigError, DataError
from tencentpretrain.registry import PROCESSORS

UNK = 1
SENTINELS = range(VOCABULARY, VOCABULARY + 100)
Rows = dict[str, Ints]


class SentinelTokenizer(PlainTokenizer):
    def __init__(self, sentinels_num: int = 100) -> None:
        super().__init__(VOCABULARY + 100)
        self.sentinel_ids = [*SENTINELS][:sentinels_num]


def make(name: str, store: TokenStore, sentinels_num: int = 100, **options: Any) -> Processor:
    config = DataConfig(data_processor=name, **options)
    processor: Processor = PROCESSORS[name](store, config, SentinelTokenizer(sentinels_num))
    return processor


def build(processor: Processor, keys: Ints | None = None, epoch: int = 0) -> Rows:
    keys = processor.plan(epoch) if keys is None else keys
    rows = processor.build(keys, np.full_like(keys, epoch))
    assert set(rows) == set(processor.provides)
    for side, width in (("", processor.config.seq_length), ("decoder_", rows["input_ids"].shape[1])):
        if f"{side}input_ids" in rows:
            ids, used = rows[f"{side}input_ids"], rows[f"{side}segment_ids"] > 0
            assert ids.dtype == np.int64 and ids.shape == used.shape and ids.shape[1] <= width
            assert (ids[~used] == PAD).all() and (ids[used] != PAD).all()
            assert (np.diff(used.astype(int), axis=1) <= 0).all() and used.any(axis=1).all()
    return rows


def texts(ids: Ints, segments: Ints) -> list[list[int]]:
    return [row[used > 0].tolist() for row, used in zip(ids, segments, strict=True)]


def sources(rows: Rows) -> list[list[int]]:
    return texts(rows["input_ids"], rows["segment_ids"])


def targets(rows: Rows) -> list[list[int]]:
    """What decoders read and then predict, as one text."""
    read = texts(rows["decoder_input_ids"], rows["decoder_segment_ids"])
    labels = texts(rows["lm_labels"], rows["decoder_segment_ids"])
    assert (rows["lm_labels"][rows["decoder_segment_ids"] == 0] == IGNORED).all()
    assert all(one[1:] == other[:-1] for one, other in zip(read, labels, strict=True))
    return [one + other[-1:] for one, other in zip(read, labels, strict=True)]


def chunked(documents: list[list[list[int]]], room: int) -> list[list[list[int]]]:
    """Chunks as lists of sentences, one after the other: as many sentences as fit, the too long ones cut."""
    found = []
    for document in documents:
        chunk: list[list[int]] = []
        for sentence in document:
            while len(sentence) + len(flat(chunk)) > room:
                if chunk:
                    found.append(chunk)
                    chunk = []
                else:
                    found.append([sentence[:room]])
                    sentence = sentence[room:]
            chunk.append(sentence)
        found.append(chunk)
    return found


LONG = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=6), min_size=1, max_size=8)
small = settings(max_examples=30, deadline=None)


@small
@given(lengths=LONG, room=st.integers(1, 25), shard=SHARDS, part=st.sampled_from([1, 7, 1 << 18]))
def test_chunks(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[list[int]], room: int, shard: int, part: int
) -> None:
    documents = numbered(lengths)
    store = write_store(tmp_path_factory.mktemp("chunks") / "store", documents, shard_tokens=shard)
    chunks = Chunks(store, room)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tencentpretrain.data.processors.plans.CHUNK", part)
        keys = joined(chunks.plan())
    rows = chunks.rows(keys)
    found = [
        [row[used & (sentence == number)].tolist() for number in range(sentence[used].max() + 1)]
        for row, used, sentence in zip(rows.tokens, rows.used, rows.sentence, strict=True)
    ]
    assert found == chunked(documents, room)
    assert (chunks.ends(keys) - keys == [len(flat(chunk)) for chunk in found]).all()
    assert (rows.begins == (np.diff(rows.sentence, axis=1, prepend=-1) > 0)).all()


MASKINGS = st.sampled_from([{}, {"span_masking": True}, {"whole_word_masking": True},
                            {"span_masking": True, "whole_word_masking": True}])  # fmt: skip


@small
@given(lengths=LONG, width=st.integers(4, 40), shard=SHARDS, masking=MASKINGS, seed=st.integers(0, 99))
def test_bart(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[list[int]], width: int, shard: int,
    masking: dict[str, Any], seed: int,
) -> None:  # fmt: skip
    documents = numbered(lengths)
    store = write_store(tmp_path_factory.mktemp("bart") / "store", documents, shard_tokens=shard)
    rows = build(make("bart", store, seq_length=width, seed=seed, **masking))
    chunks = chunked(documents, width - 2)
    assert targets(rows) == [[CLS, *flat(chunk), SEP] for chunk in chunks]
    for source, chunk in zip(sources(rows), chunks, strict=True):
        assert source[0] == CLS and source[-1] == SEP and not {CLS, SEP} & set(source[1:-1])
        sentence_of = {token: number for number, sentence in enumerate(chunk) for token in sentence}
        seen = [token for token in source[1:-1] if token != MASK]
        order = [number for number, _ in itertools.groupby(seen, sentence_of.__getitem__)]
        assert len(order) == len(set(order))  # no sentence is torn apart
        assert all(one < other for one, other in itertools.pairwise(seen)
                   if sentence_of[one] == sentence_of[other])  # fmt: skip
        hidden = len(flat(chunk)) - len(seen)
        if "whole_word_masking" not in masking:
            assert hidden == max(1, round(0.3 * len(flat(chunk))))
        assert hidden and MASK in source
        # A [MASK] stands wherever tokens are missing inside a sentence.
        for one, other in itertools.pairwise(source[1:-1]):
            if MASK not in (one, other) and sentence_of[one] == sentence_of[other]:
                assert other == one + 1


def test_bart_spans_and_order(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", numbered([[25] * 4] * 500))
    processor = make("bart", store, seq_length=102)
    order: Counter[tuple[int, ...]] = Counter()
    masks, spans = 0, []
    for number, source in enumerate(
        source for epoch in range(6) for source in sources(build(processor, epoch=epoch))
    ):
        begin = FIRST_ORDINARY + 100 * (number % 500)
        seen = [token for token in source if token >= begin]
        order[tuple(dict.fromkeys((token - begin) // 25 for token in seen))] += 1
        masks += source.count(MASK)
        assert len(seen) == 70
        # Runs of hidden tokens inside sentences, with one [MASK]: single spans, where both ends are seen.
        for one, mask, other in zip(source[1:], source[2:], source[3:], strict=False):
            if mask == MASK and MASK not in (one, other) and (one - begin) // 25 == (other - begin) // 25:
                spans.append(other - one - 1)
    assert len(order) == 24 and min(order.values()) > 3000 / 24 - 5 * np.sqrt(3000 / 24)
    law = np.array(POISSON) / sum(POISSON)
    # Long spans cross a border between sentences more often, and are not seen here then.
    shares = np.bincount(spans, minlength=11)[:11] / (24 - np.arange(11))
    shares /= shares.sum()
    assert np.abs(shares - law).max() < 0.03
    # 30 tokens hidden by spans of 3 on average, the last of them cut.
    assert 9.8 < masks / 3000 < 11.2


@small
@given(
    lengths=DOCUMENTS, width=st.integers(5, 40), seed=st.integers(0, 99), shard=SHARDS,
    short=st.sampled_from([0.0, 1.0]),
)  # fmt: skip
def test_albert(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[list[int]], width: int, seed: int, shard: int,
    short: float,
) -> None:  # fmt: skip
    documents = numbered(lengths)
    store = write_store(tmp_path_factory.mktemp("albert") / "store", documents, shard_tokens=shard)
    rows = build(make("albert", store, seq_length=width, seed=seed, short_seq_prob=short))
    hidden = rows["mlm_labels"] != IGNORED
    assert hidden.any(axis=1).all()
    rows["input_ids"] = np.where(hidden, rows["mlm_labels"], rows["input_ids"])
    document_of = np.repeat(np.arange(len(lengths)), [sum(document) for document in lengths])
    covered = []
    for ids, segments, swapped in zip(rows["input_ids"], rows["segment_ids"], rows["sp_labels"], strict=True):
        first, second = ids[segments == 1].tolist(), ids[segments == 2].tolist()
        assert first[0] == CLS and first[-1] == SEP
        parts = [[token - FIRST_ORDINARY for token in first[1:-1]]]
        if swapped == IGNORED:
            assert not second and len(parts[0]) == 1
        else:
            assert second[-1] == SEP
            parts.append([token - FIRST_ORDINARY for token in second[:-1]])
        parts = parts[::-1] if swapped == 1 else parts
        text = flat(parts)
        assert all(part == [*range(part[0], part[-1] + 1)] for part in parts) and sorted(text) == text
        assert len(set(document_of[text])) == 1
        if len(text) < width - 3:  # nothing was cut
            assert text == [*range(text[0], text[-1] + 1)]
        covered.append(text)
    tokens = flat(covered)
    assert sorted(tokens) == tokens and len(set(tokens)) == len(tokens)
    if all(len(text) < width - 3 for text in covered):
        assert tokens == [*range(len(document_of))]


def test_albert_order_and_spans(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", numbered([[60], [20, 20, 20], [1]] * 490))
    processor = make("albert", store, seq_length=63, short_seq_prob=0.0)
    rows = build(processor)
    label = rows["sp_labels"].reshape(-1, 3)
    assert (label[:, 2] == IGNORED).all()
    error = 5 * np.sqrt(0.25 / 490)
    for kind in (0, 1):
        assert abs(label[:, kind].mean() - 0.5) < error
    ids = np.where(rows["mlm_labels"] == IGNORED, rows["input_ids"], rows["mlm_labels"])
    # A sentence alone is cut anywhere, sentences at their ends.
    single, several = ids[::3], ids[1::3]
    lengths = np.argmax(single == SEP, axis=1) - 1
    assert lengths.min() == 1 and lengths.max() == 59 and abs(lengths.mean() - 30) < 5 * np.sqrt(290 / 490)
    assert set((np.argmax(several == SEP, axis=1) - 1).tolist()) == {20, 40}
    assert (rows["mlm_labels"][:1000] != IGNORED).sum(axis=1).max() == 9
    assert processor._masking._lengths == pytest.approx(np.cumsum([6 / 11, 3 / 11, 2 / 11]))


def put_back(source: list[int], target: list[int], sentinels: range = SENTINELS) -> list[int]:
    """The text of which source and target (both without frame) were made."""
    assert target[-1] in sentinels  # it ends the target
    spans: dict[int, list[int]] = {}
    for token in target[:-1]:
        if token in sentinels:
            spans[token] = []
            last = token
        else:
            spans[last].append(token)
    used = [*spans, target[-1]]
    assert used == [*sentinels][: len(used)] and all(spans.values())
    assert [token for token in source if token in sentinels] == used[:-1]
    return flat([spans.get(token, [token]) for token in source])


@settings(max_examples=50, deadline=None)
@given(
    lengths=DOCUMENTS, width=st.integers(4, 40), shard=SHARDS, masking=MASKINGS, full=st.booleans(),
    sentinels_num=st.sampled_from([2, 3, 100]), seed=st.integers(0, 99),
)  # fmt: skip
def test_t5(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[list[int]], width: int, shard: int,
    masking: dict[str, Any], full: bool, sentinels_num: int, seed: int,
) -> None:  # fmt: skip
    documents = numbered(lengths)
    store = write_store(tmp_path_factory.mktemp("t5") / "store", documents, shard_tokens=shard)
    options = {"seq_length": width, "full_sentences": full, "seed": seed}
    rows = build(make("t5", store, sentinels_num, **options, **masking))
    pieces = build(make("mlm", store, **options))
    pieces["input_ids"] = np.where(pieces["mlm_labels"] == IGNORED, pieces["input_ids"], pieces["mlm_labels"])
    for source, target, piece in zip(sources(rows), targets(rows), sources(pieces), strict=True):
        assert source[0] == target[0] == CLS and source[-1] == target[-1] == SEP
        assert len(target) <= width + 1
        assert put_back(source[1:-1], target[1:-1], SENTINELS[:sentinels_num]) == piece[1:-1]
        hidden = [token for token in target[1:-1] if token not in SENTINELS]
        assert not {CLS, SEP, MASK} & set(hidden)
        ordinary = len([token for token in piece if token != SEP]) - 1
        if not masking and sentinels_num == 100:
            assert len(hidden) == max(1, round(0.15 * ordinary))
        assert hidden or masking or sentinels_num < 100


def test_t5_without_anything_to_hide(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", [[[UNK, UNK]], [[UNK, 7]], [[9]]])
    rows = build(make("t5", store, seq_length=8))
    first = SENTINELS[0]
    assert sources(rows) == [[CLS, UNK, UNK, SEP], [CLS, UNK, first, SEP], [CLS, first, SEP]]
    second = SENTINELS[1]
    assert targets(rows) == [[CLS, first, SEP], [CLS, first, 7, second, SEP], [CLS, first, 9, second, SEP]]


def test_a_target_of_t5_is_no_longer_than_a_row(tmp_path: Path) -> None:
    word = [7, *range(9, 60, 3)]  # multiples of three continue a word
    store = write_store(tmp_path / "store", [[word]])
    rows = build(make("t5", store, seq_length=16, whole_word_masking=True))
    (first, *_), (target, *_) = sources(rows), targets(rows)
    assert len(target) == 17 and put_back(first[1:-1], target[1:-1]) == word[:14]


def test_spans_of_t5() -> None:
    hidden = random_spans(np.full(4000, 500), 510, streams(7, np.arange(4000)))
    assert (hidden.sum(axis=1) == 75).all() and not hidden[:, 500:].any()
    lengths = []
    for row in hidden[:, :500]:
        ring = np.roll(row, -int(np.flatnonzero(~row & np.roll(row, 1))[0]))  # behind a span
        edges = np.flatnonzero(np.diff(np.concatenate([[0], ring, [0]]).astype(int)))
        lengths.append(edges[1::2] - edges[::2])
    assert {len(found) for found in lengths} == {25}  # so the mean is 3
    # Of all ways to cut 75 into 25 parts, C(74 - k, 23) / C(74, 24) have a first one of k.
    law = [24 / 74]
    for length in range(1, 10):
        law.append(law[-1] * (51 - length) / (74 - length))
    shares = np.bincount(np.concatenate(lengths), minlength=11)[1:11] / 1e5
    assert np.abs(shares - law).max() < 5 * np.sqrt(0.25 / 1e5)
    assert np.abs(hidden[:, :500].mean(axis=0) - 0.15).max() < 5 * np.sqrt(0.15 * 0.85 / 4000)
    short = random_spans(np.full(4000, 7), 7, streams(7, np.arange(4000)))
    assert (short.sum(axis=1) == 1).all() and short.mean(axis=0) == pytest.approx(1 / 7, rel=0.25)


@small
@given(
    lengths=LONG, width=st.integers(4, 40), tgt=st.integers(2, 20), shard=SHARDS, seed=st.integers(0, 99),
    strategy=st.sampled_from(["lead", "random", "principal"]),
)  # fmt: skip
def test_gsg(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[list[int]], width: int, tgt: int, shard: int,
    seed: int, strategy: str,
) -> None:  # fmt: skip
    documents = numbered(lengths)
    store = write_store(tmp_path_factory.mktemp("gsg") / "store", documents, shard_tokens=shard)
    processor = make(
        "gsg", store, seq_length=width, tgt_seq_length=tgt, sentence_selection_strategy=strategy, seed=seed
    )
    chunks = [chunk for chunk in chunked(documents, width - 2) if len(chunk) > 1]
    if not chunks:
        assert not processor.plan(0).size
        return
    rows = build(processor)
    assert rows["decoder_input_ids"].shape[1] <= tgt
    for source, target, chunk in zip(sources(rows), targets(rows), chunks, strict=True):
        assert source[0] == target[0] == CLS and source[-1] == SEP
        hidden = [sentence for sentence in chunk if sentence[0] not in source]
        expected = flat([[MASK] if sentence in hidden else sentence for sentence in chunk])
        assert source[1:-1] == expected
        assert 1 <= len(hidden) <= max(1, round(0.3 * len(chunk))) < len(chunk)
        text = [CLS, *flat(hidden), SEP]
        if len(text) > tgt + 1:
            assert len(hidden) == 1 and all(len(sentence) + 2 > tgt + 1 for sentence in chunk)
        assert target == text[: min(tgt + 1, width)]
        if strategy == "lead":
            fitting = [sentence for sentence in chunk if len(sentence) < tgt] or chunk
            assert hidden == fitting[: len(hidden)]


def rouge(sentence: list[int], others: list[list[int]]) -> float:
    one, other = Counter(sentence), Counter(flat(others))
    common = (one & other).total()
    if not common:
        return 0.0
    precision, recall = common / one.total(), common / other.total()
    return 2 * precision * recall / (precision + recall)


def test_gsg_selection(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    documents = [
        [generator.integers(FIRST_ORDINARY, 30, generator.integers(2, 9)).tolist() for _ in range(10)]
        for _ in range(300)
    ]
    documents = [
        [[*sentence, 100 + number] for number, sentence in enumerate(document)] for document in documents
    ]
    store = write_store(tmp_path / "store", documents)

    def hidden(strategy: str, **options: Any) -> list[list[int]]:
        processor = make("gsg", store, seq_length=128, sentence_selection_strategy=strategy, **options)
        return [[token - 100 for token in target if token >= 100] for target in targets(build(processor))]

    assert hidden("lead") == [[0, 1, 2]] * 300
    for found, document in zip(hidden("principal"), documents, strict=True):
        scores = [
            rouge(sentence, [other for other in document if other is not sentence]) for sentence in document
        ]
        assert found == sorted(found) and len(found) == 3
        assert sorted(scores)[-3:] == pytest.approx(sorted(scores[number] for number in found))
    random = hidden("random")
    assert all(len(set(found)) == 3 for found in random)
    counts = np.bincount(flat(random), minlength=10)
    assert np.abs(counts / 300 - 0.3).max() < 5 * np.sqrt(0.21 / 300)
    assert random != hidden("random", seed=8)


@small
@given(lengths=DOCUMENTS, width=st.integers(4, 20), shard=SHARDS, full=st.booleans())
def test_bilm(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[list[int]], width: int, shard: int, full: bool
) -> None:
    documents = [flat(document) for document in numbered(lengths)]
    store = write_store(tmp_path_factory.mktemp("bilm") / "store", numbered(lengths), shard_tokens=shard)
    rows = build(make("bilm", store, seq_length=width, full_sentences=full))
    if full:
        documents = [flat([[*document, SEP] for document in documents])[:-1]]
    pieces = sources(rows)
    expected = [
        document[start : start + width] for document in documents for start in range(0, len(document), width)
    ]
    assert pieces == expected
    for piece, used, labels in zip(pieces, rows["segment_ids"] > 0, rows["bilm_labels"], strict=True):
        assert labels[used, 0].tolist() == [*piece[1:], SEP]
        assert labels[used, 1].tolist() == [CLS, *piece[:-1]]
        assert (labels[~used] == IGNORED).all()


def test_llm_pretrain_is_lm_of_full_rows(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", random_documents(30))
    one = build(make("llm_pretrain", store, seq_length=16))
    other = build(make("lm", store, seq_length=16, full_sentences=True))
    assert all((one[name] == other[name]).all() for name in other)


def cut_pair(first: list[int], second: list[int], room: int) -> tuple[int, int]:
    """How much of a prompt and of an answer (with its [SEP]) fits: token by token, the answer to half."""
    lengths = [len(first), len(second)]
    while sum(lengths) > room:
        lengths[1 if lengths[1] > (room + 1) // 2 else 0] -= 1
    return lengths[0], lengths[1]


PAIRS = st.lists(st.lists(st.integers(1, 30), min_size=2, max_size=2), min_size=1, max_size=8)


@small
@given(lengths=PAIRS, width=st.integers(4, 40), tgt=st.integers(2, 20), shard=SHARDS)
def test_documents_of_two_texts(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[list[int]], width: int, tgt: int, shard: int
) -> None:
    documents = numbered(lengths)
    store = write_store(
        tmp_path_factory.mktemp("pairs") / "store", documents, "instructions", shard_tokens=shard
    )
    for name, separator in (("prefixlm", [SEP]), ("llm_sft", [])):
        rows = build(make(name, store, seq_length=width))
        for row, segments, labels, (first, second) in zip(
            *(rows[field] for field in ("input_ids", "segment_ids", "lm_labels")), documents, strict=True
        ):
            answer = [*second, SEP]
            prompt_length, answer_length = cut_pair(first, answer, width - 1 - len(separator))
            prompt = first[:prompt_length] if separator else first[len(first) - prompt_length :]
            prompt, answer = [CLS, *prompt, *separator], answer[:answer_length]
            padding = [PAD] * (width - len(prompt) - len(answer))
            assert row.tolist() == [*prompt, *answer, *padding]
            assert segments.tolist() == [1] * len(prompt) + [2] * len(answer) + [0] * len(padding)
            ignored = [IGNORED] * (len(prompt) - 1), [IGNORED] * (len(padding) + 1)
            assert labels.tolist() == [*ignored[0], *answer, *ignored[1]]
    if tgt > width:
        return
    processor = make("mt", store, seq_length=width, tgt_seq_length=tgt)
    rows = build(processor)
    assert sources(rows) == [[CLS, *first[: width - 2], SEP] for first, _ in documents]
    assert targets(rows) == [[CLS, *second, SEP][: tgt + 1] for _, second in documents]
    tokenizer: Any = processor.tokenizer
    tokenizer.starts_with_cls, tokenizer.roles["pad"] = False, CLS  # which `build` tells from padding
    rows = build(processor)
    assert sources(rows) == [[*first[: width - 1], SEP] for first, _ in documents]
    assert targets(rows) == [[CLS, *second, SEP][: tgt + 1] for _, second in documents]


def test_cls_mlm(tmp_path: Path) -> None:
    documents = random_documents(200, (1, 2), (1, 40))
    store = write_store(tmp_path / "store", documents, "labelled", labels=[*range(200)])
    rows, plain = (build(make(name, store, seq_length=24)) for name in ("cls_mlm", "cls"))
    assert rows["cls_labels"].tolist() == [*range(200)]
    hidden = rows["mlm_labels"] != IGNORED
    assert (np.where(hidden, rows["mlm_labels"], rows["input_ids"]) == plain["input_ids"]).all()
    assert (plain["input_ids"][hidden] >= FIRST_ORDINARY).all() and hidden.any(axis=1).all()
    ordinary = (plain["input_ids"] >= FIRST_ORDINARY).sum(axis=1)
    assert (hidden.sum(axis=1) == np.maximum(np.rint(0.15 * ordinary), 1)).all()


PURE = {
    "albert": "sentences", "bart": "sentences", "gsg": "sentences", "t5": "documents", "bilm": "documents",
    "cls_mlm": "labelled", "mt": "pairs", "prefixlm": "pairs", "llm_sft": "instructions",
}  # fmt: skip


def store_for(layout: str, directory: Path, shard_tokens: int = 2**30) -> TokenStore:
    documents = random_documents(60, (2, 2) if layout != "sentences" else (1, 8))
    labels = [number % 3 for number in range(60)] if layout == "labelled" else None
    layout = "sentences" if layout == "documents" else layout
    return write_store(directory, documents, layout, labels, shard_tokens)


def trimmed(rows: Rows, row: int) -> list[list[int]]:
    found = []
    for name, array in sorted(rows.items()):
        side = "decoder_" if "decoder_input_ids" in rows and (name[:3] == "dec" or name[:3] == "lm_") else ""
        used = (rows[f"{side}segment_ids"][row] > 0).sum()
        found.append(np.atleast_1d(array[row])[:used].tolist())
    return found


@pytest.mark.parametrize("span_masking", [False, True])
@pytest.mark.parametrize("name", PURE)
def test_no_number_is_drawn_for_two_decisions(
    name: str, span_masking: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Ints] = []

    def bits(*arguments: Any) -> Any:
        found = random_bits(*arguments)
        drawn.append(np.unique(found))  # spans decide the same for all of their tokens
        return found

    processor = make(
        name,
        store_for(PURE[name], tmp_path / "store"),
        seq_length=24,
        tgt_seq_length=20,
        span_masking=span_masking,
    )
    keys, random_bits = processor.plan(0)[:50], random.bits
    for module in (random, masking, bart, t5):
        monkeypatch.setattr(module, "bits", bits)
    build(processor, keys)
    numbers = np.concatenate([np.empty(0, np.uint64), *drawn])
    assert len(np.unique(numbers)) == len(numbers)


@pytest.mark.parametrize("name", PURE)
def test_rows_depend_on_seed_epoch_and_key_only(tmp_path: Path, name: str) -> None:
    store = store_for(PURE[name], tmp_path / "store")
    options = {"seq_length": 24, "tgt_seq_length": 20, "sentence_selection_strategy": "random"}
    processor = make(name, store, **options)
    keys = processor.plan(1)
    together = build(processor, keys, 1)
    order = np.random.default_rng(0).permutation(keys.size)
    shuffled = build(make(name, store, **options), keys[order], 1)
    for place, row in enumerate(order.tolist()):
        assert trimmed(shuffled, place) == trimmed(together, row)
    for row in range(0, keys.size, 7):
        assert trimmed(build(processor, keys[row : row + 1], 1), 0) == trimmed(together, row)
    several = make(name, store_for(PURE[name], tmp_path / "several", 50), **options)
    assert len(several.store.shards) > 5 and (several.plan(1) == keys).all()
    assert all((array == together[field]).all() for field, array in build(several, keys, 1).items())
    if name in ("albert", "bart", "gsg", "t5", "cls_mlm"):
        repeated = make(name, store, dup_factor=2, **options)
        again = repeated.build(keys, np.full_like(keys, 3))
        assert all((again[field] == array).all() for field, array in together.items())
        other = (
            processor.build(keys, np.full_like(keys, 3)),
            make(name, store, seed=1, **options).build(keys, np.ones_like(keys)),
        )
        assert all((rows["input_ids"] != together["input_ids"]).any() for rows in other)


def test_refusals(tmp_path: Path) -> None:
    sentences = write_store(tmp_path / "sentences", random_documents(9))
    labelled = store_for("labelled", tmp_path / "labelled")
    pairs = store_for("pairs", tmp_path / "pairs")
    with pytest.raises(DataError, match="one sentinel"):
        make("t5", sentences, 1)
    for name, store in (("albert", sentences), ("cls", labelled), ("cls_mlm", labelled)):
        with pytest.raises(ConfigError, match=f"at least 5 for data processor '{name}'"):
            make(name, store, seq_length=4)
    for name, store in (("bart", sentences), ("gsg", sentences), ("t5", sentences), ("bilm", sentences),
                        ("mt", pairs), ("prefixlm", pairs)):  # fmt: skip
        make(name, store, seq_length=4)
        with pytest.raises(ConfigError, match="`seq_length` must be at least 4"):
            make(name, store, seq_length=3)
    for name, store, layout in (
        ("gsg", pairs, "sentences"),
        ("mt", sentences, "pairs"),
        ("llm_sft", sentences, "instructions"),
        ("t5", pairs, "documents"),
    ):
        with pytest.raises(DataError, match=f"'{name}' needs '{layout}'"):
            make(name, store)
    for name, role in itertools.product(
        ("albert", "bart", "gsg", "t5", "cls_mlm", "mt"), ("cls", "sep", "mask")
    ):
        tokenizer = SentinelTokenizer()
        del tokenizer.roles[role]
        store = {"cls_mlm": labelled, "mt": pairs}.get(name, sentences)
        if (name, role) not in (("t5", "mask"), ("mt", "mask")):
            with pytest.raises(DataError, match=f"'{role}'"):
                PROCESSORS[name](store, DataConfig(data_processor=name), tokenizer)
        else:
            PROCESSORS[name](store, DataConfig(data_processor=name), tokenizer)
