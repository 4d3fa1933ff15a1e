"""What the lines of a corpus say, and why some cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

from tencentpretrain.data.corpora import LONGEST_LINE, Block

LARGEST_LABEL = 2**16 - 1  # a larger one is no class: most likely an identifier
NOT_UTF8 = "not UTF-8"  # how the reason begins why such a line cannot be used
CONVERT = "if it is text in another encoding, convert it (GBK: iconv -f GB18030 -t UTF-8)"
PROMPT = "{instruction} ### Instruction:{input} ### Response:"  # as published
BOM = b"\xef\xbb\xbf"


class Texts(NamedTuple):
    """What the lines of a block say."""

    texts: list[str]  # sentences, or documents, or the one or two texts of a labelled document
    starts: list[int]  # texts that start a document; may repeat, and the last may be in the next block
    labels: list[int]  # one a document, labelled corpora only
    lines_num: int
    bad_lines: list[tuple[int, str]]  # number in the block, from 1, and why it cannot be used


class BadLineError(ValueError):
    """A line that cannot be used; the message is the reason."""


def read_texts(block: Block, layout: str) -> Texts:
    """The texts of a block. Lines end with LF or CRLF; blank ones are no texts.

    Args:
        layout: "sentences" (one a line, blank lines between documents; in JSON, one document a line and one
            sentence a line of its text), "documents" (one a line), "labelled" (label TAB text [TAB text]; in
            JSON, `label`, `text` and perhaps `text_b`), "pairs" (source TAB target; in JSON, `text` and
            `text_b`) or "instructions" (JSON: `instruction`, perhaps `input`, `output`).
    """
    content = block.read()
    found = Texts([], [], [], content.count(b"\n") + (not content.endswith(b"\n")), [])
    if block.start == block.file.start:
        found.starts.append(0)
    if block.start == 0:
        content = content.removeprefix(BOM)
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
        raise BadLineError(f"the label must be at most {LARGEST_LABEL}; classes are numbered from 0")
    if not texts[0].strip():
        raise BadLineError("no text after the label")
    found.starts.append(len(found.texts))
    found.texts.extend(texts if texts[-1].strip() else texts[:1])
    found.labels.append(label)


def _add_pair(found: Texts, line: str) -> None:
    texts = line.split("\t")
    if len(texts) != 2:
        raise BadLineError(f"expected source TAB target, but there are {len(texts) - 1} TABs")
    _add_two(found, *texts)


def _add_json_pair(found: Texts, line: str) -> None:
    item = _json_object(line)
    _add_two(found, _json_text(item, "text"), _json_text(item, "text_b"))


def _add_instruction(found: Texts, line: str) -> None:
    item = {"instruction": "", "input": ""} | _json_object(line)
    instruction, given, output = (_json_text(item, name) for name in ("instruction", "input", "output"))
    _add_two(found, PROMPT.format(instruction=instruction, input=given), output)


def _add_two(found: Texts, first: str, second: str) -> None:
    if not (first.strip() and second.strip()):
        raise BadLineError("one of the two texts is empty")
    found.starts.append(len(found.texts))
    found.texts.extend((first, second))


def _add_json_sentences(found: Texts, line: str) -> None:
    lines = _json_text(_json_object(line), "text").split("\n")
    sentences = [sentence for sentence in lines if sentence and not sentence.isspace()]
    found.starts.append(len(found.texts))
    found.texts.extend(sentences or [""])  # which is then counted as a text without tokens


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
    return {name: value for name, value in item.items() if value is not None}


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
    ("pairs", False): _add_pair,
    ("pairs", True): _add_json_pair,
    ("instructions", False): _add_instruction,
    ("instructions", True): _add_instruction,
}
