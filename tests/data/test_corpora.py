from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import pytest
import zstandard

from tencentpretrain.data import corpora
from tencentpretrain.data.corpora import Block, CorpusFile, blocks, corpus_files, part_of
from tencentpretrain.data.lines import Texts, read_texts
from tencentpretrain.errors import DataError


def file_of(path: Path, content: bytes, json_format: bool = False) -> CorpusFile:
    path.write_bytes(content)
    (file,) = corpus_files([str(path)], json_format)
    return file


def read(path: Path, content: bytes, layout: str, json_format: bool = False) -> Texts:
    """All of a file as one block."""
    (block,) = blocks(file_of(path, content, json_format), 1 << 30)
    return read_texts(block, layout)


def test_sentences(tmp_path: Path) -> None:
    found = read(tmp_path / "x.txt", b"a b\nc\n\n \t\nd\n\n", "sentences")
    assert found.texts == ["a b", "c", "d"]
    assert sorted({start for start in found.starts if start < 3}) == [0, 2]
    assert found.lines_num == 6
    assert found.bad_lines == []


def test_documents(tmp_path: Path) -> None:
    found = read(tmp_path / "x.txt", b"a b\n\nc\td\nlast", "documents")
    assert found.texts == ["a b", "c\td", "last"]
    assert sorted(set(found.starts)) == [0, 1, 2]


def test_labelled(tmp_path: Path) -> None:
    lines = [
        "0\ta b",
        "12\tc\td",
        "",
        "3\te\t",
        '1\t"quoted" text',
        "label\ttext_a",
        "-1\tx",
        "1",
        "1\t\t",
        "1\ta\tb\tc",
    ]
    lines += ["65536\tx", "9" * 5000 + "\tx", "١\tx"]
    found = read(tmp_path / "x.tsv", "\n".join(lines).encode(), "labelled")
    assert found.texts == ["a b", "c", "d", "e", '"quoted" text']
    assert found.labels == [0, 12, 3, 1]
    assert sorted(set(found.starts)) == [0, 1, 3, 4]
    assert [number for number, _ in found.bad_lines] == [6, 7, 8, 9, 10, 11, 12, 13]
    reasons = dict(found.bad_lines)
    assert reasons[6] == "the label must be a whole number from 0, but is 'label' instead"
    assert reasons[8] == "expected label TAB text [TAB text], but there are 0 TABs"
    assert reasons[9] == "no text after the label"
    assert reasons[11] == reasons[12] == "the label must be at most 65535; classes are numbered from 0"


@pytest.mark.parametrize("name", ["x.jsonl", "x.txt"])
def test_json(name: str, tmp_path: Path) -> None:
    lines = [
        '{"text": "a\\nb\\n\\nc", "id": 1}',
        "",
        '{"text": "d"}',
        "no",
        '["a"]',
        '{"text": 1}',
        '{"txt": "a"}',
        "{}",
    ]
    lines += ['{"text": "\\ud800"}', '{"text": "\\u0000"}', "[" * 100_000, "1" * 5000]
    content = "\n".join(lines).encode()
    json_format = name != "x.jsonl"  # which needs no option
    found = read(tmp_path / name, content, "sentences", json_format)
    assert found.texts == ["a", "b", "c", "d"]
    assert sorted({start for start in found.starts if start < 4}) == [0, 3]
    assert [number for number, _ in found.bad_lines] == [4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert found.bad_lines[0][1].startswith("not JSON")
    assert read(tmp_path / name, content, "documents", json_format).texts == ["a\nb\n\nc", "d"]


def test_json_labelled(tmp_path: Path) -> None:
    items = [
        {"label": 2, "text": "a"},
        {"label": 0, "text": "b", "text_b": "c"},
        {"label": "1", "text": "d"},
        {"text": "e"},
    ]
    items += [{"label": True, "text": "f"}, {"label": 1, "text": "g", "text_b": 5}]
    content = "\n".join(map(json.dumps, items)).encode()
    found = read(tmp_path / "x.jsonl", content, "labelled")
    assert found.texts == ["a", "b", "c"]
    assert found.labels == [2, 0]
    assert [number for number, _ in found.bad_lines] == [3, 4, 5, 6]


@pytest.mark.parametrize("layout", ["sentences", "documents"])
def test_odd_bytes(layout: str, tmp_path: Path) -> None:
    content = b"\xef\xbb\xbffirst\r\nsec\xffond\r\nthi\0rd\r\n" + "中文\u2028\x0cfourth\rstill\r\n".encode()
    found = read(tmp_path / "x.txt", content, layout)
    assert found.texts == ["first", "中文\u2028\x0cfourth\rstill"]  # only LF and CRLF end a line
    assert found.bad_lines == [
        (2, "not UTF-8 (byte 4 is 0xff)"),
        (3, "a NUL byte (byte 4): the whole line is left out"),
    ]


COMPRESS = {"text": bytes, "gzip": gzip.compress, "zstd": zstandard.compress}


@pytest.mark.parametrize("form", COMPRESS)
@pytest.mark.parametrize("block_size", [1, 7, 1000, 1 << 20])
def test_overlong_lines_are_not_kept(
    block_size: int, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("corpora", "lines"):
        monkeypatch.setattr(f"tencentpretrain.data.{module}.LONGEST_LINE", 1000)
    lines = [b"a", b"b" * 5000, b"c" * 999, b"d", b"e" * 1000, b"", b"f" * 100_000, b"g", b"h" * 2000]
    content = b"\n".join(lines)
    file = file_of(tmp_path / "x.txt", COMPRESS[form](content))
    texts, bad, before = [], [], 0
    for block in blocks(file, block_size):
        assert block_size > 1000 or block.size <= block_size + 1000
        found = read_texts(block, "documents")
        texts += found.texts
        bad += [before + number for number, _ in found.bad_lines]
        before += found.lines_num
    assert texts == ["a", "c" * 999, "d", "g"]
    assert bad == [2, 5, 7, 9]
    assert before == 9


@pytest.mark.parametrize("form", COMPRESS)
def test_blocks_are_whole_lines_and_everything(form: str, tmp_path: Path) -> None:
    content = b"".join(b"%d" % number * (number % 9) + b"\n" for number in range(500)) + b"unended"
    file = file_of(tmp_path / "x", COMPRESS[form](content))
    for block_size in (1, 2, 3, 64, 1000, len(content), 10 * len(content)):
        found = list(blocks(file, block_size))
        parts = [block.read() for block in found]
        assert b"".join(parts) == content
        assert all(part.endswith(b"\n") for part in parts[:-1])
        assert [block.start for block in found] == [
            sum(map(len, parts[:number])) for number in range(len(parts))
        ]
        assert sum(block.progress for block in found) == file.size
        for block in found[:: len(found) // 4 + 1]:
            rest = found[found.index(block) + 1 :]
            again = list(blocks(file, block_size, block.end))
            assert [other[1:5] for other in again] == [other[1:5] for other in rest]


def test_an_empty_file_has_no_block(tmp_path: Path) -> None:
    assert list(blocks(file_of(tmp_path / "x.txt", b""))) == []
    assert list(blocks(file_of(tmp_path / "x.txt.gz", gzip.compress(b"")))) == []
    assert list(blocks(file_of(tmp_path / "x.txt.zst", zstandard.compress(b"")))) == []


@pytest.mark.parametrize(
    ("layout", "name"), [("sentences", "x.txt"), ("sentences", "x.jsonl"), ("pairs", "x")]
)
def test_parts_end_where_documents_do(
    layout: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "BLOCK_SIZE", 4)  # lines are read in pieces
    blank = b"\n\n" if name == "x.txt" else b"\n"
    content = b"a\nbcdefghij\n\r\nc\nd\n \n\n\n" + b"e\n" * 5 + b"\nabc      \nlast\nline"
    file = file_of(tmp_path / name, content)
    for parts_num in range(1, len(content) + 5):
        parts = [part_of([file], number, parts_num, layout) for number in range(1, parts_num + 1)]
        pieces = [part for found in parts for part in found]
        assert [piece.start for piece in pieces] == [0, *(piece.end for piece in pieces[:-1])]
        assert pieces[-1].end == len(content)
        for piece in pieces[1:]:
            before = content[: piece.start].replace(b"\r", b"").replace(b" \n", b"\n")
            assert before.endswith(blank)
            if name == "x.txt":
                assert not before.endswith(b"abc\n")


def test_zstd_of_several_frames(tmp_path: Path) -> None:
    frames = [zstandard.compress(text) for text in (b"a\nb", b"", b"c\n", b"d")]
    file = file_of(tmp_path / "x.zst", b"".join(frames))
    assert b"".join(block.read() for block in blocks(file, 1)) == b"a\nbc\nd"


def parquet(path: Path, columns: dict[str, list[object]], rows_of_group: int) -> CorpusFile:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=rows_of_group)
    (file,) = corpus_files([str(path)], False)
    return file


PARQUET = [
    ("documents", {"text": ["a\nb", "c", None, "d"], "id": [1, 2, 3, 4]}, ["a\nb", "c", "d"], []),
    ("sentences", {"text": ["a\nb", "c", "d", None]}, ["a", "b", "c", "d"], []),
    ("labelled", {"label": [1, 0], "text": ["a", "b"], "text_b": ["c", None]}, ["a", "c", "b"], [1, 0]),
    ("labelled", {"label": [2, None], "text": ["a", "b"]}, ["a"], [2]),
    ("pairs", {"source": ["a", "c"], "target": ["b", "d"]}, ["a", "b", "c", "d"], []),
    ("pairs", {"text_b": ["a", "c"], "text": ["b", "d"]}, ["b", "a", "d", "c"], []),
    ("documents", {"text": [b"a", b"b"]}, [], []),
    (
        "instructions",
        {"instruction": ["a"], "input": [None], "output": ["b"]},
        ["a ### Instruction: ### Response:", "b"],
        [],
    ),
]


@pytest.mark.parametrize(("layout", "columns", "texts", "labels"), PARQUET)
def test_parquet(
    layout: str, columns: dict[str, list[object]], texts: list[str], labels: list[int], tmp_path: Path
) -> None:
    rows_num = len(next(iter(columns.values())))
    for rows_of_group in (1, 2, 100):
        file = parquet(tmp_path / "x.parquet", columns, rows_of_group)
        for block_size in (1, 20, 1 << 20):
            found = list(blocks(file, block_size))
            read = [read_texts(block, layout) for block in found]
            assert [text for each in read for text in each.texts] == texts
            assert [label for each in read for label in each.labels] == labels
            assert sum(each.lines_num for each in read) == rows_num
            assert sum(block.progress for block in found) == file.size
            assert [block.start for block in found] == [0, *(block.end for block in found[:-1])]
            again = list(blocks(file, block_size, found[0].end))
            assert [block.content for block in again] == [block.content for block in found[1:]]


def test_parquet_without_text(tmp_path: Path) -> None:
    file = parquet(tmp_path / "x.parquet", {"title": ["a"], "body": ["b"]}, 1)
    with pytest.raises(DataError, match="has the columns title, body; expected some of text, text_b"):
        list(blocks(file))


def test_parquet_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet(tmp_path / "x.parquet", {"text": ["a"]}, 1)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"is a Parquet file; install what reads it \(pip install pyarrow\)"):
        corpus_files([str(tmp_path / "x.parquet")], False)


@pytest.mark.parametrize("form", ["text", "parquet"])
@pytest.mark.parametrize("parts_num", [1, 2, 7, 60])
def test_parts_are_of_similar_size(form: str, parts_num: int, tmp_path: Path) -> None:
    texts = [str(number) * 10 for number in range(100, 400)]
    for name in ("a", "b", "c"):
        if form == "text":
            file_of(tmp_path / f"{name}.txt", "\n\n".join(texts).encode())
        else:
            parquet(tmp_path / f"{name}.parquet", {"text": list(texts)}, 3)
    files = corpus_files([str(tmp_path)], False)
    sizes = []
    for number in range(1, parts_num + 1):
        found = part_of(files, number, parts_num, "sentences")
        read = [read_texts(block, "sentences") for file in found for block in blocks(file, 50)]
        sizes.append(sum(len(each.texts) for each in read))
        assert sum(block.progress for file in found for block in blocks(file, 50)) == sum(
            file.size for file in found
        )
    assert sum(sizes) == 900
    assert max(sizes) - min(sizes) <= (2 if form == "text" else 9)


def names(paths: list[str]) -> list[str]:
    return [file.path.name for file in corpus_files(paths, False)]


def test_files_directories_and_globs(tmp_path: Path) -> None:
    hidden = (".hidden.txt", ".d.1.tmp/x.txt", "dataset.pt/00000.tokens", "dataset.pt/tokenizer/vocab.txt")
    for name in (
        "b.txt",
        "a.tsv",
        "deep/c.jsonl.gz",
        "deep/d.txt.gz",
        "deep/e.txt.zst",
        "notes.md",
        "[1].txt",
        *hidden,
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x", encoding="utf-8")
    assert names([str(tmp_path)]) == ["[1].txt", "a.tsv", "b.txt", "c.jsonl.gz", "d.txt.gz", "e.txt.zst"]
    assert names([str(tmp_path / "*.t*")]) == ["[1].txt", "a.tsv", "b.txt"]
    assert names([str(tmp_path / "notes.md"), str(tmp_path / "b.txt")]) == ["notes.md", "b.txt"]
    assert names([str(tmp_path / "[1].txt")]) == ["[1].txt"]
    flags = {file.path.name: file.is_json for file in corpus_files([str(tmp_path)], False)}
    assert [name for name, is_json in flags.items() if is_json] == ["c.jsonl.gz"]


def test_what_a_directory_has_besides_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    for path in (corpus / "a.txt", *(corpus / name for name in ("wiki_00", "b.json", "c.txt.xz", ".hidden"))):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x", encoding="utf-8")
    assert names([str(corpus / "a.txt")]) == ["a.txt"]
    assert not capsys.readouterr().err
    assert names([str(corpus)]) == ["a.txt"]
    said = capsys.readouterr().err
    assert f"{corpus}: 3 files are no corpus files by their names (b.json, c.txt.xz, wiki_00)" in said
    elsewhere.mkdir()
    (elsewhere / "d.txt").write_text("x", encoding="utf-8")
    (corpus / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(corpus)  # a ring
    assert names([str(corpus)]) == ["a.txt", "d.txt"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file or directory"),
        (lambda path: path.mkdir(), "this directory has no corpus file"),
        (lambda path: path.write_bytes("text".encode("utf-16")), "is UTF-16 text; convert it"),
        (lambda path: path.write_bytes(b"PAR1...."), "is damaged or incomplete"),
        (lambda path: path.write_bytes(b"ARROW1\0\0"), "is an Arrow file"),
        (lambda path: path.write_bytes(bz2.compress(b"text\n")), "compressed with bzip2"),
        (lambda path: path.write_bytes(lzma.compress(b"text\n")), "compressed with xz"),
        (lambda path: zipfile.ZipFile(path, "w").writestr("x.txt", "text\n"), "is a zip archive; unpack it"),
        (lambda path: path.write_bytes(b"7z\xbc\xaf\x27\x1c"), "is a 7z archive; unpack it"),
        (lambda path: os.mkfifo(path), "is not a regular file"),
    ],
)
def test_unusable_paths_are_named(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    make(tmp_path / "corpus.jsonl.xyz")  # what a file is, its content says, not its name
    for pattern in ("corpus.jsonl.xyz", "corpus.jsonl.*"):
        with pytest.raises(DataError, match=message):
            corpus_files([str(tmp_path / pattern)], False)


def test_a_glob_without_a_match(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\*\.txt: no such file or directory"):
        corpus_files([str(tmp_path / "*.txt")], False)


def test_damaged_gzip(tmp_path: Path) -> None:
    content = gzip.compress(os.urandom(10_000).hex().encode())
    flipped = bytearray(content)
    flipped[5000] ^= 0xFF
    for damaged in (content[:5000], bytes(flipped)):
        with pytest.raises(DataError, match=r"x.gz is damaged or incomplete"):
            list(blocks(file_of(tmp_path / "x.gz", damaged), 100))


def test_damaged_zstd(tmp_path: Path) -> None:
    content = zstandard.ZstdCompressor(write_checksum=True).compress(os.urandom(10_000).hex().encode())
    flipped = bytearray(content)
    flipped[5000] ^= 0xFF
    for damaged in (content[:5000], content[:-1], bytes(flipped), content + b"more"):
        with pytest.raises(DataError, match=r"x.zst is damaged or incomplete"):
            list(blocks(file_of(tmp_path / "x.zst", damaged), 100))


def test_damaged_parquet(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    parquet(path, {"text": [os.urandom(500).hex() for _ in range(20)]}, 10)
    content = path.read_bytes()
    with pytest.raises(DataError, match=r"x.parquet is damaged or incomplete"):
        file_of(path, content[:5000])
    with pytest.raises(DataError, match=r"x.parquet is damaged or incomplete"):
        list(blocks(file_of(path, content[:4] + bytes(5000) + content[5004:])))


def test_a_file_that_shrinks(tmp_path: Path) -> None:
    file = file_of(tmp_path / "x.txt", b"a\nb\n")
    (block,) = blocks(file)
    (tmp_path / "x.txt").write_bytes(b"a\n")
    with pytest.raises(DataError, match="became shorter while it was read"):
        block.read()


def test_a_directory_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything
    with pytest.raises(PermissionError):
        corpus_files([str(tmp_path)], False)


def test_only_the_first_block_has_a_mark_and_starts_a_document(tmp_path: Path) -> None:
    file = file_of(tmp_path / "x.txt", b"")
    for start, texts, starts in ((0, ["a"], [0]), (9, ["\ufeffa"], [])):
        found = read_texts(Block(file, start, 13, 4, b"\xef\xbb\xbfa\n", 0), "sentences")
        assert found.texts == texts
        assert found.starts == starts


def test_absent_parts_of_instructions(tmp_path: Path) -> None:
    items = [
        {"instruction": "a", "input": None, "output": "b"},
        {"input": "c", "output": "d"},
        {"instruction": None, "input": "e", "output": "f"},
        {"instruction": "g", "output": None},
        {"instruction": 5, "output": "h"},
    ]
    found = read(tmp_path / "x.jsonl", "\n".join(map(json.dumps, items)).encode(), "instructions")
    assert found.texts[::2] == [
        "a ### Instruction: ### Response:",
        " ### Instruction:c ### Response:",
        " ### Instruction:e ### Response:",
    ]
    assert found.texts[1::2] == ["b", "d", "f"]
    assert [number for number, _ in found.bad_lines] == [4, 5]
