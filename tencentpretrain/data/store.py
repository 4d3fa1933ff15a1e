"""The token store: a corpus as arrays on disk, tokenised once, memory-mapped by whatever builds examples.

A directory with, per shard, `00000.tokens` (ids), `00000.sentences` (n+1 token offsets), `00000.documents`
(m+1 sentence offsets; absent where every document is one sentence), `00000.labels` (one a document, in
labelled corpora) and `00000.words` (a bit a token, lowest first: whether it goes on with a word; where they
were asked for); the tokenizer; and `meta.json`, written last. `writer.py` writes it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import mmap
import resource
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tencentpretrain.errors import DataError, UserError
from tencentpretrain.files import json_text, read_json

if TYPE_CHECKING:
    from tencentpretrain.tokenizers.base import Tokenizer

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]

FORMAT = "tencentpretrain token store"
VERSION = 1
COUNTS = ("tokens_num", "sentences_num", "documents_num")
SIDES = ("tokenizer", "tgt_tokenizer")
TYPES = {"layout": str, "dtype": str, "labels_num": int, "options": dict, "corpus": dict, "shards": list}
DTYPES = {  # that of tokens is in meta.json
    "sentences": "uint32",
    "documents": "uint32",
    "labels": "int32",
    "words": "uint8",
}
CONTINUES = 1 << 31  # added, where they travel together, to the id of a token that goes on with a word
REMAKE = "make it with preprocess.py"  # what to do about an unusable store
MANY_SHARDS = 50
_AT_ONCE = 1 << 16  # borders that are compared


@dataclasses.dataclass(frozen=True)
class Shard:
    """One part of a store; offsets inside the arrays are relative to the shard."""

    tokens: Array
    sentences: Array
    documents: Array | None  # None: every document is one sentence
    labels: Array | None
    words: Array | None
    first_token: int
    first_sentence: int
    first_document: int


class TokenStore:
    """A tokenised corpus. Tokens, sentences and documents are numbered through all shards.

    Use `TokenStore.open`. All accessors take arrays of any shape and return int64 arrays of that shape.

    Attributes:
        marks_words: whether `tokens_at` adds CONTINUES to the ids of tokens that go on with a word.
    """

    def __init__(
        self, path: Path, meta: dict[str, Any], shards: list[Shard], marks_words: bool = False
    ) -> None:
        self.path = path
        self.meta = meta
        self.shards = shards
        self.layout: str = meta["layout"]
        self.options: dict[str, Any] = meta["options"]
        self.tokens_num: int = meta["tokens_num"]
        self.sentences_num: int = meta["sentences_num"]
        self.documents_num: int = meta["documents_num"]
        self.labels_num: int = meta["labels_num"]
        self.has_words = "words" in meta
        self.marks_words = marks_words
        self._vocab_size: int = max(meta[side]["vocab_size"] for side in SIDES if side in meta)
        self._first_tokens = np.array([shard.first_token for shard in shards])
        self._first_sentences = np.array([shard.first_sentence for shard in shards])
        self._first_documents = np.array([shard.first_document for shard in shards])
        self._tokenizers: dict[str, Tokenizer] = {}

    def __reduce__(self) -> tuple[Callable[[Path, bool], TokenStore], tuple[Path, bool]]:
        return TokenStore.open, (self.path, self.marks_words)  # another process maps the files itself

    @classmethod
    def open(cls, path: str | Path, marks_words: bool = False) -> TokenStore:
        """Map a store; sizes are checked, contents only by `verify`.

        Raises:
            DataError: not a store, incomplete, truncated, or written by a newer version.
        """
        path = Path(path)
        meta = read_meta(path)
        try:
            shards = []
            firsts = [0, 0, 0]
            _check_types(meta)
            if len(meta["shards"]) > MANY_SHARDS:
                _allow_open_files()
            for entry in meta["shards"]:
                shards.append(_open_shard(path, entry, meta["dtype"], firsts))
                firsts = [first + entry[count] for first, count in zip(firsts, COUNTS, strict=True)]
            if not shards or firsts != [meta[count] for count in COUNTS]:
                raise DataError(f"{path}: the shards do not add up to what meta.json says; {REMAKE} again.")
            return cls(path, meta, shards, marks_words)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path / 'meta.json'} is damaged ({error!r}); {REMAKE} again.") from None

    def marking_words(self) -> TokenStore:
        """The same store, which `marks_words`."""
        return TokenStore(self.path, self.meta, self.shards, marks_words=True)

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises:
            UserError: a file was changed, or the tokenizer is not there.
        """
        if self.meta.get("checksum", "") not in ("", checksum(self.meta)):  # older stores have none
            raise self._changed(self.path / "meta.json", "its checksum is wrong")
        for side in SIDES:
            if side in self.meta:
                self._load_tokenizer(side)
        files = {name: file for entry in self.meta["shards"] for name, file in entry["files"].items()}
        for name, file in files.items():
            digest = hashlib.blake2b(digest_size=16)
            with (self.path / name).open("rb") as handle:
                while block := handle.read(1 << 20):
                    digest.update(block)
            if digest.hexdigest() != file.get("blake2b"):
                raise self._changed(self.path / name, "its checksum is wrong")

    def check_borders(self) -> None:
        """Compare the borders of sentences and documents with those before them: a nanosecond each.

        Raises:
            DataError: they do not ascend, so that whoever used them would read something else.
        """
        for shard in self.shards:
            # Only in a pair of texts with a label one may be empty.
            for borders, least in ((shard.sentences, self.layout != "labelled"), (shard.documents, 1)):
                if borders is not None and not _ascend(borders, int(least)):
                    raise self._changed(self.path, "borders of its sentences or documents do not ascend")

    def _changed(self, path: Path, sign: str) -> DataError:
        return DataError(f"{path} was changed after it was made ({sign}); {REMAKE} again.")

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer the store was made with."""
        return self._load_tokenizer("tokenizer")

    @property
    def tgt_tokenizer(self) -> Tokenizer:
        """That of the second text of each pair."""
        return self._load_tokenizer("tgt_tokenizer" if "tgt_tokenizer" in self.meta else "tokenizer")

    def _load_tokenizer(self, side: str) -> Tokenizer:
        if side not in self._tokenizers:
            from tencentpretrain.tokenizers import load_tokenizer

            tokenizer = load_tokenizer(self.path / side)
            if tokenizer.fingerprint != self.meta[side]["fingerprint"]:
                raise DataError(
                    f"{self.path / side} is not the tokenizer the store was made with; {REMAKE} again."
                )
            self._tokenizers[side] = tokenizer
        return self._tokenizers[side]

    def tokens_at(self, positions: Indices) -> Indices:
        """Token ids at positions of the store; DataError for one that is not in the vocabulary."""
        ids = self._gather(positions, self._first_tokens, _marked if self.marks_words else _tokens)
        plain = unmarked(ids) if self.marks_words else ids
        if ids.size and (largest := plain.max()) >= self._vocab_size:
            sign = f"id {largest} in its tokens, but the vocabulary has {self._vocab_size}"
            raise self._changed(self.path, sign)
        return ids

    def sentence_starts(self, sentences: Indices) -> Indices:
        """Position of the first token of each sentence."""
        return self._gather(sentences, self._first_sentences, _first_token)

    def sentence_ends(self, sentences: Indices) -> Indices:
        """Position after the last token of each sentence."""
        return self._gather(
            sentences, self._first_sentences, lambda shard, local: _first_token(shard, local + 1)
        )

    def document_starts(self, documents: Indices) -> Indices:
        """The first sentence of each document."""
        return self._gather(documents, self._first_documents, _first_sentence)

    def document_ends(self, documents: Indices) -> Indices:
        """The sentence after the last one of each document."""
        return self._gather(
            documents, self._first_documents, lambda shard, local: _first_sentence(shard, local + 1)
        )

    def document_of_sentence(self, sentences: Indices) -> Indices:
        """The document each sentence belongs to."""
        return self._gather(sentences, self._first_sentences, _document_of_sentence)

    def sentence_of_token(self, positions: Indices) -> Indices:
        """The sentence each position belongs to."""
        return self._gather(positions, self._first_tokens, _sentence_of_token)

    def labels_at(self, documents: Indices) -> Indices:
        """Labels of documents, in a labelled store."""
        return self._gather(documents, self._first_documents, _labels)

    def _gather(self, ids: Indices, firsts: Indices, look_up: Callable[[Shard, Indices], Array]) -> Indices:
        ids = np.asarray(ids, dtype=np.int64)
        if len(self.shards) == 1:
            return look_up(self.shards[0], ids).astype(np.int64, copy=False)
        found = np.empty(ids.shape, dtype=np.int64)
        where = np.searchsorted(firsts, ids, side="right") - 1
        for number in np.unique(where):
            here = where == number
            found[here] = look_up(self.shards[number], ids[here] - firsts[number])
        return found


def _ascend(borders: Array, least: int) -> bool:
    """Whether borders begin with 0 and grow by `least` or more."""
    parts = (borders[start : start + _AT_ONCE + 1] for start in range(0, len(borders), _AT_ONCE))
    return bool(borders[0] == 0) and all((part[:-1] + least <= part[1:]).all() for part in parts)


def unmarked(ids: Array) -> Array:
    """Ids without CONTINUES."""
    plain: Array = ids & (CONTINUES - 1)
    return plain


def _tokens(shard: Shard, positions: Indices) -> Array:
    return shard.tokens[positions]


def _marked(shard: Shard, positions: Indices) -> Array:
    assert shard.words is not None, "only a store that has_words can mark them"
    bits = shard.words[positions >> 3] >> (positions & 7) & 1
    ids: Array = shard.tokens[positions] + bits * CONTINUES
    return ids


def _first_token(shard: Shard, sentences: Indices) -> Array:
    return shard.sentences[sentences] + np.int64(shard.first_token)


def _first_sentence(shard: Shard, documents: Indices) -> Array:
    offsets = documents if shard.documents is None else shard.documents[documents]
    return offsets + np.int64(shard.first_sentence)


def _document_of_sentence(shard: Shard, sentences: Indices) -> Array:
    if shard.documents is None:
        return sentences + shard.first_document
    # Keys of another type than the array's would make numpy convert the whole array.
    keys = sentences.astype(shard.documents.dtype)
    return np.searchsorted(shard.documents, keys, side="right") - 1 + shard.first_document


def _sentence_of_token(shard: Shard, positions: Indices) -> Array:
    keys = positions.astype(shard.sentences.dtype)
    return np.searchsorted(shard.sentences, keys, side="right") - 1 + shard.first_sentence


def _labels(shard: Shard, documents: Indices) -> Array:
    assert shard.labels is not None, "only a store of layout 'labelled' has labels"
    return shard.labels[documents]


def _check_types(meta: dict[str, Any]) -> None:
    """Raise TypeError or KeyError for a value of a type that no store has."""
    sides = [meta[side] for side in SIDES if side in meta or side == "tokenizer"]
    expected = [(meta[name], kind) for name, kind in (TYPES | dict.fromkeys(COUNTS, int)).items()]
    expected += [(side[name], str) for side in sides for name in ("kind", "fingerprint")]
    expected += [(side["vocab_size"], int) for side in sides]
    for value, kind in expected:
        if not isinstance(value, kind):
            raise TypeError(f"{value!r} is no {kind.__name__}")


def checksum(meta: dict[str, Any]) -> str:
    """Of what meta.json says besides it."""
    said = json_text({name: value for name, value in meta.items() if name != "checksum"})
    return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()


def _open_shard(path: Path, entry: dict[str, Any], dtype: str, firsts: list[int]) -> Shard:
    dtypes = DTYPES | {"tokens": dtype}
    arrays = {}
    for name, file in entry["files"].items():
        kind = name.partition(".")[2]
        arrays[kind] = _map(path / name, np.dtype(dtypes[kind]).newbyteorder("<"), file["size"])
    tokens, sentences = arrays["tokens"], arrays["sentences"]
    documents, labels, words = (arrays.get(kind) for kind in ("documents", "labels", "words"))
    tokens_num, sentences_num, documents_num = (entry[count] for count in COUNTS)
    fits = len(tokens) == tokens_num
    fits = fits and len(sentences) == sentences_num + 1 and sentences[-1] == tokens_num
    if documents is None:
        fits = fits and documents_num == sentences_num
    else:
        fits = fits and len(documents) == documents_num + 1 and documents[-1] == sentences_num
    fits = fits and (labels is None or len(labels) == documents_num)
    if not fits or (words is not None and len(words) != -(-tokens_num // 8)):
        raise DataError(f"{path}: its arrays do not fit each other; {REMAKE} again.")
    return Shard(tokens, sentences, documents, labels, words, *firsts)


def _map(path: Path, dtype: np.dtype[Any], size: int) -> Array:
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise DataError(f"{path} is missing, so the token store is incomplete; {REMAKE} again.") from None
    if found != size:
        raise DataError(
            f"{path} has {found} bytes instead of {size}: the token store is truncated or was changed; "
            f"copy it again or {REMAKE} again."
        )
    if size == 0:
        return np.empty(0, dtype)
    # Not np.memmap: to make one, and to index it, costs several times as much.
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    return np.frombuffer(mapping, dtype, size // dtype.itemsize)


def _allow_open_files() -> None:
    """A mapping keeps its file open, and the usual limit is 1024: raise it as far as the system lets us."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def read_meta(path: Path) -> dict[str, Any]:
    """What `meta.json` of a store says.

    Raises:
        DataError: `path` is not a complete token store of this version.
    """
    if path.is_file():
        raise DataError(
            f"{path} is a file, expected the directory of a token store. Datasets of other toolkits cannot "
            f"be read; {REMAKE} from the corpus."
        )
    if not path.is_dir():
        raise DataError(f"{path}: there is no such token store; {REMAKE}.")
    if not (path / "meta.json").is_file():
        if any(path.glob("*.tokens")):
            raise DataError(f"{path}: the token store has no meta.json, so it is incomplete; {REMAKE} again.")
        raise DataError(f"{path} is not a token store (it has no meta.json); {REMAKE}.")
    try:
        meta = read_json(path / "meta.json")
    except UserError as error:
        raise DataError(f"{path} is not a usable token store: {error}") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise DataError(f"{path} is not a token store (its meta.json is of something else); {REMAKE}.")
    if meta.get("version") != VERSION:
        raise DataError(
            f"{path} is a token store of version {meta.get('version')}, but this program reads version "
            f"{VERSION}; update the program or {REMAKE} again."
        )
    return meta
