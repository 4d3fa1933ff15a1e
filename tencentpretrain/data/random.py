"""Random numbers that are pure functions of what they are for: (seed, epoch, sample, purpose, counter).

Nothing here has a state that advances, so a sample's randomness does not depend on the batch, worker or
rank that builds it, and any sample can be built first. Source: splitmix64 (Steele, Lea, Flood 2014, "Fast
splittable pseudorandom number generators").
"""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
import numpy.typing as npt

UInts = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 6
_WORDS = 1024  # coins are tossed so many words at a time


@enum.unique
class Purpose(enum.IntEnum):
    """What streams are for: streams(seed, purpose, …)."""

    ROW, MASK, SAMPLES, PACKED_ROWS, SOURCES = range(5)


@enum.unique
class InRow(enum.IntEnum):
    """The counters of a stream for a row where a number is drawn once a row."""

    SHORT, LENGTH, SPLIT, PAIR, DOCUMENT, SENTENCE, FRONT_A, FRONT_B, SWAP, CUT = range(10)


@enum.unique
class InMask(enum.IntEnum):
    """What the columns of a row draw from its stream for masks; see `of_columns`."""

    SPAN_ORDER, SPAN_LENGTH, KIND, TOKEN, EMPTY_SPAN, EMPTY_PLACE = range(6)


@enum.unique
class InT5(enum.IntEnum):
    """The same where T5's own spans take the place of all of InMask."""

    HIDDEN, SHOWN, BEGIN = range(3)


def of_columns(purpose: InMask | InT5, columns: Ints) -> UInts:
    """The counters of columns: purpose · 2^32 + column."""
    return np.uint64(purpose << 32) + columns.astype(np.uint64)


def _mix(values: UInts) -> UInts:
    """The finaliser of splitmix64: a bijection of 64 bits, every output bit depends on every input bit."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def streams(*words: Any) -> UInts:
    """One stream per combination of whole numbers (arrays broadcast); every word and its place matter."""
    state = np.zeros(1, np.uint64)
    for word in words:
        state = _mix((state + _STEP) ^ _mix(np.atleast_1d(word).astype(np.uint64) + _STEP))
    return state


def bits(stream: UInts, counter: Any = 0) -> UInts:
    """64 random bits: number `counter` (0, 1, …; arrays broadcast) of each stream."""
    return _mix(stream + (np.atleast_1d(counter).astype(np.uint64) + np.uint64(1)) * _STEP)


def uniform(stream: UInts, counter: Any = 0) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1) with 53 random bits."""
    return (bits(stream, counter) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(limit: Any, stream: UInts, counter: Any = 0) -> Ints:
    """Whole numbers in [0, limit); limits under 2^40 have no bias that could be seen."""
    numbers: Ints = (uniform(stream, counter) * limit).astype(np.int64)
    return numbers


def heads(tosses: Ints, stream: UInts) -> Ints:
    """How many of `tosses` [B] fair coins show heads: exact binomial numbers, 64 coins to a word."""
    found = np.zeros_like(tosses)
    words_num = -(-int(tosses.max(initial=0)) // 64)
    for begin in range(0, words_num, _WORDS):
        words = np.arange(begin, min(begin + _WORDS, words_num))
        left = np.clip(tosses[:, None] - 64 * words, 0, 64)
        unused = np.minimum(64 - left, 63).astype(np.uint64)
        shown = np.bitwise_count(bits(stream[:, None], words) >> unused)
        found += np.where(left > 0, shown, 0).sum(axis=1, dtype=np.int64)
    return found


def shuffled(indices: Ints, count: int, stream: UInts) -> Ints:
    """Where a random permutation of range(count) sends `indices`, without storing the permutation.

    A Feistel network permutes the smallest power of four that holds `count`; what lands outside goes round
    again (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    half = np.uint64(max(1, -(-(count - 1).bit_length() // 2)))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = bits(stream, np.arange(_ROUNDS))
    result = indices.astype(np.uint64)
    outside = np.arange(result.size)
    while outside.size:
        left, right = result[outside] >> half, result[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        result[outside] = left << half | right
        outside = outside[result[outside] >= count]
    return result.astype(np.int64)
