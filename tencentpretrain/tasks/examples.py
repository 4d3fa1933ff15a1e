"""Rows of a downstream file as arrays, and the batches they make."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tencentpretrain.batch import Batch
from tencentpretrain.data.processors.base import fit_pair
from tencentpretrain.data.random import shuffled, streams
from tencentpretrain.tokenizers.base import Tokenizer

Rows = NDArray[np.int64]

WINDOW_BATCHES = (
    50  # batches are of rows sorted by length inside a random window: little padding, still random
)
GPU_MULTIPLE = 8  # of tokens in a row: what tensor cores like; a CPU is fastest with no padding at all


class Examples(ABC):
    """What one file holds, ready for the model.

    Attributes:
        lengths: [n], tokens (or what else costs time) of each example; batches group similar ones.
    """

    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.lengths)

    @abstractmethod
    def batch(self, rows: Rows) -> Batch:
        """The examples with these indices, padded to the longest of them."""


class TextExamples(Examples):
    """[CLS] a [SEP], or [CLS] a [SEP] b [SEP], cut to `seq_length` tokens, the longer text of a pair first.

    Args:
        fields: further batch fields, one entry per example.

    Raises:
        DataError: the vocabulary has no [CLS] or [SEP].
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        texts: Sequence[str],
        pairs: Sequence[str] | None,
        seq_length: int,
        fields: dict[str, Tensor] | None = None,
    ) -> None:
        self.fields = fields or {}
        self._seq_length = seq_length
        self._pad_id = tokenizer.pad_id or 0
        self._multiple = GPU_MULTIPLE if torch.cuda.is_available() else 1
        flat_a, lengths_a = tokenizer.encode_batch(texts)
        flat_b, lengths_b = flat_a[:0], 0 * lengths_a
        if pairs is not None:
            flat_b, lengths_b = tokenizer.encode_batch(pairs)
        keep_a, keep_b = fit_pair(lengths_a, lengths_b, seq_length - (2 if pairs is None else 3))
        self._first_lengths = keep_a + 2
        self.lengths = self._first_lengths if pairs is None else self._first_lengths + keep_b + 1
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._ids = np.empty(int(self.lengths.sum()), np.int32)
        self._ids[self._starts] = tokenizer.require("cls")
        self._ids[self._starts + keep_a + 1] = tokenizer.require("sep")
        self._fill(self._starts + 1, flat_a, lengths_a, keep_a)
        if pairs is not None:
            self._fill(self._starts + self._first_lengths, flat_b, lengths_b, keep_b)
            self._ids[self._starts + self.lengths - 1] = tokenizer.require("sep")

    def _fill(self, at: Rows, flat: NDArray[np.int32], lengths: Rows, keep: Rows) -> None:
        offsets = np.arange(int(keep.sum())) - np.repeat(np.cumsum(keep) - keep, keep)
        self._ids[np.repeat(at, keep) + offsets] = flat[
            np.repeat(np.cumsum(lengths) - lengths, keep) + offsets
        ]

    def batch(self, rows: Rows) -> Batch:
        lengths = self.lengths[rows]
        width = min(-(-int(lengths.max()) // self._multiple) * self._multiple, self._seq_length)
        columns = np.arange(width)
        real = columns < lengths[:, None]
        ids = np.full(real.shape, self._pad_id, np.int64)
        ids[real] = self._ids[(self._starts[rows][:, None] + columns)[real]]
        segments = real.astype(np.int64) + (real & (columns >= self._first_lengths[rows][:, None]))
        index = torch.from_numpy(rows)
        return {
            "input_ids": torch.from_numpy(ids),
            "segment_ids": torch.from_numpy(segments),
            **{name: field[index] for name, field in self.fields.items()},
        }


def training_batches(lengths: Rows, batch_size: int, seed: int, epoch: int) -> list[Rows]:
    """The examples of an epoch in random order, similar lengths together; a function of seed and epoch."""
    order = _permutation(len(lengths), seed, epoch, 0)
    window = np.arange(len(order)) // (batch_size * WINDOW_BATCHES)
    order = order[np.lexsort((lengths[order], window))]
    batches = _cut(order, batch_size)
    return [batches[i] for i in _permutation(len(batches), seed, epoch, 1)]


def evaluation_batches(lengths: Rows, batch_size: int) -> list[Rows]:
    """Every example once, longest first: a machine too small for the file shows it at once."""
    return _cut(np.argsort(-lengths, kind="stable"), batch_size)


def _permutation(count: int, seed: int, epoch: int, purpose: int) -> Rows:
    return shuffled(np.arange(count), count, streams(seed, epoch, purpose))


def _cut(order: Rows, batch_size: int) -> list[Rows]:
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
