from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tencentpretrain.config.data import DataConfig
from tencentpretrain.data.processors.base import (
    Arrays,
    Processor,
    first_at_least,
    fit_pair,
    pair_rows,
)
from tencentpretrain.data.processors.plans import joined, sample_starts
from tencentpretrain.data.random import Bools, InRow, Ints, Purpose, UInts, below, heads, streams, uniform
from tencentpretrain.errors import DataError
from tencentpretrain.registry import PROCESSORS

if TYPE_CHECKING:
    from tencentpretrain.data.store import TokenStore
    from tencentpretrain.tokenizers.base import Tokenizer


class Draft(NamedTuple):
    """What a sample that begins with a given sentence consists of; each [B]."""

    target: Ints  # tokens it should have
    split: Ints  # sentence that ends its first segment (exclusive)
    end: Ints  # sentence that ends its text (exclusive)
    random: Bools  # whether its second segment comes from another document


@PROCESSORS.register("bert")
class BertProcessor(Processor):
    """Hidden tokens and next sentence prediction (Devlin et al. 2019, section 3.1, appendix A.2).

    Sentences of a document are gathered until a sample is full, and split in two at random; in half of the
    samples the second segment is replaced by text from a random document. A sample's key is its first
    sentence: all it consists of is drawn for that sentence, and with it where the next sample begins. That is
    why short_seq_prob is the probability of a short sample; the published code draws a length once for all
    samples of a document.
    """

    name = "bert"
    layout = "sentences"
    readable = ("sentences", "documents")  # of a store of documents every sentence is alone; see below
    provides = ("input_ids", "segment_ids", "mlm_labels", "sp_labels")
    roles = ("cls", "sep", "mask")
    masks_words = True
    plans_differ = True
    shortest = 5

    def __init__(self, store: TokenStore, config: DataConfig, tokenizer: Tokenizer) -> None:
        super().__init__(store, config, tokenizer)
        if problem := self.problem(store.documents_num, store.sentences_num):
            raise DataError(f"{store.path}: {problem}")
        self._room = config.seq_length - 3  # [CLS] a [SEP] b [SEP]

    @classmethod
    def problem(cls, documents_num: int, sentences_num: int) -> str:
        if documents_num == sentences_num:
            return (
                "no document has two sentences, which next sentence prediction needs; data processor 'bert' "
                "expects a corpus with a sentence a line and empty lines between documents (for a document a "
                "line there is 'mlm')."
            )
        if documents_num == 1:
            return (
                f"no empty line separates documents, so there is one document of {sentences_num:,} "
                "sentences, and none to take random second segments from; put an empty line after each "
                "document, or choose a --data_processor that takes a document a line (mlm, lm)."
            )
        return ""

    def plan(self, epoch: int) -> Ints:
        return joined(sample_starts(self.store, lambda sentences: self._following(sentences, epoch)))

    def _following(self, sentences: Ints, epoch: int) -> Ints:
        """For consecutive sentences where the next sample begins if one begins with each."""
        first, last = sentences[0], min(sentences[-1] + self._room, self.store.sentences_num - 1)
        # A copy of the offsets a search may meet is read several times as fast as the store.
        ends = self.store.sentence_ends(np.arange(first, last + 1))
        draft = self._draft(sentences, np.full_like(sentences, epoch), lambda ids: ends[ids - first])
        # What a random second segment replaced is used by the next sample.
        return np.where(draft.random, draft.split, draft.end)

    def lengths(self, keys: Ints, epochs: Ints) -> Ints:
        first, second = fit_pair(*self._segments(keys, epochs)[1], self._room)
        return first + 2 + np.where(second > 0, second + 1, 0)

    def build(self, keys: Ints, epochs: Ints) -> Arrays:
        starts, lengths, labels = self._segments(keys, epochs)
        return self._masked_pair(keys, epochs, starts, lengths) | {"sp_labels": labels}

    def _segments(self, keys: Ints, epochs: Ints) -> tuple[tuple[Ints, Ints], tuple[Ints, Ints], Ints]:
        """Where the two segments start, their lengths before they are made to fit, and the labels of sp."""
        store = self.store
        draft = self._draft(keys, epochs, store.sentence_ends)
        stream = self.streams(keys, epochs, Purpose.ROW)
        first = store.sentence_starts(keys)
        first_length = store.sentence_ends(draft.split - 1) - first
        second, second_end = self._random_text(keys, draft.target - first_length, stream)
        second = np.where(draft.random, second, first + first_length)
        second_end = np.where(draft.random, second_end, store.sentence_ends(draft.end - 1))
        return (first, second), (first_length, second_end - second), draft.random.astype(np.int64)

    def _masked_pair(
        self, keys: Ints, epochs: Ints, starts: tuple[Ints, Ints], lengths: tuple[Ints, Ints]
    ) -> Arrays:
        """Rows of two segments, given by where they start and their lengths in tokens, with hidden tokens."""
        stream = self.streams(keys, epochs, Purpose.ROW)
        # What is too much goes from the longer segment, token by token, from its front or its back.
        fitted = fit_pair(*lengths, self._room)
        first = starts[0] + heads(lengths[0] - fitted[0], streams(stream, InRow.FRONT_A))
        second = starts[1] + heads(lengths[1] - fitted[1], streams(stream, InRow.FRONT_B))
        input_ids, segment_ids = pair_rows(self, (first, second), fitted)
        seen, labels = self._masking(input_ids, self.streams(keys, epochs, Purpose.MASK))
        return {"input_ids": seen, "segment_ids": segment_ids, "mlm_labels": labels}

    def _draft(self, first: Ints, epochs: Ints, sentence_ends: Callable[[Ints], Ints]) -> Draft:
        """What the samples consist of that begin with the sentences `first` [B]."""
        store, stream = self.store, self.streams(first, epochs, Purpose.ROW)
        short = uniform(stream, InRow.SHORT) < self.config.short_seq_prob
        target = np.where(short, 2 + below(self._room - 1, stream, InRow.LENGTH), self._room)
        document_end = store.document_ends(store.document_of_sentence(first))
        # Sentences have at least one token, so `target` of them are enough.
        high = np.minimum(first + target, document_end) - 1
        end = first_at_least(sentence_ends, first, high, store.sentence_starts(first) + target) + 1
        split = first + 1 + below(np.maximum(end - first - 1, 1), stream, InRow.SPLIT)
        random = (end == first + 1) | (uniform(stream, InRow.PAIR) < 0.5)
        return Draft(target, split, end, random)

    def _random_text(self, keys: Ints, wanted: Ints, stream: UInts) -> tuple[Ints, Ints]:
        """Start and end of `wanted` [B] tokens or more, in whole sentences, from a random other document."""
        store = self.store
        document = below(store.documents_num - 1, stream, InRow.DOCUMENT)
        document += document >= store.document_of_sentence(keys)
        low, high = store.document_starts(document), store.document_ends(document)
        sentence = low + below(high - low, stream, InRow.SENTENCE)
        start = store.sentence_starts(sentence)
        last = first_at_least(store.sentence_ends, sentence, high - 1, start + wanted)
        return start, store.sentence_ends(last)
