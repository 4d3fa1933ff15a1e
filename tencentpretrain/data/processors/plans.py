"""The keys of the samples of an epoch, in little more memory than they take, 8 bytes each."""

from __future__ import annotations

import array
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from tencentpretrain.data.random import Ints

if TYPE_CHECKING:
    from tencentpretrain.data.store import TokenStore

CHUNK = 1 << 15  # sentences or documents planned at a time


def joined(parts: Iterable[Ints]) -> Ints:
    """One array of all parts. It grows in place, so that no part is held twice."""
    found = array.array("q")
    for part in parts:
        found.frombytes(part.view(np.uint8).data)
    return np.frombuffer(found, np.int64)


def sample_starts(store: TokenStore, following: Callable[[Ints], Ints]) -> Iterator[Ints]:
    """The sentences with which samples begin that follow each other without a gap, some at a time.

    Args:
        following: for consecutive sentences [n] where the next sample begins if one begins with each; at the
            latest where its document ends.
    """
    first = 0
    for chunk in range(0, store.sentences_num, CHUNK):
        sentences = np.arange(chunk, min(chunk + CHUNK, store.sentences_num))
        if first > sentences[-1]:
            continue
        low, high = store.document_of_sentence(np.array([first, sentences[-1]]))
        documents = store.document_starts(np.arange(low, high + 1))
        steps = following(sentences)
        found = chunk + _reached(np.maximum(documents, first) - chunk, steps - chunk)
        yield found
        first = steps[found[-1] - chunk]


def _reached(begins: Ints, steps: Ints) -> Ints:
    """The places under n that are reached from `begins` by going on from each place to `steps` [n], which is
    larger. Steps are doubled until those of all lengths lead nowhere new.
    """
    size = steps.size
    steps = np.append(np.minimum(steps, size), size)
    reached = np.zeros(size + 1, bool)
    reached[begins] = True
    while not reached[found := steps[reached]].all():
        reached[found] = True
        steps = steps[steps]
    return np.flatnonzero(reached[:size])
