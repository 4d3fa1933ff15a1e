"""Masked language modelling: which tokens are hidden, and behind what.

15 % of a row's tokens are predicted; of these 80 % are replaced by [MASK], 10 % by a random token, 10 % are
left as they are (Devlin et al. 2019, section 3.1 and appendix A.1). Tokens are chosen one by one, as whole
words, or as spans of tokens or of whole words (Joshi et al. 2020, "SpanBERT", section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tencentpretrain.batch import IGNORED
from tencentpretrain.config.data import DataConfig
from tencentpretrain.data.random import Bools, InMask, Ints, UInts, below, bits, of_columns, uniform
from tencentpretrain.data.store import CONTINUES, unmarked
from tencentpretrain.errors import DataError

if TYPE_CHECKING:
    from tencentpretrain.tokenizers.base import Tokenizer

BUDGET = 0.15  # share of the tokens that are predicted
MASKED, REPLACED = 0.8, 0.1  # of these: shown as [MASK], as a random token; the others as they are


class Masking:
    """Hides tokens of rows.

    Args:
        budget: share of the tokens that are chosen.
        lengths: probabilities of spans of 1, 2 … units, up to a factor; default: what the configuration says.
        marked: ids of tokens that go on with a word have CONTINUES added (see `TokenStore.marking_words`);
            else the vocabulary says which do.

    Raises:
        DataError: the vocabulary has nothing but special tokens; when called: it has no [MASK].
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Tokenizer,
        budget: float = BUDGET,
        lengths: Sequence[float] = (),
        marked: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self.is_ordinary = np.ones(tokenizer.vocab_size, bool)  # by id: may be hidden
        self.is_ordinary[sorted(tokenizer.special_ids)] = False
        self._ordinary = np.flatnonzero(self.is_ordinary)
        if not self._ordinary.size:
            raise DataError("the vocabulary has nothing but special tokens.")
        self._whole_words, self._marked = config.whole_word_masking, marked
        self._budget = budget
        self._lengths = None
        if config.span_masking or len(lengths):
            law = np.array(lengths)
            if config.span_masking:  # a geometric law, cut off
                law = (1 - config.span_geo_prob) ** np.arange(config.span_max_length)
            self._lengths = np.cumsum(law) / law.sum()

    def __call__(self, input_ids: Ints, streams: UInts) -> tuple[Ints, Ints]:
        """Hide tokens of each row.

        Args:
            input_ids: [B, S]; special tokens and padding are never hidden.
            streams: [B], the randomness of each row.

        Returns:
            What the model sees and the labels, both [B, S]; labels are -100 where nothing is predicted.
        """
        chosen, spans = self._choose(input_ids, streams)
        input_ids = unmarked(input_ids)
        rows, columns = np.nonzero(chosen)
        labels = np.full_like(input_ids, IGNORED)
        labels[rows, columns] = input_ids[rows, columns]
        # SpanBERT shows all tokens of a span in the same way; BERT decides for each, also within a word.
        deciding = columns if self._lengths is None else _first_columns(spans)[rows, columns]
        kind = uniform(streams[rows], of_columns(InMask.KIND, deciding))
        token = below(self._ordinary.size, streams[rows], of_columns(InMask.TOKEN, columns))
        random = self._ordinary[token]
        shown = np.where(kind < MASKED, self._tokenizer.require("mask"), random)
        replaced = kind < MASKED + REPLACED
        seen = input_ids.copy()
        seen[rows[replaced], columns[replaced]] = shown[replaced]
        return seen, labels

    def choose(self, input_ids: Ints, streams: UInts) -> tuple[Bools, Bools]:
        """Which tokens are chosen, and at which of them a span begins; both [B, S]."""
        chosen, spans = self._choose(input_ids, streams)
        begins = chosen & spans
        begins[:, 1:] |= chosen[:, 1:] & ~chosen[:, :-1]  # after a word that did not fit into the budget
        return chosen, begins

    def _choose(self, input_ids: Ints, streams: UInts) -> tuple[Bools, Bools]:
        """Which tokens are chosen, and where spans begin, chosen or not."""
        ordinary = self.is_ordinary[unmarked(input_ids)]
        units = self._units(input_ids, ordinary)
        spans = units if self._lengths is None else self._spans(units, ordinary, streams)
        return _choose(units, spans, ordinary, streams, self._budget), spans

    def _units(self, input_ids: Ints, ordinary: Bools) -> Bools:
        """Where a token or a word begins that is hidden as one, [B, S]."""
        if not self._whole_words:
            return ordinary
        continues = input_ids >= CONTINUES if self._marked else self._tokenizer.continues_word[input_ids]
        begins = ordinary & ~continues
        begins[:, 1:] |= ordinary[:, 1:] & ~ordinary[:, :-1]
        begins[:, 0] |= ordinary[:, 0]
        return begins

    def _spans(self, units: Bools, ordinary: Bools, streams: UInts) -> Bools:
        """Where a span begins, [B, S]: each row is cut into spans of random numbers of units.

        A random choice among them hides spans of the paper's lengths, every unit with the same probability,
        and needs no second attempts, which drawing one place after another does.
        """
        assert self._lengths is not None
        rows, width = units.shape
        drawn = uniform(streams[:, None], of_columns(InMask.SPAN_LENGTH, np.arange(width)))
        lengths = 1 + np.searchsorted(self._lengths[:-1], drawn, side="right")
        borders = np.zeros((rows, width + 1), bool)
        borders[:, 0] = True
        np.put_along_axis(borders, np.minimum(np.cumsum(lengths, axis=1), width), True, axis=1)
        number = np.maximum(np.cumsum(units, axis=1) - 1, 0)  # of the unit a column belongs to
        begins: Bools = units & np.take_along_axis(borders, number, axis=1)
        # A special token ends a span.
        begins[:, 1:] |= units[:, 1:] & ~ordinary[:, :-1]
        begins[:, 0] |= units[:, 0]
        return begins


def _first_columns(begins: Bools) -> Ints:
    """The column in which the unit or span of each column begins, [B, S]."""
    return np.maximum.accumulate(np.where(begins, np.arange(begins.shape[1]), 0), axis=1)


def _choose(units: Bools, spans: Bools, ordinary: Bools, streams: UInts, share: float) -> Bools:
    """Take units in the random order of their spans as long as they fit into the budget, [B, S].

    A unit that does not fit is passed over, as in BERT; where none fits, the first one is taken.
    """
    budget = np.maximum(np.rint(share * ordinary.sum(axis=1)), 1).astype(np.int64)[:, None]
    width = units.shape[1]
    columns = np.arange(width)
    # Sorted by the random number of the span, then by column; what begins no unit comes last.
    low = np.uint64((1 << width.bit_length()) - 1)
    number = bits(streams[:, None], of_columns(InMask.SPAN_ORDER, columns)) | low
    number = np.take_along_axis(number, _first_columns(spans), axis=1) ^ low
    number = np.where(units, number | columns.astype(np.uint64), np.uint64(2**64 - 1))
    order = np.argsort(number, axis=1)

    unit = _first_columns(units)
    flat = unit + width * np.arange(len(units))[:, None]
    lengths = np.bincount(flat[ordinary], minlength=units.size).reshape(units.shape)
    lengths = np.take_along_axis(lengths, order, axis=1)

    taken = np.zeros_like(units)
    left = budget
    waiting = lengths > 0
    while True:
        # All that fit one after another; then those that are longer than what is left drop out.
        total = np.cumsum(np.where(waiting, lengths, 0), axis=1)
        fits = waiting & (total <= left)
        taken |= fits
        left = left - np.where(fits, lengths, 0).sum(axis=1, keepdims=True)
        waiting &= ~fits & (lengths <= left)
        if not waiting.any():
            break
    none = ~taken.any(axis=1) & (lengths[:, 0] > 0)
    taken[none, 0] = True

    chosen = np.zeros_like(units)
    np.put_along_axis(chosen, order, taken, axis=1)
    return np.take_along_axis(chosen, unit, axis=1) & ordinary
