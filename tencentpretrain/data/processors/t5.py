from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tencentpretrain.config.data import DataConfig
from tencentpretrain.data.masking import BUDGET
from tencentpretrain.data.processors.base import Arrays, Processor
from tencentpretrain.data.processors.mlm import PieceProcessor
from tencentpretrain.data.processors.seq2seq import FIELDS, compact, seq2seq_rows
from tencentpretrain.data.random import Bools, InT5, Ints, Purpose, UInts, below, bits, of_columns
from tencentpretrain.data.store import unmarked
from tencentpretrain.errors import DataError
from tencentpretrain.registry import PROCESSORS

if TYPE_CHECKING:
    from tencentpretrain.data.store import TokenStore
    from tencentpretrain.tokenizers.base import Tokenizer

MEAN_SPAN = 3  # tokens


@PROCESSORS.register("t5")
class T5Processor(PieceProcessor):
    """Span corruption (Raffel et al. 2020, section 3.1.4): [CLS] piece [SEP] with a sentinel for each hidden
    span; the decoder reads and predicts [CLS] sentinel span sentinel span … sentinel [SEP].

    15 % of a piece are hidden, in spans of 3 tokens on average; with span_masking or whole_word_masking they
    are chosen as for `mlm`. Spans for which there is no sentinel, or which would make the target longer than
    seq_length, stay visible.
    """

    name = "t5"
    provides = FIELDS
    roles = ("cls", "sep")
    masks_words = True
    lengths = Processor.lengths  # it cannot be packed: a target belongs to a row

    def __init__(self, store: TokenStore, config: DataConfig, tokenizer: Tokenizer) -> None:
        super().__init__(store, config, tokenizer)
        self._sentinels = np.array(tokenizer.sentinel_ids, np.int64)
        self._chosen_as_for_mlm = config.span_masking or config.whole_word_masking

    @classmethod
    def check(cls, config: DataConfig, tokenizer: Tokenizer) -> None:
        super().check(config, tokenizer)
        if len(tokenizer.sentinel_ids) < 2:
            raise DataError("the vocabulary has one sentinel token, but a target needs two or more.")

    def build(self, keys: Ints, epochs: Ints) -> Arrays:
        rows, lengths = self.pieces(keys)
        used = np.arange(rows.shape[1]) < lengths[:, None] + 2
        streams = self.streams(keys, epochs, Purpose.MASK)
        if self._chosen_as_for_mlm:
            hidden, begins = self._masking.choose(rows, streams)
            rows = unmarked(rows)
        else:
            ordinary = self._masking.is_ordinary[rows]
            counts = ordinary.sum(axis=1)
            place = np.arange(counts.max(initial=0)) < counts[:, None]
            hidden = np.zeros(rows.shape, bool)
            hidden[ordinary] = random_spans(counts, place.shape[1], streams)[place]
            begins = hidden & ~np.roll(hidden, 1, axis=1)
        number = np.cumsum(begins, axis=1)
        hidden &= number < self._sentinels.size  # the last one ends the target
        hidden &= number + np.cumsum(hidden, axis=1) <= rows.shape[1] - 2
        begins &= hidden
        sentinels = self._sentinels[np.minimum(number - 1, self._sentinels.size - 1)]
        source = compact(np.where(begins, sentinels, rows), used & (begins | ~hidden), self.pad_id)
        return seq2seq_rows(*source, *self._target(rows, hidden, begins), self.pad_id)

    def _target(self, rows: Ints, hidden: Bools, begins: Bools) -> tuple[Ints, Bools]:
        """[CLS] sentinel span sentinel span … sentinel [SEP], and which columns that takes."""
        before: Ints = np.cumsum(hidden, axis=1) - hidden  # hidden tokens of the row before a column
        number = np.cumsum(begins, axis=1)
        tokens_num, spans_num = hidden.sum(axis=1), begins.sum(axis=1)
        lengths = tokens_num + spans_num + 3
        target = np.full((len(rows), int(lengths.max())), self.pad_id, np.int64)
        row, column = np.nonzero(hidden)
        target[row, 1 + before[row, column] + number[row, column]] = rows[row, column]
        row, column = np.nonzero(begins)
        target[row, before[row, column] + number[row, column]] = self._sentinels[number[row, column] - 1]
        everywhere = np.arange(len(rows))
        target[:, 0] = self._cls
        target[everywhere, lengths - 2] = self._sentinels[spans_num]
        target[everywhere, lengths - 1] = self._sep
        return target, np.arange(target.shape[1]) < lengths[:, None]


def random_spans(lengths: Ints, width: int, streams: UInts) -> Bools:
    """Which of the first `lengths` [B] of `width` tokens are hidden: 15 % in spans of 3 on average, [B,
    width].

    Hidden and shown tokens are each cut into as many spans as there shall be, uniformly among all ways to do
    so, and the spans alternate, in a ring that is cut open anywhere (the published code begins with a shown
    span: then a short text always has its end hidden). A text of one token is hidden whole.
    """
    hidden_num = np.minimum(np.maximum(np.rint(lengths * BUDGET).astype(np.int64), 1), lengths)
    shown_num = lengths - hidden_num
    spans_num = np.clip(np.rint(hidden_num / MEAN_SPAN).astype(np.int64), 1, np.maximum(shown_num, 1))
    hidden_span = _composition(hidden_num, spans_num, width, streams, InT5.HIDDEN)
    shown_span = _composition(shown_num, spans_num, width, streams, InT5.SHOWN)
    columns = np.arange(width)
    row, token = np.nonzero(columns < hidden_num[:, None])
    # A hidden token stands behind the shown ones of its span's number and of those before.
    keys = shown_span + (width + 1) * np.arange(len(lengths))[:, None]
    real = columns < shown_num[:, None]
    ahead = np.searchsorted(keys[real], hidden_span[row, token] + (width + 1) * row, side="right")
    first = np.cumsum(shown_num) - shown_num
    chosen = np.zeros((len(lengths), width), bool)
    begin = below(lengths, streams, of_columns(InT5.BEGIN, np.array([0])))
    chosen[row, (token + ahead - first[row] + begin[row]) % lengths[row]] = True
    return chosen


def _composition(total: Ints, parts: Ints, width: int, streams: UInts, purpose: InT5) -> Ints:
    """The part, from 0, that each of `total` [B] things belongs to, [B, width]: all compositions alike."""
    columns = np.arange(width)
    # Cuts are the places with the smallest random numbers, of those behind a thing that is not the last.
    numbers = bits(streams[:, None], of_columns(purpose, columns)) >> np.uint64(1)
    possible = columns < total[:, None] - 1
    order = np.argsort(np.where(possible, numbers, np.uint64(2**63)), axis=1)
    cut = np.zeros((len(total), width), np.int64)
    np.put_along_axis(cut, order, (columns < parts[:, None] - 1).astype(np.int64), axis=1)
    return np.cumsum(cut, axis=1) - cut
