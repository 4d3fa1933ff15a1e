"""Documents one after another as a single sequence of tokens, with separators between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tencentpretrain.data.processors.base import first_at_least
from tencentpretrain.data.processors.plans import CHUNK, joined
from tencentpretrain.data.random import Ints

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tencentpretrain.data.store import TokenStore

_STRIDE = 32  # of every so many documents the start is kept in memory: a quarter of a byte a document


class Stream:
    """The sequence `before` document `after` `before` document `after` …, never written out.

    Args:
        store: the documents.
        before: id put before each document, or None.
        after: id put after each document, or None.
    """

    def __init__(self, store: TokenStore, before: int | None = None, after: int | None = None) -> None:
        self._store = store
        self._before = before
        self._after = after
        self._added = (before is not None) + (after is not None)  # to each document
        self.length = store.tokens_num + self._added * store.documents_num
        self._landmarks = self.starts(np.arange(0, store.documents_num, _STRIDE))

    def starts(self, documents: Ints) -> Ints:
        """Where the documents begin; `documents_num` stands for the end of the last one."""
        inside = np.minimum(documents, self._store.documents_num - 1)
        tokens = self._store.sentence_starts(self._store.document_starts(inside))
        tokens = np.where(documents == inside, tokens, self._store.tokens_num)
        return tokens + self._added * documents

    def documents(self, positions: Ints) -> Ints:
        """The document each position belongs to."""
        low = (np.searchsorted(self._landmarks, positions, side="right") - 1) * _STRIDE
        high = np.minimum(low + _STRIDE, self._store.documents_num)
        return first_at_least(self.starts, low, high, positions + 1) - 1

    def windows(self, step: int, remainder: int) -> Ints:
        """Where windows begin: every `step` in each document while more than `remainder` tokens are left."""
        return joined(self._windows(step, remainder))

    def _windows(self, step: int, remainder: int) -> Iterator[Ints]:
        for chunk in range(0, self._store.documents_num, CHUNK):
            starts = self.starts(np.arange(chunk, min(chunk + CHUNK, self._store.documents_num) + 1))
            counts = -(-(np.diff(starts) - remainder) // step)
            before = np.cumsum(counts) - counts
            numbers = np.arange(counts.sum()) - np.repeat(before, counts)
            yield np.repeat(starts[:-1], counts) + step * numbers

    def ends(self, positions: Ints) -> Ints:
        """Where the document of each position [B] ends."""
        return self.starts(self.documents(positions) + 1)

    def take(self, positions: Ints, lengths: Ints, width: int) -> Ints:
        """The ids from each position on, [B, width]; what lies beyond `lengths` [B] is 0."""
        first, last = self.documents(np.stack([positions, positions + lengths - 1]))
        following = np.arange(int((last - first).max(initial=0)) + 2)
        documents = np.minimum(first[:, None] + following, last[:, None] + 1)
        borders = self.starts(documents) - positions[:, None]  # the columns in which documents begin
        begins = np.zeros((positions.size, width + 2), bool)  # the last column is for what lies outside
        np.put_along_axis(begins, np.clip(borders, 0, width + 1), True, axis=1)
        begins[:, 0] = borders[:, 0] == 0

        columns = np.arange(width)
        inside = columns < lengths[:, None]
        ids = np.zeros(inside.shape, np.int64)
        if self._before is not None:
            ids[inside & begins[:, :width]] = self._before
            inside &= ~begins[:, :width]
        if self._after is not None:
            ids[inside & begins[:, 1 : width + 1]] = self._after
            inside &= ~begins[:, 1 : width + 1]
        document = first[:, None] + np.cumsum(begins[:, :width], axis=1) - begins[:, :1]
        tokens = positions[:, None] + columns - self._added * document - (self._before is not None)
        ids[inside] = self._store.tokens_at(tokens[inside])
        return ids
