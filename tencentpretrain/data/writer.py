"""Writes a token store, document by document."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tencentpretrain.data.store import CONTINUES, COUNTS, DTYPES, FORMAT, VERSION, Array, checksum, unmarked
from tencentpretrain.errors import DataError, UserError
from tencentpretrain.files import read_json, write_json

if TYPE_CHECKING:
    from tencentpretrain.tokenizers.base import Tokenizer

SHARD_TOKENS = 2**30  # a shard that has so many is closed; it ends where a document does
OWN_FILES = re.compile(
    r"(meta|progress)\.json|(tgt_)?tokenizer|\d{5}\.(tokens|sentences|documents|labels|words)"
)
PROGRESS = "progress.json"  # how far an unfinished store is


class ArrayFile:
    """An array that grows on disk, with its checksum.

    Args:
        entries_num: how many entries are kept of what an earlier run wrote.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], entries_num: int = 0) -> None:
        self.path = path
        self.entries_num = entries_num
        self._dtype = dtype
        self._digest = hashlib.blake2b(digest_size=16)
        self._file = path.open("r+b" if entries_num else "w+b")
        self._file.truncate(entries_num * dtype.itemsize)
        while block := self._file.read(1 << 20):
            self._digest.update(block)

    def append(self, values: npt.ArrayLike) -> None:
        array = np.ascontiguousarray(values, dtype=self._dtype)
        self.entries_num += len(array)
        self._digest.update(array.data)
        self._file.write(array.data)

    def sync(self) -> None:
        """Make what was written survive a power cut."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> dict[str, Any]:
        self.sync()
        self._file.close()
        return {"size": self.entries_num * self._dtype.itemsize, "blake2b": self._digest.hexdigest()}


class BitFile(ArrayFile):
    """Bits that grow on disk, eight in a byte, the first one lowest.

    Args:
        bytes_num: how many bytes are kept of what an earlier run wrote.
        rest: the bits it had for the next byte.
    """

    def __init__(self, path: Path, bytes_num: int, rest: list[bool]) -> None:
        super().__init__(path, np.dtype(np.uint8), bytes_num)
        self._rest = np.array(rest, bool)

    @property
    def rest(self) -> list[bool]:
        """The bits for the next byte."""
        return [bool(bit) for bit in self._rest]

    def append(self, values: npt.ArrayLike) -> None:
        bits = np.concatenate((self._rest, np.asarray(values, bool)))
        whole = len(bits) // 8 * 8
        super().append(np.packbits(bits[:whole], bitorder="little"))
        self._rest = bits[whole:]

    def close(self) -> dict[str, Any]:
        super().append(np.packbits(self._rest, bitorder="little"))
        return super().close()


class _ShardWriter:
    """Writes the files of a shard; `state`, if not empty, is where an earlier run was."""

    def __init__(
        self, directory: Path, number: int, dtype: str, layout: str, with_words: bool, state: dict[str, Any]
    ) -> None:
        dtypes = {"tokens": dtype} | DTYPES
        del dtypes["words"]
        if layout == "documents":
            del dtypes["documents"]
        if layout != "labelled":
            del dtypes["labels"]
        entries = state.get("entries", {})
        self._files = {
            kind: ArrayFile(
                directory / f"{number:05d}.{kind}", np.dtype(name).newbyteorder("<"), entries.get(kind, 0)
            )
            for kind, name in dtypes.items()
        }
        self._words = None
        if with_words:
            path, rest = directory / f"{number:05d}.words", state.get("words_rest", [])
            self._files["words"] = self._words = BitFile(path, entries.get("words", 0), rest)
        if not state:
            self._files["sentences"].append([0])
        self._last_start: int = state.get("last_start", -1)
        self.tokens_num: int = state.get("tokens_num", 0)
        self.sentences_num: int = state.get("sentences_num", 0)

    def sync(self) -> None:
        for file in self._files.values():
            file.sync()

    def state(self) -> dict[str, Any]:
        entries = {kind: file.entries_num for kind, file in self._files.items()}
        found = {"entries": entries, "last_start": self._last_start}
        if self._words is not None:
            found["words_rest"] = self._words.rest
        return found | {"tokens_num": self.tokens_num, "sentences_num": self.sentences_num}

    @property
    def documents_num(self) -> int:
        if documents := self._files.get("documents"):
            return documents.entries_num - (self._last_start == self.sentences_num)
        return self.sentences_num

    def append(self, tokens: Array, lengths: Array, starts: Array, labels: Array | None) -> None:
        starts = np.unique(self.sentences_num + starts)
        known = self.sentences_num or self._last_start == 0 or not len(lengths)
        assert known or not starts[0], "the first sentence starts a document"
        ends = self.tokens_num + np.cumsum(lengths, dtype=np.int64)
        self.tokens_num += len(tokens)
        self.sentences_num += len(lengths)
        if self.tokens_num >= 2**32:
            raise DataError("a document has more than 4 billion tokens; separate documents by empty lines.")
        if self._words is not None:
            self._words.append(tokens >= CONTINUES)
            tokens = unmarked(tokens)
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
            del files[documents.path.name]
        return {count: getattr(self, count) for count in COUNTS} | {"files": files}


class StoreWriter:
    """Writes a store, document by document; memory does not depend on their number.

    Args:
        directory: exists; gets its final name after `close` (see files.complete_directory).
        tokenizer: saved with the store.
        layout: one of those of `corpora.read_texts`.
        tgt_tokenizer: of every second text, where it is another one; saved too.
        words: what found the words of the texts; a bit a token is then kept of them.
        earlier: the `state` of an earlier run, to go on from there.
    """

    def __init__(
        self,
        directory: Path,
        tokenizer: Tokenizer,
        layout: str,
        tgt_tokenizer: Tokenizer | None = None,
        words: dict[str, Any] | None = None,
        shard_tokens: int = SHARD_TOKENS,
        earlier: dict[str, Any] | None = None,
    ) -> None:
        self.directory = directory
        self.tokenizer = tokenizer
        self.layout = layout
        self.tgt_tokenizer = tgt_tokenizer
        self.words = words
        self.dtype = token_dtype(max(tokenizer.vocab_size, tgt_tokenizer.vocab_size if tgt_tokenizer else 0))
        anew: dict[str, Any] = {"closed": [], "labels_num": 0, "shard": {}}
        state = anew if earlier is None else earlier
        self.labels_num: int = state["labels_num"]
        self._shard_tokens = shard_tokens
        self._closed: list[dict[str, Any]] = state["closed"]
        self._shard = None if state["shard"] is None else self._new_shard(state["shard"])
        self._remove_unnamed()

    def _new_shard(self, state: dict[str, Any]) -> _ShardWriter:
        with_words = self.words is not None
        return _ShardWriter(self.directory, len(self._closed), self.dtype, self.layout, with_words, state)

    def _remove_unnamed(self) -> None:
        """Remove what belongs neither to a shard that was begun nor to the progress.

        Closed shards keep files that the store will not have: a run that goes on from before needs them.
        """
        begun = {f"{number:05d}" for number in range(len(self._closed) + (self._shard is not None))}
        for entry in self.directory.iterdir():
            ours = OWN_FILES.fullmatch(entry.name) or re.fullmatch(r"\..+\.\d+\.tmp", entry.name)
            if ours and entry.name != PROGRESS and entry.stem not in begun:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def state(self) -> dict[str, Any]:
        """For a run that goes on from here, once it is given to `save_progress`."""
        return {
            "closed": [*self._closed],
            "labels_num": self.labels_num,
            "shard": None if self._shard is None else self._shard.state(),
        }

    def save_progress(self, progress: dict[str, Any]) -> None:
        """Keep everything appended so far, and `progress`, which says where runs may go on."""
        if self._shard is not None:
            self._shard.sync()
        write_json(self.directory / PROGRESS, progress)
        self._remove_unnamed()

    def count(self, what: str) -> int:
        """How many there are so far: one of COUNTS."""
        counts: list[int] = [entry[what] for entry in self._closed]
        return sum(counts) + (0 if self._shard is None else getattr(self._shard, what))

    def append(self, tokens: Array, lengths: Array, starts: Array, labels: Array | None = None) -> None:
        """Add sentences.

        Args:
            tokens: the ids of all of them, one after the other; with `words`, those of tokens that go on with
                a word have CONTINUES added.
            lengths: tokens of each.
            starts: indices of the sentences that start a document, ascending; an index may be repeated, and
                may be `len(lengths)`: the sentence added next then starts one.
            labels: one for each document that starts here.
        """
        assert self._shard is not None, "the last shard is not closed"
        if labels is not None and len(labels):
            self.labels_num = max(self.labels_num, int(labels.max()) + 1)
        if self._shard.tokens_num >= self._shard_tokens and len(starts) and starts[0] < len(lengths):
            cut = int(starts[0])
            tokens_cut = int(lengths[:cut].sum())
            self._shard.append(tokens[:tokens_cut], lengths[:cut], starts[:0], None)
            self._closed.append(self._shard.close())
            self._shard = self._new_shard({})
            tokens, lengths, starts = tokens[tokens_cut:], lengths[cut:], starts - cut
        self._shard.append(tokens, lengths, starts, labels)

    def close_last_shard(self) -> None:
        """Nothing is appended any more."""
        if self._shard is not None:
            self._closed.append(self._shard.close())
            self._shard = None

    def close(self, options: dict[str, Any], corpus: dict[str, Any]) -> None:
        """Complete the store.

        Args:
            options: the data options of the user, which pretrain.py takes over.
            corpus: what the store was made from.
        """
        self.close_last_shard()
        self._remove_unnamed()
        tokenizers = {"tokenizer": self.tokenizer}
        if self.tgt_tokenizer is not None:
            tokenizers["tgt_tokenizer"] = self.tgt_tokenizer
        for name, tokenizer in tokenizers.items():
            tokenizer.save(self.directory / name)
        meta = {
            "format": FORMAT,
            "version": VERSION,
            "layout": self.layout,
            "dtype": self.dtype,
            **{count: self.count(count) for count in COUNTS},
            "labels_num": self.labels_num,
            **{
                name: {
                    "kind": tokenizer.kind,
                    "fingerprint": tokenizer.fingerprint,
                    "vocab_size": tokenizer.vocab_size,
                }
                for name, tokenizer in tokenizers.items()
            },
            "options": options,
            "corpus": corpus,
            "shards": self._closed,
        }
        if self.words is not None:
            meta["words"] = self.words
        write_json(self.directory / "meta.json", meta | {"checksum": checksum(meta)})
        for number, shard in enumerate(self._closed):
            name = f"{number:05d}.documents"
            if name not in shard["files"]:
                (self.directory / name).unlink(missing_ok=True)


def token_dtype(vocab_size: int) -> str:
    """The smallest type that holds every id."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def check_replaceable(path: Path, option: str = "--dataset_path") -> None:
    """Refuse to write a store over anything that is not one.

    Raises:
        DataError: `path` exists and is neither a token store alone nor an empty directory, or lies in a file.
    """
    if not path.exists():
        parent = next(parent for parent in path.parents if parent.exists())
        if not parent.is_dir():
            raise DataError(f"{option} {path}: {parent} is a file, no directory; choose another {option}.")
        return
    what = "is a file"
    if path.is_dir():
        others = sorted(entry.name for entry in path.iterdir() if not OWN_FILES.fullmatch(entry.name))
        if not others and (_is_store(path) or not any(path.iterdir())):
            return
        what = f"is a directory that holds '{others[0]}'" if others else "is a directory"
    raise DataError(
        f"{path} {what}, no token store, so it is not overwritten; remove it or choose another {option}."
    )


def _is_store(path: Path) -> bool:
    """Whether this is a token store, of whatever version and in whatever state."""
    try:
        meta = read_json(path / "meta.json")
    except UserError:
        return False
    return isinstance(meta, dict) and meta.get("format") == FORMAT
