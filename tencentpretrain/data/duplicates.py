"""Which documents were there before: equal ones have equal tokens, sentence borders and labels."""

from __future__ import annotations

import base64
import hashlib
import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tencentpretrain.data.store import Array, unmarked
from tencentpretrain.data.writer import ArrayFile

LARGEST_RUN = 1 << 22  # digests that are sorted together; to merge them takes as much memory again
DIGESTS = "digests"  # of the documents that are kept, for a run that goes on after an interruption


def documents_within(starts: Array, sentences_num: int, layout: str) -> Array:
    """Borders of the documents that begin and end here, as sentence numbers; in "sentences" one may go on."""
    return np.unique(starts if layout == "sentences" else np.append(starts, sentences_num))


def digests_of(tokens: Array, lengths: Array, borders: Array, labels: Array | None) -> Array:
    """BLAKE2b of 128 bits of each document, [n, 2] of uint64; which tokens go on with a word is no part."""
    if tokens.itemsize > 2:
        tokens = unmarked(tokens)
    token_ends = np.concatenate(([0], np.cumsum(lengths)))
    text, places = memoryview(tokens.tobytes()), (token_ends[borders] * tokens.itemsize).tolist()
    shape, bounds = memoryview(lengths.astype("<i8").tobytes()), (borders * 8).tolist()
    found = bytearray()
    for number, ((low, high), (first, last)) in enumerate(
        zip(itertools.pairwise(places), itertools.pairwise(bounds), strict=True)
    ):
        digest = hashlib.blake2b(shape[first:last], digest_size=16)
        digest.update(text[low:high])
        if labels is not None:
            digest.update(labels[number].tobytes())
        found += digest.digest()
    return np.frombuffer(bytes(found), "<u8").reshape(-1, 2)


class DigestSet:
    """Digests in 16 bytes each: sorted runs, of which two of similar size become one (O'Neil et al. 1996,
    "The log-structured merge-tree"), up to LARGEST_RUN. Those that grow no more are mapped from disk.

    Args:
        directory: for their files, which have no name and end with this process.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._runs: list[tuple[Array, Array]] = []  # the first and the second halves of digests

    def add(self, digests: Array) -> Array:
        """Whether each of [n, 2] digests is new; of equal ones the first is."""
        order = np.lexsort((digests[:, 1], digests[:, 0]))
        high, low = digests[order].T
        is_new = np.ones(len(order), bool)
        is_new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        for run_high, run_low in self._runs:
            at = np.minimum(np.searchsorted(run_high, high), len(run_high) - 1)
            is_new &= (run_high[at] != high) | (run_low[at] != low)
        if is_new.any():
            self._runs.append((high[is_new], low[is_new]))
            self._merge()
        found = np.empty_like(is_new)
        found[order] = is_new
        return found

    def _merge(self) -> None:
        while len(self._runs) > 1:
            (one, one_low), (other, other_low) = self._runs[-2:]
            if len(one) + len(other) > LARGEST_RUN:
                if not isinstance(one, np.memmap):
                    self._runs[-2] = self._on_disk(one, one_low)
                break
            if len(one) >= 2 * len(other):
                break
            at = np.searchsorted(one, other)
            self._runs[-2:] = [(np.insert(one, at, other), np.insert(one_low, at, other_low))]

    def _on_disk(self, high: Array, low: Array) -> tuple[Array, Array]:
        """Both in one file: the mapping keeps it open, and how many may be is limited."""
        with tempfile.TemporaryFile(dir=self._directory) as file:
            for values in (high, low):
                file.write(np.ascontiguousarray(values).data)
            file.flush()
            both = np.memmap(file, high.dtype, "r")
        return both[: len(high)], both[len(high) :]


class Deduplicator:
    """Drops documents that were there before. One that may go on waits until it ends.

    Args:
        directory: where digests are kept for a run that goes on.
        earlier: the `state` of an earlier run.
    """

    def __init__(self, directory: Path, dtype: str, layout: str, earlier: dict[str, Any] | None) -> None:
        self.dropped_num: int = 0 if earlier is None else earlier["dropped_num"]
        self._layout = layout
        self._seen = DigestSet(directory)
        digests_num = 0 if earlier is None else earlier["digests_num"]
        self._file = ArrayFile(directory / DIGESTS, np.dtype("<u8"), digests_num)
        self._open: list[tuple[Array, Array]] = []  # tokens and lengths of the document that may go on
        if earlier is not None:
            for start in range(0, digests_num, 2 * LARGEST_RUN):
                count = min(digests_num - start, 2 * LARGEST_RUN)
                known = np.fromfile(directory / DIGESTS, "<u8", count, offset=8 * start)
                self._seen.add(known.reshape(-1, 2))
            tokens, lengths = (base64.b64decode(earlier[name]) for name in ("tokens", "lengths"))
            self._open.append((np.frombuffer(tokens, dtype), np.frombuffer(lengths, "<i8")))

    @property
    def open_tokens_num(self) -> int:
        """Tokens of the document that waits."""
        return sum(len(tokens) for tokens, _ in self._open)

    def sync(self) -> None:
        """Make what `state` counts survive a power cut."""
        self._file.sync()

    def state(self) -> dict[str, Any]:
        """For a run that goes on from here."""
        arrays = zip(*self._open, strict=True) if self._open else ([np.empty(0)], [np.empty(0)])
        tokens, lengths = (base64.b64encode(np.concatenate(parts).tobytes()).decode() for parts in arrays)
        return {
            "dropped_num": self.dropped_num,
            "digests_num": self._file.entries_num,
            "tokens": tokens,
            "lengths": lengths,
        }

    def filter(
        self, tokens: Array, lengths: Array, starts: Array, labels: Array | None, digests: Array
    ) -> tuple[Array, Array, Array, Array | None]:
        """Of what `StoreWriter.append` takes, the documents that end here and are new.

        Args:
            digests: of the documents that begin and end here.
        """
        borders = documents_within(starts, len(lengths), self._layout)
        if not len(borders):
            self._open.append((tokens, lengths))
            return tokens[:0], lengths[:0], starts, labels
        first, last = borders[[0, -1]]
        first_token, last_token = (int(lengths[:border].sum()) for border in (first, last))
        head = zip(*self._open, (tokens[:first_token], lengths[:first]), strict=True)
        self._open = [(tokens[last_token:], lengths[last:])]
        tokens, lengths, sizes = tokens[first_token:last_token], lengths[first:last], np.diff(borders)
        head_tokens, head_lengths = (np.concatenate(arrays) for arrays in head)
        if len(head_lengths):
            borders = np.array([0, len(head_lengths)])
            digests = np.concatenate((digests_of(head_tokens, head_lengths, borders, None), digests))
            tokens, lengths = np.concatenate((head_tokens, tokens)), np.concatenate((head_lengths, lengths))
            sizes = np.concatenate((borders[1:], sizes))
        is_new = self._seen.add(digests)
        self._file.append(digests[is_new].ravel())
        self.dropped_num += int(np.count_nonzero(~is_new))
        kept, sizes = np.repeat(is_new, sizes), sizes[is_new]
        if labels is not None:
            labels = labels[is_new]
        return tokens[np.repeat(kept, lengths)], lengths[kept], np.cumsum(sizes) - sizes, labels

    def rest(self) -> tuple[Array, Array, Array, Array | None]:
        """The document that waited, at the end of the corpus."""
        nothing = np.empty(0, np.int64)
        dtype = self._open[0][0].dtype if self._open else np.dtype(np.int64)
        return self.filter(nothing.astype(dtype), nothing, np.array([0]), None, np.empty((0, 2), np.uint64))

    def close(self) -> None:
        self._file.close()
        self._file.path.unlink()
