from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tencentpretrain.config.data import DataConfig
from tencentpretrain.data.processors.base import Arrays, Processor
from tencentpretrain.data.processors.stream import Stream
from tencentpretrain.data.random import Ints, Purpose
from tencentpretrain.registry import PROCESSORS

if TYPE_CHECKING:
    from tencentpretrain.data.store import TokenStore
    from tencentpretrain.tokenizers.base import Tokenizer


class PieceProcessor(Processor):
    """Rows [CLS] piece [SEP]: documents are cut into pieces; with full_sentences pieces run on across
    documents, [SEP] between them.
    """

    layout = "documents"
    readable = ("documents", "sentences", "labelled")

    def __init__(self, store: TokenStore, config: DataConfig, tokenizer: Tokenizer) -> None:
        super().__init__(store, config, tokenizer)
        self._cls, self._sep = tokenizer.require("cls"), tokenizer.require("sep")
        self._stream = Stream(self.store, after=self._sep if config.full_sentences else None)
        self._room = config.seq_length - 2

    def plan(self, epoch: int) -> Ints:
        if self.config.full_sentences:
            return np.arange(0, self._stream.length - 1, self._room)  # the last [SEP] separates nothing
        return self._stream.windows(self._room, remainder=0)

    def lengths(self, keys: Ints, epochs: Ints) -> Ints:
        return self._bounds(keys)[1] + 2

    def _bounds(self, keys: Ints) -> tuple[Ints, Ints]:
        """Where pieces start, and their lengths."""
        starts, ends = keys, np.minimum(keys + self._room, self._stream.length)
        if self.config.full_sentences:
            # A separator at the edge of a piece has nothing to separate.
            starts = starts + (self._stream.ends(starts) == starts + 1)
            ends = ends - (self._stream.ends(ends - 1) == ends)
        else:
            ends = np.minimum(ends, self._stream.ends(keys))
        return starts, ends - starts

    def pieces(self, keys: Ints) -> tuple[Ints, Ints]:
        """Rows [CLS] piece [SEP], [B, seq_length], and the lengths of the pieces, [B]."""
        starts, lengths = self._bounds(keys)
        rows = np.full((keys.size, self.config.seq_length), self.pad_id, np.int64)
        rows[:, 1:-1] = np.where(
            np.arange(self._room) < lengths[:, None],
            self._stream.take(starts, lengths, self._room),
            self.pad_id,
        )
        rows[:, 0] = self._cls
        rows[np.arange(keys.size), lengths + 1] = self._sep
        return rows, lengths


@PROCESSORS.register("mlm")
class MlmProcessor(PieceProcessor):
    """Hidden tokens of single texts (Liu et al. 2019, "RoBERTa", section 4.2): [CLS] piece [SEP]."""

    name = "mlm"
    provides = ("input_ids", "segment_ids", "mlm_labels")
    roles = ("cls", "sep", "mask")
    masks_words = True

    def build(self, keys: Ints, epochs: Ints) -> Arrays:
        rows, lengths = self.pieces(keys)
        seen, labels = self._masking(rows, self.streams(keys, epochs, Purpose.MASK))
        segment_ids = (np.arange(rows.shape[1]) < lengths[:, None] + 2).astype(np.int64)
        return {"input_ids": seen, "segment_ids": segment_ids, "mlm_labels": labels}
