from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tencentpretrain.data.random import below, bits, heads, shuffled, streams, uniform


def test_bits_are_those_of_splitmix64() -> None:
    """The first outputs of the reference implementation (Vigna, prng.di.unimi.it/splitmix64.c) for seed 0."""
    found = bits(np.zeros(1, np.uint64), np.arange(3))
    assert [hex(number) for number in found.tolist()] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


def test_streams_depend_on_every_word_and_its_place() -> None:
    words = [(7, 0, 1), (7, 1, 0), (0, 7, 1), (8, 0, 1), (7, 0, 2), (7, 0), (7, 0, 1, 0)]
    assert len({int(streams(*combination)[0]) for combination in words}) == len(words)
    keys = np.arange(100_000)
    assert len(np.unique(streams(7, 0, keys))) == len(keys)


def test_numbers_are_uniform_and_independent_between_neighbours() -> None:
    numbers = uniform(streams(7, np.arange(2000))[:, None], np.arange(100))
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 50  # χ² with 19 degrees of freedom: p < 1e-4
    for left, right in ((numbers[:, :-1], numbers[:, 1:]), (numbers[:-1], numbers[1:])):
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 0.01
    assert set(below(3, streams(1, np.arange(100))).tolist()) == {0, 1, 2}


def test_many_tosses_at_once() -> None:
    found = heads(np.array([10, 1_000_000, 0]), streams(7, np.arange(3)))
    assert 0 <= found[0] <= 10 and abs(found[1] - 500_000) < 3000 and found[2] == 0


def test_heads_are_binomial() -> None:
    tosses = np.repeat([0, 1, 5, 64, 65, 200], 20_000)
    found = heads(tosses, streams(7, np.arange(tosses.size)))
    assert (found >= 0).all() and (found <= tosses).all()
    for number in (1, 5, 64, 65, 200):
        sample = found[tosses == number]
        assert abs(sample.mean() - number / 2) < 5 * np.sqrt(number / 4 / sample.size)
        assert sample.var() == pytest.approx(number / 4, rel=0.05)


@given(count=st.integers(1, 500), seed=st.integers(0, 2**63))
def test_shuffling_permutes(count: int, seed: int) -> None:
    stream = streams(seed)
    order = shuffled(np.arange(count), count, stream)
    assert sorted(order.tolist()) == list(range(count))
    some = np.arange(count)[::3]
    assert shuffled(some, count, stream).tolist() == order[some].tolist()  # any part, without the rest


@pytest.mark.parametrize("count", [2, 5, 33])
def test_every_index_goes_everywhere_equally_often(count: int) -> None:
    trials = 1000
    landed = np.zeros((count, count))
    for seed in range(trials):
        landed[np.arange(count), shuffled(np.arange(count), count, streams(seed))] += 1
    expected = trials / count
    statistic = ((landed - expected) ** 2 / expected).sum()
    freedom = (count - 1) ** 2
    assert statistic < freedom + 5 * np.sqrt(2 * freedom) + 10


def test_large_ranges_are_shuffled_without_being_stored() -> None:
    found = shuffled(np.arange(1000), 10**12, streams(7))
    assert len(np.unique(found)) == 1000 and found.min() >= 0 and found.max() < 10**12
    assert found.mean() == pytest.approx(5e11, rel=0.1)
