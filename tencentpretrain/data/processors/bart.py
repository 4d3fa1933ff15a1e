from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from tencentpretrain.config.data import DataConfig
from tencentpretrain.data.masking import Masking
from tencentpretrain.data.processors.base import Arrays, Processor
from tencentpretrain.data.processors.chunks import ChunkRows, Chunks
from tencentpretrain.data.processors.plans import joined
from tencentpretrain.data.processors.seq2seq import FIELDS, compact, framed, seq2seq_rows
from tencentpretrain.data.random import Bools, InMask, Ints, Purpose, UInts, below, bits, of_columns, uniform
from tencentpretrain.data.store import unmarked
from tencentpretrain.registry import PROCESSORS

if TYPE_CHECKING:
    from tencentpretrain.data.store import TokenStore
    from tencentpretrain.tokenizers.base import Tokenizer

BUDGET = 0.3  # share of the tokens that are hidden
MEAN_SPAN = 3  # of the Poisson law of the lengths of spans
POISSON = [math.exp(-MEAN_SPAN) * MEAN_SPAN**length / math.factorial(length) for length in range(11)]


@PROCESSORS.register("bart")
class BartProcessor(Processor):
    """Sentences in a random order, and text infilling (Lewis et al. 2020, section 2.2): the source is
    [CLS] text [SEP] with one [MASK] for every hidden span, the target the text as it was.

    30 % of the tokens are hidden in spans of lengths from a Poisson law with mean 3; a span of no token is an
    additional [MASK]. With span_masking lengths are geometric. A sentence longer than a row is cut.
    """

    name = "bart"
    layout = "sentences"
    readable = ("sentences", "documents")
    provides = FIELDS
    roles = ("cls", "sep", "mask")
    masks_words = True

    def __init__(self, store: TokenStore, config: DataConfig, tokenizer: Tokenizer) -> None:
        super().__init__(store, config, tokenizer)
        self._chunks = Chunks(self.store, config.seq_length - 2)
        self._frame = tokenizer.require("cls"), tokenizer.require("sep")
        self._mask_id = tokenizer.require("mask")
        # Spans of no token, to each other one.
        self._empty = 0 if config.span_masking else POISSON[0] / (1 - POISSON[0])

    @functools.cached_property
    def _masking(self) -> Masking:
        return Masking(self.config, self.tokenizer, BUDGET, POISSON[1:], self.store.marks_words)

    def plan(self, epoch: int) -> Ints:
        return joined(self._chunks.plan())

    def build(self, keys: Ints, epochs: Ints) -> Arrays:
        chunk, width = self._chunks.rows(keys), self.config.seq_length
        lengths = chunk.used.sum(axis=1)
        target = framed(unmarked(chunk.tokens), lengths, width, *self._frame)
        # The rest of a word that was cut begins one: it must not join the sentence it comes to stand behind.
        chunk = chunk._replace(tokens=np.where(chunk.begins, unmarked(chunk.tokens), chunk.tokens))
        shuffled = _permuted(chunk, self.streams(keys, epochs, Purpose.ROW))
        source, used = framed(shuffled, lengths, width, *self._frame)
        return seq2seq_rows(
            *self._infilled(source, used, self.streams(keys, epochs, Purpose.MASK)), *target, self.pad_id
        )

    def _infilled(self, rows: Ints, used: Bools, streams: UInts) -> tuple[Ints, Bools]:
        hidden, begins = self._masking.choose(np.where(used, rows, self.pad_id), streams)
        seen = np.where(begins, self._mask_id, unmarked(rows))
        # Before each column there is room for one more [MASK].
        added = np.zeros(rows.shape, bool)
        row, column = np.nonzero(begins)
        stream = streams[row]
        empty = uniform(stream, of_columns(InMask.EMPTY_SPAN, column)) < self._empty
        place = 1 + below(used.sum(axis=1)[row] - 1, stream, of_columns(InMask.EMPTY_PLACE, column))
        added[row[empty], place[empty]] = True
        kept = used & (begins | ~hidden)
        added &= np.cumsum(added, axis=1) <= rows.shape[1] - kept.sum(axis=1, keepdims=True)
        both = np.stack([np.full_like(rows, self._mask_id), seen], axis=2).reshape(len(rows), -1)
        kept = np.stack([added, kept], axis=2).reshape(len(rows), -1)
        source, source_used = compact(both, kept, self.pad_id)
        return source[:, : rows.shape[1]], source_used[:, : rows.shape[1]]


def _permuted(chunk: ChunkRows, streams: UInts) -> Ints:
    """The tokens with the sentences of each row in a random order."""
    width = chunk.tokens.shape[1]
    low = np.uint64((1 << width.bit_length()) - 1)
    number = bits(streams[:, None], chunk.sentence) >> np.uint64(1) | low
    number = np.where(chunk.used, number, np.uint64(2**64 - 1)) ^ low | np.arange(width).astype(np.uint64)
    return np.take_along_axis(chunk.tokens, np.argsort(number, axis=1), axis=1)
