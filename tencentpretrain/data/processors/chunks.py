"""Runs of whole sentences that fill a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tencentpretrain.data.processors.base import first_at_least
from tencentpretrain.data.processors.plans import sample_starts
from tencentpretrain.data.random import Bools, Ints

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tencentpretrain.data.store import TokenStore


class ChunkRows(NamedTuple):
    """Chunks as rows, W columns wide.

    Attributes:
        tokens: [B, W], 0 behind the end.
        used: [B, W], the columns with tokens.
        sentence: [B, W], the number of a column's sentence in its row, from 0.
        begins: [B, W], where a sentence begins.
    """

    tokens: Ints
    used: Bools
    sentence: Ints
    begins: Bools


class Chunks:
    """A corpus cut into chunks of at most `room` tokens: as many whole sentences of a document as fit.

    A sentence longer than that is cut; every token is in exactly one chunk. A chunk's key is the position of
    its first token.
    """

    def __init__(self, store: TokenStore, room: int) -> None:
        self.store = store
        self.room = room

    def plan(self) -> Iterator[Ints]:
        """The keys of all chunks, some at a time."""
        for first in sample_starts(self.store, self._following):
            starts = self.store.sentence_starts(first)
            counts = (self._rests(first) - starts) // self.room + 1
            number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            yield np.repeat(starts, counts) + self.room * number

    def _following(self, sentences: Ints) -> Ints:
        """The sentence with which the next chunk begins if one begins with each of these."""
        return self.store.sentence_of_token(self.ends(self._rests(sentences)) - 1) + 1

    def _rests(self, sentences: Ints) -> Ints:
        """Where the last pieces of sentences begin; that of one that is too long may go on with the next."""
        starts, ends = self.store.sentence_starts(sentences), self.store.sentence_ends(sentences)
        return starts + self.room * ((ends - starts - 1) // self.room)

    def ends(self, keys: Ints) -> Ints:
        """Positions after the last tokens of chunks."""
        store, limit = self.store, keys + self.room
        sentence = store.sentence_of_token(keys)
        last = store.document_ends(store.document_of_sentence(sentence))
        beyond = first_at_least(store.sentence_ends, sentence, last, limit + 1)
        return np.where(beyond == sentence, limit, store.sentence_ends(np.maximum(beyond - 1, 0)))

    def rows(self, keys: Ints) -> ChunkRows:
        """The chunks of keys [B]."""
        store, ends = self.store, self.ends(keys)
        columns = np.arange(self.room)
        used = columns < (ends - keys)[:, None]
        tokens = np.zeros(used.shape, np.int64)
        tokens[used] = store.tokens_at((keys[:, None] + columns)[used])
        first = store.sentence_of_token(keys)
        counts = store.sentence_of_token(ends - 1) - first  # sentences after the first one
        row = np.repeat(np.arange(keys.size), counts)
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        begins = np.zeros(used.shape, bool)
        begins[:, 0] = True
        begins[row, store.sentence_starts(first[row] + 1 + number) - keys[row]] = True
        return ChunkRows(tokens, used, np.cumsum(begins, axis=1) - 1, begins)
