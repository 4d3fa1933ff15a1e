"""What the columns of a table say about its rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tencentpretrain.errors import DataError
from tencentpretrain.tasks.table import Table

# A larger class number must be matched by as many rows: it is more likely an identifier than a class.
FREE_CLASSES = 1000
LISTED_CLASSES = 10


def read_classes(table: Table, classes_num: int | None) -> list[int]:
    """The column `label`: a class 0, 1 … for each row.

    Args:
        classes_num: how many there are; None: this table tells.

    Raises:
        DataError: with the line number of a label that is no class, or none of these.
    """
    classes = []
    for row, text in enumerate(table.columns["label"]):
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise table.row_error(
                row, f"label '{text[:30]}'; expected a whole number, 0 for the first class."
            )
        classes.append(int(text))
    largest = max(classes)
    first = classes.index(largest)
    if classes_num is not None and largest >= classes_num:
        raise table.row_error(
            first, f"label {largest} is out of range; the training set has 0 to {classes_num - 1}."
        )
    if largest == 0 and classes_num is None:
        raise DataError(f"{table.path}: every label is 0; expected at least two classes, 0 and 1.")
    if largest >= max(FREE_CLASSES, len(classes)):
        raise table.row_error(
            first, f"label {largest}, but only {len(classes)} rows; number the classes from 0."
        )
    return classes


def describe_classes(counts: Sequence[int]) -> str:
    """How frequent each class is, and which of them never occur.

    Args:
        counts: rows of class 0, 1 …
    """
    order = sorted(range(len(counts)), key=lambda name: -counts[name])
    # Many are told by the most frequent, few in their order.
    shown = order[:LISTED_CLASSES] if len(counts) > LISTED_CLASSES else range(len(counts))
    shares = [f"{name} {100 * counts[name] / sum(counts):.3g} %" for name in shown if counts[name]]
    absent = [str(name) for name, count in enumerate(counts) if not count]
    return (
        f"{len(counts)} classes: {', '.join(shares)}{' …' if len(counts) > LISTED_CLASSES else ''}"
        + (f"; never in the training set: {', '.join(absent[:20])}" if absent else "")
        + (" …" if len(absent) > 20 else "")
    )


def read_numbers(table: Table, column: str, count: int) -> list[list[float]]:
    """A column of `count` numbers in each row, separated by spaces.

    Raises:
        DataError: with the line number of a row that has something else.
    """
    rows = []
    for row, text in enumerate(table.columns[column]):
        try:
            numbers = [float(word) for word in text.split()]
        except ValueError:
            numbers = []
        if len(numbers) != count or not all(map(math.isfinite, numbers)):
            raise table.row_error(
                row, f"{column} '{text[:30]}'; expected {count} numbers with spaces between."
            )
        rows.append(numbers)
    return rows
