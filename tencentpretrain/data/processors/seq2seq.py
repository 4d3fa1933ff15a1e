"""Rows for models with a decoder: a source, and a target that is read and predicted one token later."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tencentpretrain.batch import IGNORED
from tencentpretrain.data.processors.base import Arrays
from tencentpretrain.data.random import Bools, Ints

FIELDS = ("input_ids", "segment_ids", "decoder_input_ids", "decoder_segment_ids", "lm_labels")


def compact(values: Ints, kept: Bools, fill: int) -> tuple[Ints, Bools]:
    """Each row's kept values moved to its front, [B, S], and which columns they take; `fill` behind them."""
    used = np.arange(kept.shape[1]) < kept.sum(axis=1)[:, None]
    moved = np.full(values.shape, fill, np.int64)
    moved[used] = values[kept]
    return moved, used


def seq2seq_rows(
    source: Ints,
    source_used: Bools,
    target: Ints,
    target_used: Bools,
    pad_id: int,
    tgt_pad_id: int | None = None,
) -> Arrays:
    """The batch of a source [B, S] and a target [B, T + 1], of which the decoder reads all but the last
    token.
    """
    read = target_used[:, 1:]
    return {
        "input_ids": np.where(source_used, source, pad_id),
        "segment_ids": source_used.astype(np.int64),
        "decoder_input_ids": np.where(read, target[:, :-1], pad_id if tgt_pad_id is None else tgt_pad_id),
        "decoder_segment_ids": read.astype(np.int64),
        "lm_labels": np.where(read, target[:, 1:], IGNORED),
    }


def framed(
    tokens: Ints, lengths: Ints, width: int, begin: int, end: int
) -> tuple[npt.NDArray[np.int64], Bools]:
    """Rows `begin tokens end`, [B, width], and which columns they take; what is longer loses its end.

    tokens: [B, at least width - 2 columns].
    """
    columns, last = np.arange(width), lengths[:, None] + 1
    rows = np.full((len(tokens), width), end, np.int64)
    inside = (columns[1:] < last)[:, : tokens.shape[1]]
    rows[:, 1 : tokens.shape[1] + 1][inside] = tokens[:, : width - 1][inside]
    rows[:, 0] = begin
    return rows, columns <= last
