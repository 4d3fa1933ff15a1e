from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from tencentpretrain.batch import IGNORED
from tencentpretrain.data.masking import Masking
from tencentpretrain.data.processors.bert import BertProcessor, Draft
from tencentpretrain.data.random import InRow, Ints, Purpose, below, uniform
from tencentpretrain.registry import PROCESSORS

NGRAMS = (1, 1 / 2, 1 / 3)  # of one, two, three words


@PROCESSORS.register("albert")
class AlbertProcessor(BertProcessor):
    """Hidden n-grams and sentence order prediction (Lan et al. 2020, section 3.1).

    Two consecutive segments, in half of the samples in the wrong order; a single sentence is cut in two.
    Spans of up to three tokens (words with whole_word_masking) are hidden, with probabilities inverse to
    their length; with span_masking they are chosen as for `mlm`.
    """

    name = "albert"

    @classmethod
    def problem(cls, documents_num: int, sentences_num: int) -> str:
        return ""  # every document will do

    @functools.cached_property
    def _masking(self) -> Masking:
        return Masking(self.config, self.tokenizer, lengths=NGRAMS, marked=self.store.marks_words)

    def _draft(self, first: Ints, epochs: Ints, sentence_ends: Callable[[Ints], Ints]) -> Draft:
        draft = super()._draft(first, epochs, sentence_ends)
        return draft._replace(random=np.zeros_like(draft.random))

    def _segments(self, keys: Ints, epochs: Ints) -> tuple[tuple[Ints, Ints], tuple[Ints, Ints], Ints]:
        store, stream = self.store, self.streams(keys, epochs, Purpose.ROW)
        draft = self._draft(keys, epochs, store.sentence_ends)
        start, end = store.sentence_starts(keys), store.sentence_ends(draft.end - 1)
        inside = start + 1 + below(np.maximum(end - start - 1, 0), stream, InRow.CUT)
        border = np.where(draft.end == keys + 1, inside, store.sentence_ends(draft.split - 1))
        swapped = (uniform(stream, InRow.SWAP) < 0.5) & (border < end)
        segments = ((start, border - start), (border, end - border))
        (first, a), (second, b) = (
            (np.where(swapped, other[0], one[0]), np.where(swapped, other[1], one[1]))
            for one, other in (segments, segments[::-1])
        )
        # A text of one token has no order.
        return (first, second), (a, b), np.where(border < end, swapped.astype(np.int64), IGNORED)
