"""Corpus files: which ones, which part of them, and in blocks of whole lines."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, NoReturn

from tencentpretrain.errors import DataError

if TYPE_CHECKING:
    import pyarrow.parquet
    from _typeshed import WriteableBuffer
    from tqdm import tqdm

BLOCK_SIZE = 1 << 20  # bytes of text that are tokenised at a time
LONGEST_LINE = 1 << 27  # bytes; a longer line is not kept in memory
LOG_SECONDS = 60.0
ZSTD_INPUT, ZSTD_BUFFER = 1 << 12, 1 << 17  # bytes decompressed at a time, and kept of what they give

SUFFIXES = (".txt", ".tsv", ".jsonl")  # of files that are found in directories, also with these behind them:
COMPRESSED = (".gz", ".zst")
PARQUET = ".parquet"
FORMS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PAR1": "parquet"}  # what files begin with
COLUMNS = ("text", "text_b", "label", "instruction", "input", "output")  # of Parquet files
PUBLISHED_PAIRS = {"source": "text", "target": "text_b"}  # columns that are called so in corpora of pairs
FOREIGN = {  # how files begin that are not UTF-8 text, whatever their name says
    b"\xff\xfe": "UTF-16 text; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "UTF-16 text; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"ARROW1": "an Arrow file; export its text to .jsonl or .parquet",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"\xfd7zXZ\0": "compressed with xz; decompress it, or compress it with gzip or zstd",
    b"BZh91AY&SY": "compressed with bzip2; decompress it, or compress it with gzip or zstd",
}


@dataclasses.dataclass(frozen=True)
class CorpusFile:
    """A file of a corpus, or the part of one that this machine works on.

    Positions are bytes of text, in Parquet files rows.
    """

    path: Path
    size: int  # bytes on disk of the part
    form: str  # "text", "gzip", "zstd" or "parquet"
    is_json: bool  # lines are JSON objects
    start: int = 0
    end: int | None = None  # None: all of a compressed file


class Block(NamedTuple):
    """Whole lines of a file: a byte range, or the bytes of a file that cannot be read from its middle."""

    file: CorpusFile
    start: int
    end: int  # where the next block starts
    size: int  # bytes of text
    content: bytes | None
    progress: int  # bytes of the file on disk that are done with this block

    def read(self) -> bytes:
        if self.content is not None:
            return self.content
        with self.file.path.open("rb") as file:
            file.seek(self.start)
            content = file.read(self.size)
        if len(content) != self.size:
            raise DataError(f"{self.file.path} became shorter while it was read; start again.")
        return content


def corpus_files(paths: Sequence[str], json_format: bool) -> list[CorpusFile]:
    """The files that `--corpus_path` names: files, directories (searched to any depth) and globs, in order.

    Files of a directory that are left out because of their names are told on stderr.

    Raises:
        DataError: nothing there, no corpus file in a directory, or a file that is not text.
        OSError: a file that may not be read.
    """
    return [_inspect(file, json_format) for path in paths for file in _expand(path)]


def _expand(pattern: str) -> list[Path]:
    path = Path(pattern)
    if path.is_dir():
        names = sorted(_search(path))
        found = [file for file in names if _plain_name(file.name).endswith((*SUFFIXES, PARQUET))]
        if not found:
            raise DataError(
                f"{path}: this directory has no corpus file ({', '.join(SUFFIXES)}, also with "
                f"{' or '.join(COMPRESSED)}; {PARQUET})."
            )
        if others := [str(file.relative_to(path)) for file in names if file not in set(found)]:
            print(
                f"{path}: {len(others):,} files are no corpus files by their names "
                f"({', '.join(others[:3])}{', …' if len(others) > 3 else ''}) and are left out; "
                "files that are named, or found by a glob, are read whatever their names.",
                file=sys.stderr,
            )
        return found
    if path.exists():
        return [path]
    matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (pathlib takes no absolute pattern)
    if not matches:
        raise DataError(f"{pattern}: no such file or directory; give corpus files, directories or globs.")
    return [file for match in matches for file in _expand(match)]


def _search(directory: Path) -> Iterator[Path]:
    """All files but hidden ones and those of token stores; a folder that is there twice, by links, once."""
    seen = set()
    for folder, folders, names in os.walk(directory, onerror=_raise, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if any(name.endswith(".tokens") for name in names):
            names = folders[:] = []  # a token store: the vocabulary in it is no corpus
        if (real := os.path.realpath(folder)) in seen:
            names = folders[:] = []
        seen.add(real)
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _plain_name(name: str) -> str:
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return name


def _raise(error: OSError) -> NoReturn:
    raise error


def _inspect(path: Path, json_format: bool) -> CorpusFile:
    if not path.is_file():
        raise DataError(f"{path} is not a regular file; a corpus is read from files.")
    with path.open("rb") as file:
        head = file.read(max(map(len, FOREIGN)))
        size = os.fstat(file.fileno()).st_size
    for signature, what in FOREIGN.items():
        if head.startswith(signature):
            raise DataError(f"{path} is {what}.")
    form = next((form for signature, form in FORMS.items() if head.startswith(signature)), "text")
    is_json = json_format or form == "parquet" or _plain_name(path.name).endswith(".jsonl")
    end = {"text": size, "parquet": None if form != "parquet" else _parquet(path).metadata.num_rows}.get(form)
    return CorpusFile(path, size, form, is_json, 0, end)


def part_of(files: Sequence[CorpusFile], number: int, parts_num: int, layout: str) -> list[CorpusFile]:
    """Part `number` (from 1) of `parts_num` of a corpus; parts may be empty.

    Parts are of about equal size on disk. Text files are cut between documents, Parquet files between row
    groups; a compressed file goes to the part in which it begins.
    """
    total = sum(file.size for file in files)
    low, high = (total * border // parts_num for border in (number - 1, number))
    found = []
    before = 0
    for file in files:
        start, end = _cut(file, low - before, layout), _cut(file, high - before, layout)
        if start < end:
            whole = file.end is None or (start, end) == (0, file.end)
            share = file.size if whole else file.size * (end - start) // (file.end or 1)
            bounds = (0, file.end) if whole else (start, end)
            found.append(dataclasses.replace(file, size=share, start=bounds[0], end=bounds[1]))
        before += file.size
    return found


def _cut(file: CorpusFile, at: int, layout: str) -> int:
    """Where documents start that lie behind byte `at` of a file, which may lie outside of it."""
    if file.form == "text":
        return _cut_text(file, at, layout == "sentences" and not file.is_json)
    if file.form == "parquet":
        metadata = _parquet(file.path).metadata
        rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        return sum(rows[: max(0, -(-at * len(rows) // max(file.size, 1)))])
    return int(at > 0)


def _cut_text(file: CorpusFile, at: int, blank_lines: bool) -> int:
    if at <= 0 or at >= file.size:
        return min(max(at, 0), file.size)
    with file.path.open("rb") as handle:
        handle.seek(at - 1)
        _skip_line(handle.readline(BLOCK_SIZE), handle.readline)
        line_starts = True
        while blank_lines and (line := handle.readline(BLOCK_SIZE)):
            if line_starts and line.isspace() and line.endswith(b"\n"):
                break
            line_starts = line.endswith(b"\n")
        return min(handle.tell(), file.size)


def progress_bar(files: Sequence[CorpusFile], program: str) -> tqdm[NoReturn]:
    """How much of the files is done; in a log a line every LOG_SECONDS."""
    from tqdm import tqdm

    in_log: dict[str, Any] = {
        "delay": LOG_SECONDS,
        "mininterval": LOG_SECONDS,
        "maxinterval": LOG_SECONDS,
        "bar_format": "{desc}: {percentage:.0f} %, {n_fmt}B of {total_fmt}B, {rate_fmt}, {remaining} left\n",
    }
    size = sum(file.size for file in files)
    own = {} if sys.stderr.isatty() else in_log
    return tqdm(desc=program, total=size, unit="B", unit_scale=True, **own)


def blocks(file: CorpusFile, block_size: int = BLOCK_SIZE, start: int | None = None) -> Iterator[Block]:
    """Cut a file into blocks of whole lines, each of `block_size` bytes and the rest of a line.

    Of a line longer than LONGEST_LINE only a part of at least that length is in its block.

    Args:
        start: where an earlier block ended, to go on from there with the same blocks.

    Raises:
        DataError: a damaged file.
    """
    start = file.start if start is None else start
    if file.form == "text":
        return _plain_blocks(file, block_size, start)
    return (_parquet_blocks if file.form == "parquet" else _compressed_blocks)(file, block_size, start)


def _plain_blocks(file: CorpusFile, block_size: int, start: int) -> Iterator[Block]:
    assert file.end is not None
    with file.path.open("rb") as handle:
        while start < file.end:
            handle.seek(min(start + block_size, file.end) - 1)
            rest = handle.readline(LONGEST_LINE)
            end = min(handle.tell(), file.end)
            _skip_line(rest, handle.readline)
            after = min(handle.tell(), file.end)
            yield Block(file, start, after, end - start, None, after - start)
            start = after


def _compressed_blocks(file: CorpusFile, block_size: int, start: int) -> Iterator[Block]:
    with file.path.open("rb") as raw, _decompressed(file, raw) as handle:
        done = 0
        try:
            skip = start
            while skip and (skipped := handle.read(min(skip, BLOCK_SIZE))):
                skip -= len(skipped)
            if start:
                done = raw.tell()
            while content := handle.read(block_size):
                end = start + len(content)
                if not content.endswith(b"\n"):
                    content += (rest := handle.readline(LONGEST_LINE))
                    end += len(rest) + _skip_line(rest, handle.readline)
                yield Block(file, start, end, len(content), content, raw.tell() - done)
                start, done = end, raw.tell()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{file.path} is damaged or incomplete ({error}); copy it again.") from None


def _decompressed(file: CorpusFile, raw: IO[bytes]) -> io.BufferedIOBase:
    return gzip.open(raw) if file.form == "gzip" else io.BufferedReader(_ZstdFile(raw), ZSTD_BUFFER)


class _ZstdFile(io.RawIOBase):
    """What a file of zstd frames holds; EOFError where the last one is incomplete."""

    def __init__(self, raw: IO[bytes]) -> None:
        import zstandard

        self._raw = raw
        self._new = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj
        self._error = zstandard.ZstdError
        self._frame = self._new()
        self._waiting = memoryview(b"")
        self._between_frames = True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        while not self._waiting:
            # Little at a time: a repetitive text is a thousand times as long.
            content = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._between_frames = self._new(), True
            content = content or self._raw.read(ZSTD_INPUT)
            if not content:
                if self._between_frames:
                    return 0
                raise EOFError("the end is missing")
            self._between_frames = False
            try:
                self._waiting = memoryview(self._frame.decompress(content))
            except self._error as error:
                raise EOFError(error) from None
        target = memoryview(buffer).cast("B")
        size = min(len(target), len(self._waiting))
        target[:size], self._waiting = self._waiting[:size], self._waiting[size:]
        return size


def _parquet(path: Path) -> pyarrow.parquet.ParquetFile:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            f"{path} is a Parquet file; install what reads it (pip install pyarrow), or export it to .jsonl."
        ) from None
    with _undamaged(path):  # read as it is needed, not column by column
        return pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)


@contextlib.contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's, not the library's
            raise
        raise DataError(f"{path} is damaged or incomplete ({error}); copy it again.") from None


def _no_json(value: object) -> None:
    """What is neither text nor a number is nothing."""


def _parquet_blocks(file: CorpusFile, block_size: int, start: int) -> Iterator[Block]:
    """Rows as lines of JSON, streamed by row group; no block has rows of two."""
    assert file.end is not None
    table = _parquet(file.path)
    names = [name for name in table.schema_arrow.names if name in (*COLUMNS, *PUBLISHED_PAIRS)]
    if not names:
        raise DataError(
            f"{file.path} has the columns {', '.join(table.schema_arrow.names)}; expected some of "
            f"{', '.join((*COLUMNS, *PUBLISHED_PAIRS))}."
        )
    new_names = [name if "text" in names else PUBLISHED_PAIRS.get(name, name) for name in names]

    end, first = file.end, 0

    def done(row: int) -> int:
        return file.size * (row - file.start) // (end - file.start)

    with _undamaged(file.path):
        for number in range(table.metadata.num_row_groups):
            group = table.metadata.row_group(number)
            after, row = first + group.num_rows, first
            first = after
            if after <= start or row >= end:
                continue
            at_once = max(1, group.num_rows * block_size // max(1, group.total_byte_size))
            lines: list[bytes] = []
            size = 0
            for batch in table.iter_batches(min(at_once, 1 << 16), row_groups=[number], columns=names):
                for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    row += 1
                    if row <= start:
                        continue
                    item = {
                        name: value
                        for name, value in zip(new_names, values, strict=True)
                        if value is not None
                    }
                    lines.append(json.dumps(item, ensure_ascii=False, default=_no_json).encode() + b"\n")
                    size += len(lines[-1])
                    if size >= block_size or row == after:
                        yield Block(file, start, row, size, b"".join(lines), done(row) - done(start))
                        lines, size, start = [], 0, row


def _skip_line(rest: bytes, readline: Callable[[int], bytes]) -> int:
    """Read to the end of a line of which `rest` was read; the number of bytes that were."""
    skipped = 0
    while rest and not rest.endswith(b"\n"):
        rest = readline(BLOCK_SIZE)
        skipped += len(rest)
    return skipped
