from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import CLS, FIRST_ORDINARY, MASK, PAD, SEP, PlainTokenizer

from tencentpretrain.batch import IGNORED
from tencentpretrain.config.data import DataConfig
from tencentpretrain.data.masking import Masking
from tencentpretrain.data.random import Ints, streams
from tencentpretrain.errors import DataError

MODES = [
    {},
    {"whole_word_masking": True},
    {"span_masking": True},
    {"span_masking": True, "span_max_length": 3, "span_geo_prob": 0.5},
    {"span_masking": True, "whole_word_masking": True},
]
TOKENIZER = PlainTokenizer()
modes = pytest.mark.parametrize("mode", MODES, ids=lambda mode: "+".join(mode) or "tokens")


def make(mode: dict[str, object], tokenizer: PlainTokenizer = TOKENIZER) -> Masking:
    return Masking(DataConfig(data_processor="mlm", **mode), tokenizer)  # type: ignore[arg-type]


@st.composite
def rows(draw: st.DrawFn) -> Ints:
    """Rows as processors build them, and stranger ones: specials anywhere, only specials, nothing special."""
    width = draw(st.integers(1, 70))
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    ids = generator.integers(FIRST_ORDINARY, TOKENIZER.vocab_size, (draw(st.integers(1, 6)), width))
    special = generator.random(ids.shape) < draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
    ids[special] = generator.integers(0, FIRST_ORDINARY, special.sum())
    ids[np.arange(width) >= generator.integers(0, width + 1, (len(ids), 1))] = PAD
    return ids


def words_of(row: Ints) -> Iterator[list[int]]:
    """Columns of each word."""
    word: list[int] = []
    for column, token in enumerate(row):
        if word and not (TOKENIZER.continues_word[token] and token >= FIRST_ORDINARY):
            yield word
            word = []
        if token >= FIRST_ORDINARY:
            word.append(column)
    if word:
        yield word


@modes
@settings(max_examples=60, deadline=None)
@given(ids=rows(), seed=st.integers(0, 1000))
def test_what_is_hidden(mode: dict[str, object], ids: Ints, seed: int) -> None:
    before = ids.copy()
    seen, labels = make(mode)(ids, streams(seed, np.arange(len(ids))))
    assert (ids == before).all()
    chosen = labels != IGNORED
    assert (ids[chosen] >= FIRST_ORDINARY).all()  # never a special token
    assert (seen[~chosen] == ids[~chosen]).all()
    assert (np.where(chosen, labels, seen) == ids).all()  # labels put back give the original
    assert ((seen[chosen] == MASK) | (seen[chosen] >= FIRST_ORDINARY)).all()
    for row, picked in zip(ids, chosen, strict=True):
        ordinary = int((row >= FIRST_ORDINARY).sum())
        budget = max(1, round(0.15 * ordinary)) if ordinary else 0
        if "whole_word_masking" not in mode:
            assert picked.sum() == budget
            continue
        hidden = [word for word in words_of(row) if picked[word].any()]
        assert all(picked[word].all() for word in hidden)
        if picked.sum() > budget:
            assert len(hidden) == 1  # no word fits: one is hidden all the same
            assert all(len(word) > budget for word in words_of(row))
        elif ordinary:
            assert hidden
            left = budget - picked.sum()
            assert all(len(word) > left for word in words_of(row) if not picked[word].any())


@modes
def test_a_row_does_not_depend_on_its_batch(mode: dict[str, object]) -> None:
    ids = np.random.default_rng(0).integers(0, TOKENIZER.vocab_size, (16, 50))
    masking, stream = make(mode), streams(7, np.arange(16))
    together = masking(ids, stream)
    for row in range(16):
        alone = masking(ids[row : row + 1], stream[row : row + 1])
        assert (alone[0][0] == together[0][row]).all() and (alone[1][0] == together[1][row]).all()
    assert (masking(ids, streams(8, np.arange(16)))[1] != together[1]).any()


def many(mode: dict[str, object], rows_num: int = 4000, width: int = 130) -> tuple[Ints, Ints, Ints]:
    ids = np.random.default_rng(0).integers(FIRST_ORDINARY, TOKENIZER.vocab_size, (rows_num, width))
    ids[:, 0], ids[:, -1] = CLS, SEP
    return ids, *make(mode)(ids, streams(7, np.arange(rows_num)))


@modes
def test_shares_are_those_of_bert(mode: dict[str, object]) -> None:
    ids, seen, labels = many(mode)
    chosen = labels != IGNORED
    total = chosen.sum()
    # Spans decide together, so there are fewer independent decisions than tokens.
    error = 5 * np.sqrt(0.25 / (total / (6 if "span_masking" in mode else 1)))
    assert abs((seen[chosen] == MASK).mean() - 0.8) < error
    kept = (seen[chosen] == ids[chosen]).mean()
    assert abs(kept - 0.1) < error
    replaced = chosen & (seen != ids) & (seen != MASK)
    assert abs(replaced.sum() / total - 0.1) < error
    numbers = np.bincount(seen[replaced], minlength=TOKENIZER.vocab_size)[FIRST_ORDINARY:]
    expected = replaced.sum() / numbers.size
    assert ((numbers - expected) ** 2 / expected).sum() < numbers.size + 5 * np.sqrt(2 * numbers.size)


def test_single_tokens_are_hidden_everywhere_equally_often() -> None:
    chosen = many({}, rows_num=8000)[2] != IGNORED
    share = chosen[:, 1:-1].mean(axis=0)
    budget = 19 / 128
    assert np.abs(share - budget).max() < 5 * np.sqrt(budget * (1 - budget) / 8000)
    # Neighbours are hidden independently, but for the fixed number per row.
    assert (chosen[:, 1:-2] & chosen[:, 2:-1]).mean() == pytest.approx(budget * 18 / 127, rel=0.1)


def runs(chosen: npt.NDArray[np.bool_]) -> list[int]:
    lengths = []
    for row in chosen:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
        lengths += (edges[1::2] - edges[::2]).tolist()
    return lengths


def test_span_lengths_are_geometric_and_cut_off() -> None:
    config = {"span_masking": True, "span_geo_prob": 0.2, "span_max_length": 10}
    masking = make(config)
    assert masking._lengths is not None
    law = np.diff(masking._lengths, prepend=0)
    assert law.sum() == pytest.approx(1) and (law * np.arange(1, 11)).sum() == pytest.approx(3.8, abs=0.01)
    assert law[1:] / law[:-1] == pytest.approx(np.full(9, 0.8))

    ids = np.full((50, 4000), FIRST_ORDINARY)
    stream = streams(7, np.arange(50))
    begins = masking._spans(ids >= FIRST_ORDINARY, ids >= FIRST_ORDINARY, stream)
    lengths = np.concatenate([np.diff(np.flatnonzero(row)) for row in begins])
    share = np.bincount(lengths, minlength=11)[1:] / lengths.size
    assert np.abs(share - law).max() < 5 * np.sqrt(0.25 / lengths.size)

    chosen = masking(ids, stream)[1] != IGNORED
    spans = np.cumsum(begins, axis=1)
    hidden = [np.bincount(spans[row][chosen[row]]) for row in range(50)]
    sizes = np.concatenate([counts[counts > 0] for counts in hidden])
    assert sizes.max() == 10 and sizes.mean() == pytest.approx(3.8, abs=0.1)
    assert np.mean(runs(chosen)) > sizes.mean()  # neighbouring spans may touch


def test_spans_of_words_and_one_decision_for_each() -> None:
    ids, seen, labels = many({"span_masking": True, "whole_word_masking": True})
    chosen = labels != IGNORED
    masking = make({"span_masking": True, "whole_word_masking": True})
    ordinary = ids >= FIRST_ORDINARY
    units = masking._units(ids, ordinary)
    begins = masking._spans(units, ordinary, streams(7, np.arange(len(ids))))
    assert (units | ~begins).all()  # a span begins with a word
    number = np.cumsum(begins, axis=1)
    for row in range(200):
        for span in np.unique(number[row][chosen[row]]):
            inside = chosen[row] & (number[row] == span)
            masked = seen[row][inside] == MASK
            assert masked.all() or not masked.any()
            assert (units[row] & (number[row] == span)).sum() <= 10


def test_spans_end_at_special_tokens() -> None:
    masking = make({"span_masking": True, "span_geo_prob": 1e-6, "span_max_length": 50})
    ids = np.full((20, 40), FIRST_ORDINARY)
    ids[:, [0, 20, 39]] = CLS, SEP, SEP
    begins = masking._spans(ids >= FIRST_ORDINARY, ids >= FIRST_ORDINARY, streams(7, np.arange(20)))
    assert begins[:, 21].all()


def test_vocabulary_without_mask_is_refused() -> None:
    with pytest.raises(DataError, match="mask"):
        make({}, PlainTokenizer(mask=False))(np.full((1, 9), FIRST_ORDINARY), streams(7, np.arange(1)))
    with pytest.raises(DataError, match="nothing but special"):
        make({}, PlainTokenizer(vocab_size=FIRST_ORDINARY))
