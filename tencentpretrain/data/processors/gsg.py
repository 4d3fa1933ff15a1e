from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tencentpretrain.config.data import DataConfig
from tencentpretrain.data.processors.base import Arrays, Processor
from tencentpretrain.data.processors.chunks import ChunkRows, Chunks
from tencentpretrain.data.processors.plans import joined
from tencentpretrain.data.processors.seq2seq import FIELDS, compact, framed, seq2seq_rows
from tencentpretrain.data.random import Bools, Ints, Purpose, UInts, uniform
from tencentpretrain.registry import PROCESSORS

if TYPE_CHECKING:
    from tencentpretrain.data.store import TokenStore
    from tencentpretrain.tokenizers.base import Tokenizer

SHARE = 0.3  # of the sentences that are predicted


@PROCESSORS.register("gsg")
class GsgProcessor(Processor):
    """Gap sentences generation (Zhang et al. 2020, "PEGASUS", section 3.1): 30 % of the sentences of a text,
    one [MASK] each in the source, are the target, one after the other.

    Which ones says sentence_selection_strategy: the first, random ones, or the principal ones, those with the
    largest ROUGE-1 F1 of themselves and the rest of the text. Sentences that do not fit into tgt_seq_length
    stay in the source, unless none fits: then one is cut. Texts of one sentence make no sample.

    A text has at most seq_length tokens before sentences are taken out of it: so the source always holds what
    is left, though it fills 70 % of a row at best.
    """

    name = "gsg"
    layout = "sentences"
    readable = ("sentences",)
    provides = FIELDS
    roles = ("cls", "sep", "mask")

    def __init__(self, store: TokenStore, config: DataConfig, tokenizer: Tokenizer) -> None:
        super().__init__(store, config, tokenizer)
        self._chunks = Chunks(store, config.seq_length - 2)
        self._frame = tokenizer.require("cls"), tokenizer.require("sep")

    def plan(self, epoch: int) -> Ints:
        return joined(keys[self._several_sentences(keys)] for keys in self._chunks.plan())

    def _several_sentences(self, keys: Ints) -> Bools:
        first, last = (self.store.sentence_of_token(at) for at in (keys, self._chunks.ends(keys) - 1))
        return first < last

    def build(self, keys: Ints, epochs: Ints) -> Arrays:
        chunk, width = self._chunks.rows(keys), self.config.seq_length
        gaps = self._gaps(chunk, self.streams(keys, epochs, Purpose.ROW))
        hidden = np.take_along_axis(gaps, chunk.sentence, axis=1) & chunk.used
        seen = np.where(chunk.begins & hidden, self.tokenizer.require("mask"), chunk.tokens)
        source, used = compact(seen, chunk.used & (chunk.begins | ~hidden), self.pad_id)
        target, predicted = compact(chunk.tokens, hidden, self.pad_id)
        tgt_width = min(width, self.config.tgt_seq_length + 1)
        return seq2seq_rows(
            *framed(source, used.sum(axis=1), width, *self._frame),
            *framed(target, predicted.sum(axis=1), tgt_width, *self._frame),
            self.pad_id,
        )

    def _gaps(self, chunk: ChunkRows, streams: UInts) -> Bools:
        """Which sentences of each row are predicted, by their numbers, [B, W]."""
        sentences_num = chunk.begins.sum(axis=1)
        columns, room = np.arange(chunk.tokens.shape[1]), self.config.tgt_seq_length - 1
        lengths = _sums(chunk, chunk.used.astype(np.int64))
        score = {
            "lead": lambda: -np.broadcast_to(columns, lengths.shape).astype(np.float64),
            "random": lambda: uniform(streams[:, None], columns),
            "principal": lambda: _principal(chunk),
        }[self.config.sentence_selection_strategy]()
        # What is too long comes behind all others, and what is no sentence at the end.
        rank = np.where(lengths > 0, np.where(lengths <= room, -score, columns.size), np.inf)
        order = np.argsort(rank, axis=1, kind="stable")
        wanted = np.maximum(np.rint(SHARE * sentences_num), 1).astype(np.int64)
        total = np.cumsum(np.take_along_axis(lengths, order, axis=1), axis=1)
        taken = (columns < wanted[:, None]) & (total <= room)
        taken[:, 0] = True
        gaps = np.zeros(lengths.shape, bool)
        np.put_along_axis(gaps, order, taken, axis=1)
        return gaps


def _sums(chunk: ChunkRows, values: Ints) -> Ints:
    """Sums of the values [B, W] of each sentence's columns, by its number, [B, W]."""
    rows, width = values.shape
    place = (np.arange(rows)[:, None] * width + chunk.sentence)[chunk.used]
    return np.bincount(place, values[chunk.used], rows * width).reshape(rows, width).astype(np.int64)


def _principal(chunk: ChunkRows) -> npt.NDArray[np.float64]:
    """ROUGE-1 F1 of each sentence and the rest of its row, [B, W]."""
    rows, width = chunk.tokens.shape
    row, column = np.nonzero(chunk.used)
    ids = chunk.tokens[row, column]
    _, word, in_row = np.unique(row * (ids.max() + 1) + ids, return_inverse=True, return_counts=True)
    sentence = row * width + chunk.sentence[row, column]
    both, inside = np.unique(sentence * in_row.size + word, return_counts=True)
    sentence, word = np.divmod(both, in_row.size)
    common = np.minimum(inside, in_row[word] - inside)
    overlap = np.bincount(sentence, common, rows * width).reshape(rows, width)
    # F1 = 2 · overlap / (tokens of the sentence + tokens of the rest), and the two are the row's.
    found: npt.NDArray[np.float64] = 2 * overlap / chunk.used.sum(axis=1)[:, None]
    return found
