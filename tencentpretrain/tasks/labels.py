"""What the columns of a table say about its rows."""

from __future__ import annotations

import math

from tencentpretrain.errors import DataError
from tencentpretrain.tasks.table import Table

# A larger class number must be matched by as many rows: it is more likely an identifier than a class.
FREE_CLASSES = 1000


def read_classes(table: Table, classes_num: int | None) -> list[int]:
    """The column `label`: a class 0, 1 … for each row.

    Args:
        classes_num: how many there are; None: this table tells.

    Raises:
        DataError: with the line number of a label that is no class, or none of these.
    """
    classes = []
    for row, text in enumerate(table.columns["label"]):
        if not (text.isascii() and text.isdigit()):
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
