from __future__ import annotations

import numpy as np

from tencentpretrain.data.processors.base import Arrays, Processor, fit_pair, pair_rows
from tencentpretrain.data.random import Ints
from tencentpretrain.registry import PROCESSORS


@PROCESSORS.register("cls")
class ClsProcessor(Processor):
    """The class of a text or of a pair of texts: [CLS] a [SEP], [CLS] a [SEP] b [SEP]; cut at the end."""

    name = "cls"
    layout = "labelled"
    readable = ("labelled",)
    provides = ("input_ids", "segment_ids", "cls_labels")
    roles = ("cls", "sep")

    def plan(self, epoch: int) -> Ints:
        return np.arange(self.store.documents_num)

    def build(self, keys: Ints, epochs: Ints) -> Arrays:
        store, width = self.store, self.config.seq_length
        texts = store.document_starts(keys)
        starts, border = store.sentence_starts(texts), store.sentence_ends(texts)
        end = store.sentence_ends(store.document_ends(keys) - 1)
        first, second = border - starts, end - border
        fitted = fit_pair(first, second, width - 3)
        lengths = np.where(second > 0, fitted[0], np.minimum(first, width - 2)), fitted[1]
        input_ids, segment_ids = pair_rows(self, (starts, border), lengths)
        return {"input_ids": input_ids, "segment_ids": segment_ids, "cls_labels": store.labels_at(keys)}
