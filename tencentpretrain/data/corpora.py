"""Corpus files: which ones, in blocks of whole lines, and what the lines say."""

from __future__ import annotations

import dataclasses
import glob
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from tencentpretrain.errors import DataError

if TYPE_CHECKING:
    from tqdm import tqdm

BLOCK_SIZE = 1 << 20  # bytes of text that are tokenised at a time
LONGEST_LINE = 1 << 26  # bytes; a longer line is not kept in memory
LARGEST_LABEL = 2**31 - 1

SUFFIXES = (".txt", ".tsv", ".jsonl")
GZIP = b"\x1f\x8b"
FOREIGN = {  # how files begin that are not UTF-8 text, whatever their name says
    b"\xff\xfe": "UTF-16 text; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "UTF-16 text; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; decompress it, or compress it with gzip",
    b"PAR1": "a Parquet file; export its text to .jsonl",
    b"ARROW1": "an Arrow file; export its text to .jsonl",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"\xfd7zXZ\0": "compressed with xz; decompress it, or compress it with gzip",
    b"BZh91AY&SY": "compressed with bzip2; decompress it, or compress it with gzip",
}
NOT_UTF8 = "not UTF-8"  # how the reason begins why such a line cannot be used
CONVERT = "if it is text in another encoding, convert it (GBK: iconv -f GB18030 -t UTF-8)"
BOM = b"\xef\xbb\xbf"


@dataclasses.dataclass(frozen=True)
class CorpusFile:
    path: Path
    size: int  # bytes on disk
    compressed: bool
    is_json: bool  # lines are JSON objects


class Block(NamedTuple):
    """Whole lines of a file: a byte range, or the bytes of a file that cannot be read from its middle."""

    file: CorpusFile
    start: int  # in the uncompressed file
    size: int
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


class Texts(NamedTuple):
    """What the lines of a block say."""

    texts: list[str]  # sentences, or documents, or the one or two texts of a labelled document
    starts: list[
        int
    ]  # indices of texts that start a document; may repeat, and may be that of the next block's
    labels: list[int]  # one a document, labelled corpora only
    lines_num: int
    bad_lines: list[tuple[int, str]]  # number in the block, from 1, and why it cannot be used


class BadLineError(ValueError):
    """A line that cannot be used; the message is the reason."""


def corpus_files(paths: Sequence[str], json_format: bool) -> list[CorpusFile]:
    """The files that `--corpus_path` names: files, directories (searched to any depth) and globs, in order.

    Raises:
        DataError: nothing there, no corpus file in a directory, or a file that is not text.
        OSError: a file that may not be read.
    """
    return [_inspect(file, json_format) for path in paths for file in _expand(path)]


def _expand(pattern: str) -> list[Path]:
    path = Path(pattern)
    if path.is_dir():
        found = sorted(_search(path))
        if not found:
            raise DataError(
                f"{path}: this directory has no corpus file ({', '.join(SUFFIXES)}, also with .gz)."
            )
        return found
    if path.exists():
        return [path]
    matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (pathlib takes no absolute pattern)
    if not matches:
        raise DataError(f"{pattern}: no such file or directory; give corpus files, directories or globs.")
    return [file for match in matches for file in _expand(match)]


def _search(directory: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(directory, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if any(name.endswith(".tokens") for name in names):
            folders.clear()  # a token store: the vocabulary in it is no corpus
        for name in names:
            if name.removesuffix(".gz").endswith(SUFFIXES) and not name.startswith("."):
                yield Path(folder, name)


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
    is_json = json_format or path.name.removesuffix(".gz").endswith(".jsonl")
    return CorpusFile(path, size, head.startswith(GZIP), is_json)


def progress_bar(files: Sequence[CorpusFile], program: str) -> tqdm[NoReturn]:
    """How much of the files is done: on a terminal, not in a log."""
    from tqdm import tqdm

    size = sum(file.size for file in files)
    return tqdm(desc=program, total=size, unit="B", unit_scale=True, disable=None)


def blocks(file: CorpusFile, block_size: int = BLOCK_SIZE) -> Iterator[Block]:
    """Cut a file into blocks of whole lines, each of `block_size` bytes and the rest of a line.

    Of a line longer than LONGEST_LINE only a part of at least that length is in its block.

    Raises:
        DataError: a damaged compressed file.
    """
    return _compressed_blocks(file, block_size) if file.compressed else _plain_blocks(file, block_size)


def _plain_blocks(file: CorpusFile, block_size: int) -> Iterator[Block]:
    with file.path.open("rb") as handle:
        start = 0
        while start < file.size:
            handle.seek(start + block_size - 1)
            rest = handle.readline(LONGEST_LINE)
            end = min(handle.tell(), file.size)
            _skip_line(rest, handle.readline)
            after = min(handle.tell(), file.size)
            yield Block(file, start, end - start, None, after - start)
            start = after


def _compressed_blocks(file: CorpusFile, block_size: int) -> Iterator[Block]:
    with file.path.open("rb") as raw, gzip.open(raw) as handle:
        start = done = 0
        try:
            while content := handle.read(block_size):
                if not content.endswith(b"\n"):
                    content += (rest := handle.readline(LONGEST_LINE))
                    _skip_line(rest, handle.readline)
                yield Block(file, start, len(content), content, raw.tell() - done)
                start, done = handle.tell(), raw.tell()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{file.path} is damaged or incomplete ({error}); copy it again.") from None


def _skip_line(rest: bytes, readline: Callable[[int], bytes]) -> None:
    """Read to the end of a line of which `rest` was read."""
    while rest and not rest.endswith(b"\n"):
        rest = readline(BLOCK_SIZE)


def read_texts(block: Block, layout: str) -> Texts:
    """The texts of a block. Lines end with LF or CRLF; blank ones are no texts.

    Args:
        layout: "sentences" (one a line, blank lines between documents; in JSON, one document a line and one
            sentence a line of its text), "documents" (one a line) or "labelled" (label TAB text [TAB text];
            in JSON, `label`, `text` and perhaps `text_b`).
    """
    content = block.read()
    found = Texts([], [], [], content.count(b"\n") + (not content.endswith(b"\n")), [])
    if block.start == 0:
        content = content.removeprefix(BOM)
        found.starts.append(0)
    lines = _decode(content.removesuffix(b"\n"), found.bad_lines)
    if add := _READERS.get((layout, block.file.is_json)):
        for number, line in enumerate(lines, start=1):
            if line and not line.isspace():
                try:
                    add(found, line)
                except BadLineError as error:
                    found.bad_lines.append((number, str(error)))
        found.bad_lines.sort()
    elif layout == "documents":
        found.texts.extend(line for line in lines if line and not line.isspace())
        found.starts.extend(range(len(found.texts)))
    else:
        for line in lines:
            if line and not line.isspace():
                found.texts.append(line)
            elif line is not None:
                found.starts.append(len(found.texts))
    return found


def _decode(content: bytes, bad_lines: list[tuple[int, str]]) -> list[str | None]:
    """Lines without their ends; None for each that cannot be used."""
    found: list[str | None] = []
    try:
        if len(content) < LONGEST_LINE and b"\0" not in content:  # all at once is several times as fast
            text = content.decode("utf-8")
            found += (
                [line.removesuffix("\r") for line in text.split("\n")] if "\r" in text else text.split("\n")
            )
            return found
    except UnicodeDecodeError:
        pass
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            found.append(_decode_line(line))
        except BadLineError as error:
            found.append(None)
            bad_lines.append((number, str(error)))
    return found


def _decode_line(line: bytes) -> str:
    if len(line) >= LONGEST_LINE:
        raise BadLineError(f"longer than {LONGEST_LINE >> 20} MiB")
    if b"\0" in line:
        raise BadLineError(f"a NUL byte (byte {line.index(0) + 1}): the whole line is left out")
    try:
        return line.removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadLineError(f"{NOT_UTF8} (byte {error.start + 1} is 0x{line[error.start]:02x})") from None


def _add_labelled(found: Texts, line: str) -> None:
    label, *texts = line.split("\t")
    if len(texts) not in (1, 2):
        raise BadLineError(f"expected label TAB text [TAB text], but there are {len(texts)} TABs")
    label = label.strip()
    if not (label.isascii() and label.isdecimal()):
        raise BadLineError(f"the label must be a whole number from 0, but is '{label[:40]}' instead")
    _add_label(found, int(label[:20]), texts)


def _add_label(found: Texts, label: int, texts: list[str]) -> None:
    if label > LARGEST_LABEL:
        raise BadLineError(f"the label must be at most {LARGEST_LABEL}")
    if not texts[0].strip():
        raise BadLineError("no text after the label")
    found.starts.append(len(found.texts))
    found.texts.extend(texts if texts[-1].strip() else texts[:1])
    found.labels.append(label)


def _add_json_sentences(found: Texts, line: str) -> None:
    sentences = _json_text(_json_object(line), "text").split("\n")
    found.starts.append(len(found.texts))
    found.texts.extend(sentence for sentence in sentences if sentence and not sentence.isspace())


def _add_json_document(found: Texts, line: str) -> None:
    text = _json_text(_json_object(line), "text")
    found.starts.append(len(found.texts))
    found.texts.append(text)


def _add_json_labelled(found: Texts, line: str) -> None:
    item = _json_object(line)
    label = item.get("label")
    if type(label) is not int or label < 0:
        raise BadLineError('expected a JSON object with a whole number from 0 under "label"')
    names = ("text", "text_b") if "text_b" in item else ("text",)
    _add_label(found, label, [_json_text(item, name) for name in names])


def _json_object(line: str) -> dict[str, object]:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadLineError(f"not JSON ({error})") from None
    if not isinstance(item, dict):
        raise BadLineError(f"expected a JSON object, but is {type(item).__name__} instead")
    return item


def _json_text(item: dict[str, object], name: str) -> str:
    text = item.get(name)
    if not isinstance(text, str):
        raise BadLineError(f'expected a JSON object with a text under "{name}"')
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise BadLineError(f'"{name}" holds half of a surrogate pair') from None
    if "\0" in text:
        raise BadLineError(f'"{name}" holds a NUL character')
    return text


_READERS: dict[tuple[str, bool], Callable[[Texts, str], None]] = {
    ("sentences", True): _add_json_sentences,
    ("documents", True): _add_json_document,
    ("labelled", False): _add_labelled,
    ("labelled", True): _add_json_labelled,
}
