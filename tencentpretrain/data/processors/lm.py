from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tencentpretrain.batch import IGNORED
from tencentpretrain.config.data import DataConfig
from tencentpretrain.data.processors.base import Arrays, Processor
from tencentpretrain.data.processors.stream import Stream
from tencentpretrain.data.random import Ints
from tencentpretrain.registry import PROCESSORS

if TYPE_CHECKING:
    from tencentpretrain.data.store import TokenStore
    from tencentpretrain.tokenizers.base import Tokenizer


@PROCESSORS.register("lm")
class LmProcessor(Processor):
    """Every token from those before it (Radford et al. 2018, 2019): [CLS] document [SEP], cut into windows.

    A window's last label is the next one's first input, so every token is predicted exactly once. With
    full_sentences windows run on across documents; where [CLS] and [SEP] are one token, one of it separates
    them.
    """

    name = "lm"
    layout = "documents"
    readable = ("documents", "sentences", "labelled")
    provides: ClassVar[tuple[str, ...]] = ("input_ids", "segment_ids", "lm_labels")
    roles = ("cls", "sep")

    def __init__(self, store: TokenStore, config: DataConfig, tokenizer: Tokenizer) -> None:
        super().__init__(store, config, tokenizer)
        before, after = tokenizer.require("cls"), tokenizer.require("sep")
        joined = config.full_sentences and before == after
        self._stream = Stream(store, before, None if joined else after)

    def plan(self, epoch: int) -> Ints:
        if self.config.full_sentences:
            return np.arange(0, self._stream.length - 1, self.config.seq_length)
        return self._stream.windows(self.config.seq_length, remainder=1)

    def lengths(self, keys: Ints, epochs: Ints) -> Ints:
        return self._lengths(keys, self.config.seq_length + 1) - 1

    def _lengths(self, keys: Ints, width: int) -> Ints:
        """Tokens from keys [B] to the end, at most `width`."""
        end = self._stream.length if self.config.full_sentences else self._stream.ends(keys)
        return np.minimum(end - keys, width)

    def build(self, keys: Ints, epochs: Ints) -> Arrays:
        width = self.config.seq_length
        lengths = self._lengths(keys, width + 1)
        ids = self._stream.take(keys, lengths, width + 1)
        used = np.arange(width) < lengths[:, None] - 1
        return {
            "input_ids": np.where(used, ids[:, :-1], self.pad_id),
            "segment_ids": used.astype(np.int64),
            "lm_labels": np.where(used, ids[:, 1:], IGNORED),
        }


@PROCESSORS.register("llm_pretrain")
class LlmPretrainProcessor(LmProcessor):
    """The same as `lm`, of a corpus of JSON lines; documents are always joined so that samples are full."""

    name = "llm_pretrain"
    json_corpus = True

    def __init__(self, store: TokenStore, config: DataConfig, tokenizer: Tokenizer) -> None:
        super().__init__(store, dataclasses.replace(config, full_sentences=True), tokenizer)


@PROCESSORS.register("bilm")
class BilmProcessor(LmProcessor):
    """Every token from those before it and from those behind it (Peters et al. 2018, section 3.1): pieces of
    a document, whose neighbours are [CLS] and [SEP]; with full_sentences pieces run on across documents,
    [SEP] between them.
    """

    name = "bilm"
    provides = ("input_ids", "segment_ids", "bilm_labels")
    lengths = Processor.lengths  # it cannot be packed: no encoder of two directions keeps documents apart

    def __init__(self, store: TokenStore, config: DataConfig, tokenizer: Tokenizer) -> None:
        super().__init__(store, config, tokenizer)
        self._ends = tokenizer.require("cls"), tokenizer.require("sep")
        self._stream = Stream(store, after=self._ends[1] if config.full_sentences else None)

    def plan(self, epoch: int) -> Ints:
        if self.config.full_sentences:
            return np.arange(0, self._stream.length - 1, self.config.seq_length)
        return self._stream.windows(self.config.seq_length, remainder=0)

    def build(self, keys: Ints, epochs: Ints) -> Arrays:
        width = self.config.seq_length
        # The last [SEP] separates nothing.
        end = self._stream.length - 1 if self.config.full_sentences else self._stream.ends(keys)
        lengths = np.minimum(end - keys, width)
        ids = self._stream.take(keys, lengths, width)
        columns, rows = np.arange(width), np.arange(keys.size)
        used = columns < lengths[:, None]
        labels = np.stack([np.roll(ids, -1, axis=1), np.roll(ids, 1, axis=1)], axis=2)
        labels[rows, lengths - 1, 0] = self._ends[1]
        labels[:, 0, 1] = self._ends[0]
        return {
            "input_ids": np.where(used, ids, self.pad_id),
            "segment_ids": used.astype(np.int64),
            "bilm_labels": np.where(used[:, :, None], labels, IGNORED),
        }
