from __future__ import annotations

from typing import TYPE_CHECKING

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
    provides = ("input_ids", "segment_ids", "lm_labels")
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

    def build(self, keys: Ints, epochs: Ints) -> Arrays:
        width = self.config.seq_length
        end = self._stream.length if self.config.full_sentences else self._stream.ends(keys)
        lengths = np.minimum(end - keys, width + 1)
        ids = self._stream.take(keys, lengths, width + 1)
        used = np.arange(width) < lengths[:, None] - 1
        return {
            "input_ids": np.where(used, ids[:, :-1], self.pad_id),
            "segment_ids": used.astype(np.int64),
            "lm_labels": np.where(used, ids[:, 1:], IGNORED),
        }
