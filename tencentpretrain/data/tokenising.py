"""Blocks of a corpus to tokens, here or in several processes."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tencentpretrain.data.corpora import Block
from tencentpretrain.data.duplicates import digests_of, documents_within
from tencentpretrain.data.lines import read_texts
from tencentpretrain.data.store import CONTINUES, Array
from tencentpretrain.data.writer import token_dtype
from tencentpretrain.errors import DataError
from tencentpretrain.tokenizers.spm import SPACE

if TYPE_CHECKING:
    from tencentpretrain.data.words import Segmenter
    from tencentpretrain.tokenizers.base import Tokenizer

CHUNK_CHARS = 1 << 17  # characters given to the tokenizer at once, which takes some 150 bytes for each
CUTS = " \t\u3000。，！？；,.!?;"  # where a longer text is cut, at best
TWO_TEXTS = ("pairs", "instructions")  # layouts of documents of two texts, neither of them empty
PROCESSES_PER_CORE = 4  # more are of no use, whatever is asked
PARALLELISM = "TOKENIZERS_PARALLELISM"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Tokenised(NamedTuple):
    """A block as StoreWriter.append takes it, and what became of its lines."""

    tokens: Array
    lengths: Array
    starts: Array
    labels: Array | None
    lines_num: int
    bad_lines: list[tuple[int, str]]
    empty_num: int
    digests: Array | None  # of the documents that begin and end in the block, to find equal ones


Numbered = tuple[int, Block]  # with the number of its file


class How(NamedTuple):
    """How blocks are tokenised."""

    layout: str
    tokenizer: Tokenizer
    tgt_tokenizer: Tokenizer | None = None
    digests: bool = False
    segmenter: Segmenter | None = None  # finds words, if they shall be marked

    @property
    def dtype(self) -> str:
        """Of the tokens, which have room for CONTINUES where words are marked."""
        sides = (side for side in (self.tokenizer, self.tgt_tokenizer) if side is not None)
        return "uint32" if self.segmenter else token_dtype(max(side.vocab_size for side in sides))


def tokenise(block: Block, how: How) -> Tokenised:
    """Read and tokenise a block. Special tokens that are written out in a text are text."""
    layout, tokenizer, tgt_tokenizer, with_digests, _ = how
    texts, starts_list, labels_list, lines_num, bad_lines = read_texts(block, layout)
    if tgt_tokenizer is None:
        tokens, lengths = _encode(texts, tokenizer, how.dtype, how.segmenter)
    else:
        sides = (texts[::2], tokenizer), (texts[1::2], tgt_tokenizer)
        tokens, lengths = _interleaved(*(_encode(*side, how.dtype, how.segmenter) for side in sides))
    starts = np.array(starts_list, dtype=np.int64)
    labels = None
    kept = lengths > 0
    if layout == "labelled":
        # Of a pair, an empty text stays: which is first and which is second matters.
        labels = np.array(labels_list, dtype=np.int32)
        firsts = starts[len(starts) - len(labels) :]
        if len(labels):
            used = np.add.reduceat(lengths, firsts) > 0
            kept = np.repeat(used, np.diff(firsts, append=len(texts)))
            labels = labels[used]
    elif layout in TWO_TEXTS:
        kept = np.repeat(np.minimum(lengths[::2], lengths[1::2]) > 0, 2)
    kept_before = np.concatenate(([0], np.cumsum(kept)))
    if layout in TWO_TEXTS:  # with its empty text another one goes
        tokens = tokens[np.repeat(kept, lengths)]
    empty_num = len(kept) - int(kept_before[-1])
    lengths, starts, digests = lengths[kept], kept_before[starts], None
    if with_digests:
        digests = digests_of(tokens, lengths, documents_within(starts, len(lengths), layout), labels)
    return Tokenised(tokens, lengths, starts, labels, lines_num, bad_lines, empty_num, digests)


def _interleaved(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
    """The texts of two sequences in turn."""
    lengths = np.stack([one[1], other[1]], axis=1).ravel()
    tokens = np.empty(lengths.sum(), one[0].dtype)
    first = np.repeat(np.arange(len(lengths)) % 2 == 0, lengths)
    tokens[first], tokens[~first] = one[0], other[0]
    return tokens, lengths


def _encode(
    texts: list[str], tokenizer: Tokenizer, dtype: str, segmenter: Segmenter | None = None
) -> tuple[Array, Array]:
    """Tokens of all texts, one after the other, and the length of each; memory grows with tokens alone."""
    tokens, lengths = [np.empty(0, dtype)], [np.empty(0, np.int64)]

    def encode(batch: list[str], inside: bool = False) -> Array:
        ids, counts = tokenizer.encode_batch(batch, special_tokens=False)
        found = ids.astype(dtype)
        if segmenter is not None:
            found[segmenter.continues(batch, tokenizer, ids, counts)] += CONTINUES
        if inside and len(ids) and tokenizer.tokens[ids[0]] == SPACE:
            found, counts = found[1:], counts - 1
        tokens.append(found)
        return counts

    cuts = _Cuts(tokenizer)
    for chunk in _chunks(texts):
        if max(map(len, chunk)) <= CHUNK_CHARS:
            lengths.append(encode(chunk))
        else:
            lengths.append(
                np.array([sum(int(encode([p], i)[0]) for p, i in _pieces(text, cuts)) for text in chunk])
            )
    return np.concatenate(tokens), np.concatenate(lengths)


class _Cuts:
    """Where a tokenizer's texts may be cut, so that the pieces have the tokens of the whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        whole, first, second, spaced = map(tokenizer.encode, ("a b", "a", "b", " b"))
        # SentencePiece may put a space before each text: one that is there already is left out then.
        self.drops_space = whole == first + second
        self.at_space = self.drops_space or whole == first + spaced


def _pieces(text: str, cuts: _Cuts) -> Iterator[tuple[str, bool]]:
    """Pieces, and whether each begins where the text has no space: one that is put there is no part of it."""
    start, inside = 0, False
    while len(text) - start > CHUNK_CHARS:
        middle, end = start + CHUNK_CHARS // 2, start + CHUNK_CHARS
        cut = text.rfind(" ", middle, end) if cuts.at_space else -1
        if cut < 0:
            cut = max(text.rfind(char, middle, end) for char in CUTS if char != " ")
            cut = end if cut < 0 else cut
        yield text[start:cut], inside
        start = cut + (cuts.drops_space and text[cut] == " ")
        inside = not text[cut].isspace()
    yield text[start:], inside


def _chunks(texts: list[str]) -> Iterator[list[str]]:
    numbers = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts))) // CHUNK_CHARS
    borders = (np.flatnonzero(np.diff(numbers)) + 1).tolist()
    for low, high in itertools.pairwise([0, *borders, len(texts)]):
        if low < high:
            yield texts[low:high]


@contextlib.contextmanager
def tokenise_all(
    every_block: Iterable[Numbered], how: How, processes_num: int
) -> Iterator[Iterator[tuple[Numbered, Tokenised]]]:
    """Blocks tokenised, in order: by so many processes, if there is work for them, else here."""
    processes_num = min(processes_num, PROCESSES_PER_CORE * len(os.sched_getaffinity(0)))
    every_block = iter(every_block)
    first = list(itertools.islice(every_block, processes_num))
    every_block = itertools.chain(first, every_block)
    if (processes_num := min(processes_num, len(first))) <= 1:
        with _one_thread():
            yield (((number, block), tokenise(block, how)) for number, block in every_block)
        return
    executor = concurrent.futures.ProcessPoolExecutor(
        processes_num, multiprocessing.get_context("fork"), _start_worker, (how,)
    )
    try:
        # The first task forks all workers; signals wait until _start_worker has said what they mean there.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            executor.submit(int)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        _end_together(executor)
        yield _in_order(every_block, executor, processes_num)
    except BrokenProcessPool:
        raise DataError(
            "a tokenising process was killed, most likely because memory ran out; use fewer --processes_num."
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


def _end_together(executor: concurrent.futures.ProcessPoolExecutor) -> None:
    """Let no process wait for one that was killed.

    If that happens while it hands over a result, half of it stays in the pipe, whose lock stays taken, and
    the executor waits for the rest for ever. So the others end too, and the pipe ends with them.
    """
    workers = list(executor._processes.values())
    executor._result_queue._writer.close()  # type: ignore[attr-defined]

    def watch() -> None:
        wait([worker.sentinel for worker in workers])
        for worker in workers:
            worker.kill()

    threading.Thread(target=watch, daemon=True).start()


def _in_order(
    every_block: Iterable[Numbered], executor: concurrent.futures.ProcessPoolExecutor, processes_num: int
) -> Iterator[tuple[Numbered, Tokenised]]:
    """Results in the order of the blocks; only a few wait for each process, so that memory is bounded."""
    waiting: collections.deque[tuple[Numbered, concurrent.futures.Future[Tokenised]]] = collections.deque()
    for number, block in every_block:
        waiting.append(((number, block), executor.submit(_work, block)))
        if len(waiting) > 2 * processes_num:
            oldest, future = waiting.popleft()
            yield oldest, future.result()
    for oldest, future in waiting:
        yield oldest, future.result()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Keep the `tokenizers` library to one thread: processes are what is parallel."""
    before = os.environ.get(PARALLELISM)
    os.environ[PARALLELISM] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[PARALLELISM]
        else:
            os.environ[PARALLELISM] = before


_worker: How  # of this process


def _start_worker(how: How) -> None:
    global _worker
    os.environ[PARALLELISM] = "false"
    _worker = how
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process answers Ctrl-C
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(block: Block) -> Tokenised:
    return tokenise(block, _worker)
