"""Writes a token store, document by document."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tencentpretrain.data.store import COUNTS, DTYPES, FORMAT, VERSION, Array
from tencentpretrain.errors import DataError, UserError
from tencentpretrain.files import read_json, write_json

if TYPE_CHECKING:
    from tencentpretrain.tokenizers.base import Tokenizer

SHARD_TOKENS = 2**30  # a shard that has so many is closed; it ends where a document does
OWN_FILES = re.compile(r"meta\.json|tokenizer|\d{5}\.(tokens|sentences|documents|labels)")


class _ArrayFile:
    """An array that grows on disk, with its checksum."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path = path
        self.entries_num = 0
        self._dtype = dtype
        self._digest = hashlib.blake2b(digest_size=16)
        self._file = path.open("wb")

    def append(self, values: npt.ArrayLike) -> None:
        array = np.ascontiguousarray(values, dtype=self._dtype)
        self.entries_num += len(array)
        self._digest.update(array.data)
        self._file.write(array.data)

    def close(self) -> dict[str, Any]:
        self._file.close()
        return {"size": self.entries_num * self._dtype.itemsize, "blake2b": self._digest.hexdigest()}


class _ShardWriter:
    def __init__(self, directory: Path, number: int, dtype: str, layout: str) -> None:
        dtypes = {"tokens": dtype} | DTYPES
        if layout == "documents":
            del dtypes["documents"]
        if layout != "labelled":
            del dtypes["labels"]
        self._files = {
            kind: _ArrayFile(directory / f"{number:05d}.{kind}", np.dtype(name).newbyteorder("<"))
            for kind, name in dtypes.items()
        }
        self._files["sentences"].append([0])
        self._last_start = -1
        self.tokens_num = self.sentences_num = 0

    @property
    def documents_num(self) -> int:
        if documents := self._files.get("documents"):
            return documents.entries_num - (self._last_start == self.sentences_num)
        return self.sentences_num

    def append(self, tokens: Array, lengths: Array, starts: Array, labels: Array | None) -> None:
        starts = np.unique(self.sentences_num + starts)
        assert self.sentences_num or not len(lengths) or not starts[0], "the first sentence starts a document"
        ends = self.tokens_num + np.cumsum(lengths, dtype=np.int64)
        self.tokens_num += len(tokens)
        self.sentences_num += len(lengths)
        if self.tokens_num >= 2**32:
            raise DataError("a document has more than 4 billion tokens; separate documents by empty lines.")
        self._files["tokens"].append(tokens)
        self._files["sentences"].append(ends)
        self._append_starts(starts)
        if labels is not None:
            self._files["labels"].append(labels)

    def _append_starts(self, starts: Array) -> None:
        starts = starts[starts > self._last_start]
        if "documents" in self._files and len(starts):
            self._files["documents"].append(starts)
            self._last_start = int(starts[-1])

    def close(self) -> dict[str, Any]:
        """The entry of the shard in meta.json."""
        self._append_starts(np.array([self.sentences_num]))
        files = {file.path.name: file.close() for file in self._files.values()}
        documents = self._files.get("documents")
        if documents and self.documents_num == self.sentences_num:
            documents.path.unlink()
            del files[documents.path.name]
        return {count: getattr(self, count) for count in COUNTS} | {"files": files}


class StoreWriter:
    """Writes a store, document by document; memory does not depend on their number.

    Args:
        directory: exists and is empty; gets its final name after `close` (see files.complete_directory).
        tokenizer: saved with the store.
        layout: "sentences", "documents" or "labelled".
    """

    def __init__(
        self, directory: Path, tokenizer: Tokenizer, layout: str, shard_tokens: int = SHARD_TOKENS
    ) -> None:
        self.directory = directory
        self.tokenizer = tokenizer
        self.layout = layout
        self.dtype = token_dtype(tokenizer.vocab_size)
        self.labels_num = 0
        self._shard_tokens = shard_tokens
        self._shard = _ShardWriter(directory, 0, self.dtype, layout)
        self._closed: list[dict[str, Any]] = []

    def count(self, what: str) -> int:
        """How many there are so far: one of COUNTS."""
        counts: list[int] = [getattr(self._shard, what), *(entry[what] for entry in self._closed)]
        return sum(counts)

    def append(self, tokens: Array, lengths: Array, starts: Array, labels: Array | None = None) -> None:
        """Add sentences.

        Args:
            tokens: the ids of all of them, one after the other.
            lengths: tokens of each.
            starts: indices of the sentences that start a document, ascending; an index may be repeated, and
                may be `len(lengths)`: the sentence added next then starts one.
            labels: one for each document that starts here.
        """
        if labels is not None and len(labels):
            self.labels_num = max(self.labels_num, int(labels.max()) + 1)
        if self._shard.tokens_num >= self._shard_tokens and len(starts) and starts[0] < len(lengths):
            cut = int(starts[0])
            tokens_cut = int(lengths[:cut].sum())
            self._shard.append(tokens[:tokens_cut], lengths[:cut], starts[:0], None)
            self._closed.append(self._shard.close())
            self._shard = _ShardWriter(self.directory, len(self._closed), self.dtype, self.layout)
            tokens, lengths, starts = tokens[tokens_cut:], lengths[cut:], starts - cut
        self._shard.append(tokens, lengths, starts, labels)

    def close(self, options: dict[str, Any], corpus: dict[str, Any]) -> None:
        """Complete the store.

        Args:
            options: the data options of the user, which pretrain.py takes over.
            corpus: what the store was made from.
        """
        self.tokenizer.save(self.directory / "tokenizer")
        meta = {
            "format": FORMAT,
            "version": VERSION,
            "layout": self.layout,
            "dtype": self.dtype,
            **{count: self.count(count) for count in COUNTS},
            "labels_num": self.labels_num,
            "tokenizer": {
                "kind": self.tokenizer.kind,
                "fingerprint": self.tokenizer.fingerprint,
                "vocab_size": self.tokenizer.vocab_size,
            },
            "options": options,
            "corpus": corpus,
            "shards": [*self._closed, self._shard.close()],
        }
        write_json(self.directory / "meta.json", meta)


def token_dtype(vocab_size: int) -> str:
    """The smallest type that holds every id."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def check_replaceable(path: Path) -> None:
    """Refuse to write a store over anything that is not one.

    Raises:
        DataError: `path` exists and is neither a token store alone nor an empty directory.
    """
    if not path.exists():
        return
    what = "is a file"
    if path.is_dir():
        others = sorted(entry.name for entry in path.iterdir() if not OWN_FILES.fullmatch(entry.name))
        if not others and (_is_store(path) or not any(path.iterdir())):
            return
        what = f"is a directory that holds '{others[0]}'" if others else "is a directory"
    raise DataError(
        f"{path} {what}, no token store, so it is not overwritten; remove it or choose another "
        "--dataset_path."
    )


def _is_store(path: Path) -> bool:
    """Whether this is a token store, of whatever version and in whatever state."""
    try:
        meta = read_json(path / "meta.json")
    except UserError:
        return False
    return isinstance(meta, dict) and meta.get("format") == FORMAT
