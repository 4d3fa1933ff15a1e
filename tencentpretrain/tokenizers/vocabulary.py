"""Vocabulary files: tokens by id, merges, names of special tokens; checked before anything uses them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tencentpretrain.errors import DataError, UserError
from tencentpretrain.files import complete_file, read_json, write_json

_MOST_TOKENS = 2**24
ROLES = ("pad", "unk", "cls", "sep", "mask")

# Names a role may have, in the order they are tried where no map of special tokens says: BERT's, those of
# fairseq and SentencePiece, GPT-2's one token for everything.
USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "pad": ("[PAD]", "<pad>", "<|endoftext|>"),
    "unk": ("[UNK]", "<unk>", "<|endoftext|>"),
    "cls": ("[CLS]", "<s>", "<|endoftext|>", "</s>"),  # the last is all that T5 has
    "sep": ("[SEP]", "</s>", "<|endoftext|>"),
    "mask": ("[MASK]", "<mask>"),
}

MAP_NAME = "special_tokens_map.json"
MAP_NAMES = (MAP_NAME, "tokenizer_config.json")  # the latter alone is what Transformers 5 writes


def read_bytes(path: Path, what: str) -> bytes:
    """Content of a file of the tokenizer; `what` it is, for messages.

    Raises:
        DataError: no such file, a directory, not readable, empty, or what a failed download leaves.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, expected {what}.") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a directory, expected {what}.") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}, expected {what}.") from None
    if not content.strip():
        raise DataError(f"{path} is empty, expected {what}.")
    if content.startswith(b"version https://git-lfs"):
        raise DataError(
            f"{path} is a git-lfs pointer, not {what}; fetch the file itself with 'git lfs pull'."
        )
    if content[:200].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise DataError(f"{path} is an HTML page, not {what}; download the file itself.")
    return content


def read_lines(path: Path, what: str) -> list[str]:
    """Lines without their ends (LF or CRLF); raises DataError as `read_bytes`, and where not UTF-8."""
    content = read_bytes(path, what)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 (byte {error.start}), expected {what}.") from None
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_vocabulary(path: Path) -> list[str]:
    """Tokens by id, from one token a line, GPT-2's JSON (token to id), or what a `tokenizer.json` holds.

    What follows a space or tab on a line (published files may carry counts) is left out. A blank line keeps
    its id and is no token.

    Raises:
        DataError: as `read_bytes`; a token twice; ids that are not 0, 1, 2 …
    """
    what = "a vocabulary (one token a line, or JSON)"
    if is_json(path):
        return _from_json(path, _read_json(path, what))
    lines = read_lines(path, what)
    tokens = [parse_line(line) for line in lines]
    if len(set(tokens)) < len(tokens):
        seen: dict[str, int] = {}
        for number, token in enumerate(tokens, start=1):
            if token and token in seen:
                raise DataError(f"{path}, line {number}: token '{token}' is on line {seen[token]} already.")
            seen[token] = number
    return tokens


def parse_line(line: str) -> str:
    """The token of a line; a line of spaces is the token itself."""
    line = line.removesuffix("\r")
    return re.split("[ \t]", line, maxsplit=1)[0] if line.strip(" \t") else line


def write_vocabulary(path: Path, tokens: Sequence[str]) -> None:
    """What `read_vocabulary` reads: JSON if the name of the file says so, else a token a line."""
    if is_json(path):
        write_json(path, {token: id for id, token in enumerate(tokens)})
    else:
        with complete_file(path) as temporary:
            temporary.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8", newline="\n")


def is_json(path: Path) -> bool:
    return path.suffix == ".json"


def _read_json(path: Path, what: str) -> Any:
    read_bytes(path, what)
    try:
        value = read_json(path)
    except UserError as error:
        raise DataError(str(error)) from None
    if isinstance(value, dict) and isinstance(value.get("model"), dict):
        check_parts(path, value)
    return value


def check_parts(path: Path, parts: Any) -> None:
    """Refuse a `tokenizer.json` in which something has another type than the library that writes it gives it.

    Raises:
        DataError: with the key, what it is and what was expected.
    """
    if not isinstance(parts, dict):
        raise DataError(
            f"{path} is no tokenizer.json (it holds a {type(parts).__name__}, expected an object)."
        )
    for key, value, expected in _malformed(parts):
        raise DataError(f"{path}: `{key}` is {value!r}, expected {expected}.")


def _malformed(parts: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Key, value and what is expected instead."""
    for key in ("model", "normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if not isinstance(parts.get(key), dict | None):
            yield key, parts[key], "an object"
    model = parts.get("model") or {}
    vocabulary, merges, added = model.get("vocab", {}), model.get("merges", []), parts.get("added_tokens", [])
    number = f"a whole number from 0 to {_MOST_TOKENS - 1}"
    if isinstance(vocabulary, dict):
        yield from ((f"model.vocab.{name}", id, number) for name, id in vocabulary.items() if not _is_id(id))
    elif not isinstance(vocabulary, list):
        yield "model.vocab", vocabulary, "an object of ids, or a list of tokens with their scores"
    else:
        for place, entry in enumerate(vocabulary):
            match entry:
                case [str(), int() | float()]:
                    continue
            yield f"model.vocab.{place}", entry, "a token with its score"
    if not isinstance(merges, list):
        yield "model.merges", merges, "a list"
        return
    for place, entry in enumerate(merges):
        if not isinstance(entry, str) and not (
            isinstance(entry, list) and all(isinstance(part, str) for part in entry)
        ):
            yield f"model.merges.{place}", entry, "two parts"
    for place, entry in enumerate(added if isinstance(added, list) else [added]):
        match entry:
            case {"content": str(), "id": int(id), "special": bool()} if _is_id(id):
                continue
        yield (
            f"added_tokens.{place}",
            entry,
            f"an object with a text 'content', an 'id' ({number}) and 'special'",
        )


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST_TOKENS


def _from_json(path: Path, value: Any) -> list[str]:
    if isinstance(value, dict) and isinstance(value.get("model"), dict):
        value = _with_added_tokens(path, value)
    if not isinstance(value, dict) or not value:
        raise DataError(
            f'{path}: expected an object that gives every token its id, such as {{"a": 0, "b": 1}}.'
        )
    ids = sorted(value.items(), key=lambda item: item[1] if isinstance(item[1], int) else -1)
    for expected, (token, id) in enumerate(ids):
        if type(id) is not int or id != expected:
            raise DataError(
                f"{path}: token '{token}' has id {id!r}; ids must be 0, 1, 2 …, {expected} is expected here."
            )
    return [token for token, _ in ids]


def _with_added_tokens(path: Path, value: dict[str, Any]) -> Any:
    vocabulary = value["model"].get("vocab")
    if not isinstance(vocabulary, dict):
        kind = value["model"].get("type", "this")
        raise DataError(f"{path}: a {kind} model; give its SentencePiece file with --spm_model_path.")
    return vocabulary | {token["content"]: token["id"] for token in value.get("added_tokens", ())}


def read_added_tokens(path: Path) -> tuple[str, ...]:
    """Tokens that a `tokenizer.json` recognises as they stand; of other vocabulary files none."""
    value = _read_json(path, "a vocabulary") if is_json(path) else {}
    added = value.get("added_tokens") if isinstance(value, dict) else None
    return tuple(token["content"] for token in added) if isinstance(added, list) else ()


def read_merges(path: Path) -> list[tuple[str, str]]:
    """Pairs that a byte-level BPE joins, in order: two parts a line, or those inside a `tokenizer.json`.

    Raises:
        DataError: as `read_bytes`; a line that is no pair.
    """
    what = "merges (two parts a line)"
    if is_json(path):
        value = _read_json(path, what)
        model = value.get("model", {}) if isinstance(value, dict) else {}
        lines = [
            " ".join(merge) if isinstance(merge, list) else str(merge) for merge in model.get("merges", ())
        ]
        if not lines:
            raise DataError(f"{path} has no merges; give them with --merges_path.")
    else:
        lines = read_lines(path, what)
    pairs = []
    for number, line in enumerate(lines, start=1):
        if not line or line.startswith("#version"):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise DataError(
                f"{path}, line {number}: expected two parts with a space between, but is '{line}' instead."
            )
        pairs.append((left, right))
    return pairs


def write_merges(path: Path, merges: Sequence[tuple[str, str]]) -> None:
    with complete_file(path) as temporary:
        lines = "".join(f"{left} {right}\n" for left, right in merges)
        temporary.write_text(f"#version: 0.2\n{lines}", encoding="utf-8", newline="\n")


def read_special_tokens(path: Path) -> tuple[dict[str, str], list[str]]:
    """Names by role, and all names, from a map as Transformers and the published toolkits have it.

    `bos_token` and `eos_token` stand in for a missing `cls_token` and `sep_token`.

    Raises:
        DataError: not such a map.
    """
    value = _read_json(path, "a map of special tokens (JSON)")
    if not isinstance(value, dict):
        raise DataError(f'{path}: expected an object such as {{"mask_token": "[MASK]"}}.')
    found: dict[str, str] = {}
    further: list[str] = []
    for key, item in value.items():
        # A tokenizer_config.json says more than names, add_bos_token for example.
        if not key.endswith(("_token", "special_tokens")) or isinstance(item, bool):
            continue
        for name in item if isinstance(item, list) else [item]:
            name = name.get("content") if isinstance(name, dict) else name
            if name is None:
                continue
            if not isinstance(name, str) or not name:
                raise DataError(f"{path}: {key}: expected the text of a token, but is {name!r} instead.")
            further.append(name)
            if isinstance(item, str | dict):
                found[key] = name
    names = {role: found[f"{role}_token"] for role in ROLES if f"{role}_token" in found}
    for role, key in (("cls", "bos_token"), ("sep", "eos_token")):
        if role not in names and key in found:
            names[role] = found[key]
    return names, further
