from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tencentpretrain.config.data import DataConfig
from tencentpretrain.data.masking import Masking
from tencentpretrain.data.processors.base import MASK, Arrays, Processor
from tencentpretrain.data.processors.stream import Stream
from tencentpretrain.data.random import Ints
from tencentpretrain.registry import PROCESSORS

if TYPE_CHECKING:
    from tencentpretrain.data.store import TokenStore
    from tencentpretrain.tokenizers.base import Tokenizer


@PROCESSORS.register("mlm")
class MlmProcessor(Processor):
    """Hidden tokens of single texts (Liu et al. 2019, "RoBERTa", section 4.2): [CLS] piece [SEP].

    Documents are cut into pieces; with full_sentences pieces run on across documents, [SEP] between them.
    """

    name = "mlm"
    layout = "documents"
    readable = ("documents", "sentences", "labelled")
    provides = ("input_ids", "segment_ids", "mlm_labels")
    roles = ("cls", "sep", "mask")

    def __init__(self, store: TokenStore, config: DataConfig, tokenizer: Tokenizer) -> None:
        super().__init__(store, config, tokenizer)
        self._cls, self._sep = tokenizer.require("cls"), tokenizer.require("sep")
        self._masking = Masking(config, tokenizer)
        self._stream = Stream(store, after=self._sep if config.full_sentences else None)
        self._room = config.seq_length - 2

    def plan(self, epoch: int) -> Ints:
        if self.config.full_sentences:
            return np.arange(0, self._stream.length - 1, self._room)  # the last [SEP] separates nothing
        return self._stream.windows(self._room, remainder=0)

    def build(self, keys: Ints, epochs: Ints) -> Arrays:
        starts, ends = keys, np.minimum(keys + self._room, self._stream.length)
        if self.config.full_sentences:
            # A separator at the edge of a piece has nothing to separate.
            starts = starts + (self._stream.ends(starts) == starts + 1)
            ends = ends - (self._stream.ends(ends - 1) == ends)
        else:
            ends = np.minimum(ends, self._stream.ends(keys))
        lengths = ends - starts
        width = self.config.seq_length
        columns, lengths_ = np.arange(width), lengths[:, None]
        input_ids = np.full((keys.size, width), self.pad_id, np.int64)
        input_ids[:, 1:-1] = np.where(
            columns[: self._room] < lengths_, self._stream.take(starts, lengths, self._room), self.pad_id
        )
        input_ids[:, 0] = self._cls
        input_ids[np.arange(keys.size), lengths + 1] = self._sep
        seen, labels = self._masking(input_ids, self.streams(keys, epochs, MASK))
        segment_ids = (columns < lengths_ + 2).astype(np.int64)
        return {"input_ids": seen, "segment_ids": segment_ids, "mlm_labels": labels}
