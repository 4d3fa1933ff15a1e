from __future__ import annotations

from pathlib import Path

import pytest

from tencentpretrain.errors import DataError
from tencentpretrain.tasks.table import Table


def table(tmp_path: Path, content: bytes, *required: str) -> Table:
    path = tmp_path / "rows.tsv"
    path.write_bytes(content)
    return Table(path, required or ("label", "text_a"))


def test_quotes_are_text_and_columns_come_in_any_order(tmp_path: Path) -> None:
    found = table(tmp_path, b'text_a\tnote\tlabel\n"He said\tx\t0\nit\'s "fine"\t\t1\n')
    assert found.columns == {"text_a": ['"He said', 'it\'s "fine"'], "note": ["x", ""], "label": ["0", "1"]}
    assert found.rows_num == 2


@pytest.mark.parametrize("content", [
    b"\xef\xbb\xbflabel\ttext_a\n0\ta\n1\tb\n",  # byte order mark
    b"label\ttext_a\r\n0\ta\r\n1\tb\r\n",
    b"label\ttext_a\n0\ta\n1\tb",  # no final line end
])  # fmt: skip
def test_other_line_ends_and_byte_order_mark_mean_the_same(tmp_path: Path, content: bytes) -> None:
    assert table(tmp_path, content).columns == {"label": ["0", "1"], "text_a": ["a", "b"]}


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    odd = "a\u2028b\x0bc\x85d\x00e\rf"
    found = table(tmp_path, f"label\ttext_a\n0\t{odd}\n".encode())
    assert found.columns["text_a"] == [odd]


def test_an_empty_line_of_a_file_with_one_column_is_a_row(tmp_path: Path) -> None:
    assert table(tmp_path, b"text_a\na\n\nb\n", "text_a").columns["text_a"] == ["a", "", "b"]


@pytest.mark.parametrize(("content", "line", "said"), [
    (b"", None, "is empty"),
    (b"label\ttext_a\n", None, "has a header but no rows"),
    (b"1\tgood\n0\tbad\n", 1, "expected a header"),
    (b"label\ttexta\n0\ta\n", 1, "text_a is missing (did you mean 'texta'?)"),
    (b"label text_a\n0 a\n", 1, "separated by tabs"),
    (b"label\ttext_a\tlabel\n0\ta\t1\n", 1, "'label' twice"),
    (b"label\ttext_a\n0\ta\n0\ta\tb\n", 3, "3 field(s), but the header has 2 column(s)"),
    (b"label\ttext_a\n0\ta\n\n1\tb\n", 3, "1 field(s)"),
    (b"label\ttext_a\n0\ta\n0\t\xff\xfe\n", 3, "not UTF-8 (byte 0xff)"),
])  # fmt: skip
def test_what_is_wrong_is_named_with_its_line(
    tmp_path: Path, content: bytes, line: int | None, said: str
) -> None:
    with pytest.raises(DataError) as error:
        table(tmp_path, content)
    assert said in str(error.value)
    assert (f"rows.tsv, line {line}: " if line else "rows.tsv") in str(error.value)
