"""Corpus to token store, in parallel: the same bytes for any number of processes, in bounded memory."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import errno
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tencentpretrain.config.data import PreprocessConfig
from tencentpretrain.data.corpora import (
    BLOCK_SIZE,
    CONVERT,
    NOT_UTF8,
    Block,
    CorpusFile,
    blocks,
    corpus_files,
    progress_bar,
    read_texts,
)
from tencentpretrain.data.store import COUNTS, Array
from tencentpretrain.data.writer import StoreWriter, check_replaceable, token_dtype
from tencentpretrain.errors import DataError
from tencentpretrain.files import complete_directory, remove_leftovers

if TYPE_CHECKING:
    from tencentpretrain.tokenizers.base import Tokenizer

CHUNK_CHARS = 1 << 17  # characters given to the tokenizer at once, which takes some 150 bytes for each
CUTS = " \t\u3000。，！？；,.!?;"  # where a longer text is cut, at best
EXAMPLES = 10  # bad lines named one by one
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


class CorpusReport:
    """What became of the lines of a corpus."""

    def __init__(self) -> None:
        self.lines_num = 0
        self.bad_lines_num = 0
        self.bad_lines: list[str] = []  # the first of them: file, line number and reason
        self.empty_num = 0  # texts of which the tokenizer leaves nothing
        self._first_line = 0
        self._foreign: Path | None = None  # the first file of which much is not UTF-8

    def add(self, block: Block, result: Tokenised) -> None:
        if block.start == 0:
            self._first_line = self.lines_num
        for number, reason in result.bad_lines[: EXAMPLES - len(self.bad_lines)]:
            number += self.lines_num - self._first_line
            self.bad_lines.append(f"{block.file.path}, line {number}: {reason}")
        foreign_num = sum(reason.startswith(NOT_UTF8) for _, reason in result.bad_lines)
        if self._foreign is None and foreign_num > result.lines_num / 10:
            self._foreign = block.file.path
        self.lines_num += result.lines_num
        self.bad_lines_num += len(result.bad_lines)
        self.empty_num += result.empty_num

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __str__(self) -> str:
        """Nothing where every line was used."""
        lines = []
        if self.bad_lines_num:
            lines = [f"{self.bad_lines_num:,} of {self.lines_num:,} lines cannot be used:"]
            lines += [f"  {line}" for line in self.bad_lines]
            lines += ["  …"] if self.bad_lines_num > len(self.bad_lines) else []
        if self._foreign:
            lines.append(f"Much of {self._foreign} is {NOT_UTF8}; {CONVERT}.")
        if self.empty_num:
            lines.append(f"{self.empty_num:,} texts have no token and are left out.")
        return "\n".join(lines)


def preprocess(
    config: PreprocessConfig,
    layout: str,
    tokenizer: Tokenizer,
    options: dict[str, Any] | None = None,
    block_size: int = BLOCK_SIZE,
) -> CorpusReport:
    """Write the token store `config.dataset_path` from the corpus `config.corpus_path`.

    Args:
        layout: how lines make documents, as the processor wants them (see `corpora.read_texts`).
        options: data options of the user that the store remembers.

    Raises:
        DataError: an unusable corpus, too many bad lines, a path that something else has, or a full disk.
    """
    path = Path(os.path.realpath(config.dataset_path))
    check_replaceable(path)
    files = corpus_files(config.corpus_path, config.json_format_corpus)
    remove_leftovers(path)
    try:
        with complete_directory(path) as directory:
            writer = StoreWriter(directory, tokenizer, layout)
            report = _write(writer, files, config, block_size)
            names = [str(file.path) for file in files]
            writer.close(options or {}, {"files": names, **report.as_json()})
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DataError(
            f"{path}: {error.strerror}; nothing was kept. Make room or choose another --dataset_path "
            "(a token takes 2 bytes, or 4 where the vocabulary has more than 65,536 entries)."
        ) from None
    return report


def _write(
    writer: StoreWriter, files: list[CorpusFile], config: PreprocessConfig, block_size: int
) -> CorpusReport:
    report = CorpusReport()
    every_block = (block for file in files for block in blocks(file, block_size))
    with (
        _results(every_block, writer.tokenizer, writer.layout, config.processes_num) as results,
        progress_bar(files, "preprocess") as progress,
    ):
        for block, result in results:
            writer.append(result.tokens, result.lengths, result.starts, result.labels)
            report.add(block, result)
            if report.bad_lines_num > config.max_bad_lines:
                raise DataError(f"more bad lines than --max_bad_lines ({config.max_bad_lines}).\n{report}")
            progress.update(block.progress)
    _check_usable(writer, files, report)
    return report


def _check_usable(writer: StoreWriter, files: list[CorpusFile], report: CorpusReport) -> None:
    names = ", ".join(str(file.path) for file in files[:3]) + (" …" if len(files) > 3 else "")
    tokens, sentences, documents = (writer.count(what) for what in COUNTS)
    if not tokens:
        why = str(report) or ("all lines are blank." if report.lines_num else "it is empty.")
        raise DataError(f"{names}: nothing in this corpus can be used: {why}")
    if writer.layout == "sentences" and documents == 1 and sentences > 1:
        raise DataError(
            f"{names}: no empty line separates documents, so the corpus is one document of "
            f"{sentences:,} sentences; put an empty line after each document, or choose a "
            "--data_processor that takes a document a line (mlm, lm)."
        )


def tokenise(block: Block, layout: str, tokenizer: Tokenizer) -> Tokenised:
    """Read and tokenise a block. Special tokens that are written out in a text are text."""
    texts, starts_list, labels_list, lines_num, bad_lines = read_texts(block, layout)
    tokens, lengths = _encode(texts, tokenizer)
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
    kept_before = np.concatenate(([0], np.cumsum(kept)))
    tokens = tokens.astype(token_dtype(tokenizer.vocab_size))
    empty_num = len(kept) - int(kept_before[-1])
    return Tokenised(tokens, lengths[kept], kept_before[starts], labels, lines_num, bad_lines, empty_num)


def _encode(texts: list[str], tokenizer: Tokenizer) -> tuple[Array, Array]:
    """Tokens of all texts, one after the other, and the length of each; memory does not grow with a text."""
    pieces, first_pieces = texts, None
    if max(map(len, texts), default=0) > CHUNK_CHARS:
        cut = [list(_pieces(text)) for text in texts]
        pieces = list(itertools.chain.from_iterable(cut))
        first_pieces = np.cumsum([0, *map(len, cut)])[:-1]
    tokens, lengths = [np.empty(0, dtype=np.int32)], [np.empty(0, dtype=np.int64)]
    for chunk in _chunks(pieces):
        ids, counts = tokenizer.encode_batch(chunk, special_tokens=False)
        tokens.append(ids)
        lengths.append(counts)
    all_lengths = np.concatenate(lengths)
    if first_pieces is not None:
        all_lengths = np.add.reduceat(all_lengths, first_pieces)
    return np.concatenate(tokens), all_lengths


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > CHUNK_CHARS:
        middle, end = start + CHUNK_CHARS // 2, start + CHUNK_CHARS
        cut = max(text.rfind(char, middle, end) for char in CUTS)
        cut = end if cut < 0 else cut
        yield text[start:cut]
        start = cut
    yield text[start:]


def _chunks(pieces: list[str]) -> Iterator[list[str]]:
    numbers = np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces))) // CHUNK_CHARS
    borders = (np.flatnonzero(np.diff(numbers)) + 1).tolist()
    for low, high in itertools.pairwise([0, *borders, len(pieces)]):
        if low < high:
            yield pieces[low:high]


@contextlib.contextmanager
def _results(
    every_block: Iterable[Block], tokenizer: Tokenizer, layout: str, processes_num: int
) -> Iterator[Iterator[tuple[Block, Tokenised]]]:
    """Blocks tokenised, in order: by as many processes, or here where one is enough."""
    if processes_num == 1:
        with _one_thread():
            yield ((block, tokenise(block, layout, tokenizer)) for block in every_block)
        return
    executor = concurrent.futures.ProcessPoolExecutor(
        processes_num, multiprocessing.get_context("fork"), _start_worker, (tokenizer, layout)
    )
    try:
        # The first task forks all workers; signals wait until _start_worker has said what they mean there.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            executor.submit(int)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        yield _in_order(every_block, executor, processes_num)
    except BrokenProcessPool:
        raise DataError(
            "a tokenising process was killed, most likely because memory ran out; use fewer --processes_num."
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


def _in_order(
    every_block: Iterable[Block], executor: concurrent.futures.ProcessPoolExecutor, processes_num: int
) -> Iterator[tuple[Block, Tokenised]]:
    """Results in the order of the blocks; only a few wait for each process, so that memory is bounded."""
    waiting: collections.deque[tuple[Block, concurrent.futures.Future[Tokenised]]] = collections.deque()
    for block in every_block:
        waiting.append((block, executor.submit(_work, block)))
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


_worker: tuple[str, Tokenizer]  # of this process


def _start_worker(tokenizer: Tokenizer, layout: str) -> None:
    global _worker
    os.environ[PARALLELISM] = "false"
    _worker = layout, tokenizer
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
    return tokenise(block, *_worker)
