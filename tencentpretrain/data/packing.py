"""Several samples in one row, without seeing each other."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from tencentpretrain.data.processors.base import Arrays, padding_of
from tencentpretrain.data.random import Ints

WINDOW = 1 << 13  # samples that are packed together; what their last row leaves free is all that is lost


def pack(lengths: Ints, room: int) -> tuple[Ints, Ints]:
    """Samples put into rows of `room` tokens, each row filled with the longest samples that still fit.

    That is first-fit decreasing, row by row. One pass in Python: about a microsecond a sample.

    Args:
        lengths: [n], each from 1 to `room`.

    Returns:
        The samples in the order of their rows, [n], and the row of each, [n].
    """
    by_length = np.argsort(lengths, kind="stable")
    sizes, counts = np.unique(lengths, return_counts=True)
    last = dict(
        zip(sizes.tolist(), np.cumsum(counts).tolist(), strict=True)
    )  # behind the next of each length
    left = dict(zip(sizes.tolist(), counts.tolist(), strict=True))
    lengths_left = sum(1 << size for size in left)  # a bit for each length of which some are left
    places: list[int] = []
    rows: list[int] = []
    row = 0
    while lengths_left:
        space = room
        while fitting := lengths_left & ((2 << space) - 1):
            size = fitting.bit_length() - 1
            taken = min(left[size], space // size)
            places += range(last[size] - taken, last[size])
            rows += [row] * taken
            space -= taken * size
            last[size] -= taken
            left[size] -= taken
            if not left[size]:
                lengths_left ^= 1 << size
        row += 1
    return by_length[places], np.array(rows, np.int64)


def packed(arrays: Arrays, rows: Ints, sequences: Collection[str], pad_id: int) -> Arrays:
    """Samples [n, …] that begin at the left of their own rows, put one behind the other into common rows.

    Args:
        rows: [n], the row of each sample, in ascending order from 0.
        sequences: the fields that have a column for every token; others keep one entry a sample.

    Returns:
        The fields, `document_ids` and `position_ids` (see `batch.py`).
    """
    used = arrays["segment_ids"] > 0
    lengths = used.sum(axis=1)
    before = np.cumsum(lengths) - lengths
    first = np.searchsorted(rows, rows)  # the first sample of each sample's row
    starts = before - before[first]
    shape = int(rows[-1]) + 1, used.shape[1]
    sample, column = np.nonzero(used)
    place = rows[sample], starts[sample] + column
    found = {}
    for name, array in arrays.items():
        if name in sequences:
            found[name] = np.full((*shape, *array.shape[2:]), padding_of(name, pad_id), array.dtype)
            found[name][place] = array[used]
        else:
            found[name] = array
    number = np.arange(len(rows)) - first + 1
    for name, values in (("document_ids", number[sample]), ("position_ids", column)):
        found[name] = np.zeros(shape, np.int64)
        found[name][place] = values
    return found
