"""Tab-separated files with a header of column names. Quotes are text like any other; only a tab separates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tencentpretrain.errors import DataError, did_you_mean


class Table:
    """A file's columns by name.

    Args:
        path: UTF-8, with or without byte order mark, Unix or Windows line ends.
        required: columns that must be there.

    Raises:
        DataError: with the line number, when the file is not such a table.
    """

    def __init__(self, path: Path, required: Sequence[str]) -> None:
        self.path = path
        data = path.read_bytes()
        try:
            lines = data.decode("utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise self.error(
                data.count(b"\n", 0, error.start) + 1,
                f"not UTF-8 (byte {data[error.start]:#04x}); convert the file first.",
            ) from None
        if not lines[-1]:
            lines.pop()
        if not lines:
            raise DataError(f"{path} is empty; expected a header with the columns {', '.join(required)}.")
        rows = [line.removesuffix("\r").split("\t") for line in lines]
        header = rows.pop(0)
        self._check_header(header, required)
        if not rows:
            raise DataError(f"{path} has a header but no rows.")
        for line, row in enumerate(rows, start=2):
            if len(row) != len(header):
                raise self.error(
                    line,
                    f"{len(row)} field(s), but the header has {len(header)} column(s): {', '.join(header)}. "
                    "Fields are separated by one tab and hold none.",
                )
        self.columns: dict[str, list[str]] = dict(
            zip(header, map(list, zip(*rows, strict=True)), strict=True)
        )
        self.rows_num = len(rows)

    def _check_header(self, header: list[str], required: Sequence[str]) -> None:
        missing = [name for name in required if name not in header]
        if missing:
            found = ", ".join(f"'{_shorten(name)}'" for name in header[:8])
            hint = did_you_mean(missing[0], header)
            raise self.error(
                1,
                f"expected a header that names the columns {', '.join(required)}, separated by tabs; "
                f"{', '.join(missing)} is missing{hint}, found {found}.",
            )
        twice = next((name for name in header if header.count(name) > 1), None)
        if twice is not None:
            raise self.error(1, f"the header names column '{twice}' twice.")

    def error(self, line: int, problem: str) -> DataError:
        return DataError(f"{self.path}, line {line}: {problem}")

    def row_error(self, row: int, problem: str) -> DataError:
        """The error for row 0, 1 … under the header."""
        return self.error(row + 2, problem)


def _shorten(text: str) -> str:
    return text if len(text) <= 30 else text[:29] + "…"
