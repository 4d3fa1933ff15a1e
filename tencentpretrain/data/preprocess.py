"""Corpus to token store, in parallel: the same bytes for any number of processes, in bounded memory."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import copy
import dataclasses
import errno
import hashlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
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
    part_of,
    progress_bar,
    read_texts,
)
from tencentpretrain.data.duplicates import Deduplicator, digests_of, documents_within
from tencentpretrain.data.processors.base import Processor
from tencentpretrain.data.store import CONTINUES, COUNTS, Array, TokenStore
from tencentpretrain.data.writer import PROGRESS, SHARD_TOKENS, StoreWriter, check_replaceable, token_dtype
from tencentpretrain.errors import DataError, UserError
from tencentpretrain.files import complete_directory, json_text, leftovers, read_json, remove_leftovers

if TYPE_CHECKING:
    from tencentpretrain.data.words import Segmenter
    from tencentpretrain.tokenizers.base import Tokenizer

CHUNK_CHARS = 1 << 17  # characters given to the tokenizer at once, which takes some 150 bytes for each
CUTS = " \t\u3000。，！？；,.!?;"  # where a longer text is cut, at best
EXAMPLES = 10  # bad lines named one by one
TWO_TEXTS = ("pairs", "instructions")  # layouts of documents of two texts, neither of them empty
SAVE_SECONDS = 10.0  # how often an interrupted run could go on
LARGEST_WAITING = 1 << 20  # tokens of an unfinished document; while it has more, nothing is saved
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


class CorpusReport:
    """What became of the lines of a corpus."""

    def __init__(self) -> None:
        self.lines_num = 0
        self.bad_lines_num = 0
        self.bad_lines: list[str] = []  # the first of them: file, line number and reason
        self.empty_num = 0  # texts of which the tokenizer leaves nothing
        self.duplicates_num = 0  # documents that were there before
        self._first_line = 0
        self._foreign: str | None = None  # the first file of which much is not UTF-8

    def add(self, block: Block, result: Tokenised) -> None:
        if block.start == block.file.start:
            self._first_line = self.lines_num
        is_text, start = block.file.form != "parquet", block.file.start
        where = f"line {{}} after byte {start}" if is_text and start else "line {}" if is_text else "row {}"
        for number, reason in result.bad_lines[: EXAMPLES - len(self.bad_lines)]:
            number += self.lines_num - self._first_line + (0 if is_text else start)
            self.bad_lines.append(f"{block.file.path}, {where.format(number)}: {reason}")
        foreign_num = sum(reason.startswith(NOT_UTF8) for _, reason in result.bad_lines)
        if self._foreign is None and foreign_num > result.lines_num / 10:
            self._foreign = str(block.file.path)
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
        if self.duplicates_num:
            lines.append(f"{self.duplicates_num:,} documents were there before and are left out.")
        return "\n".join(lines)


def preprocess(
    config: PreprocessConfig,
    layout: str,
    tokenizer: Tokenizer,
    options: dict[str, Any] | None = None,
    tgt_tokenizer: Tokenizer | None = None,
    segmenter: Segmenter | None = None,
    block_size: int = BLOCK_SIZE,
    problem: Callable[[int, int], str] = Processor.problem,
) -> CorpusReport:
    """Write the token store `config.dataset_path` from the corpus `config.corpus_path`.

    Args:
        layout: how lines make documents, as the processor wants them (see `corpora.read_texts`).
        options: data options of the user that the store remembers.
        tgt_tokenizer: of the second text of each pair, where it is another one.
        segmenter: finds words, if the store shall know them.
        problem: why a corpus of so many documents and sentences is of no use (see `Processor.problem`).

    Raises:
        DataError: an unusable corpus, too many bad lines, a path that something else has, or a full disk.
    """
    path = Path(os.path.realpath(config.dataset_path))
    check_replaceable(path)
    files = corpus_files(config.corpus_path, config.json_format_corpus)
    corpus: dict[str, Any] = {"files": [str(file.path) for file in files]}
    if config.part is not None:
        sizes = "".join(f"{file.path.name} {file.size}\n" for file in files)
        corpus["part"] = {"number": config.part[0], "of": config.part[1], "corpus": _digest(sizes)}
        files = part_of(files, *config.part, layout)
    how = How(layout, tokenizer, tgt_tokenizer, config.dedup is not None, segmenter)
    words = None if segmenter is None else segmenter.description
    runs = _runs(files, how, block_size)
    if config.part is not None:
        corpus["part"]["run"] = runs[-1]
        if config.resume == "auto" and (done := _done(path, runs[-1], options or {})) is not None:
            print(f"{path} is done already.", file=sys.stderr)
            return done
    earlier, points = _earlier_run(path, runs) if config.resume == "auto" else (None, [])
    remove_leftovers(path, keep=earlier)
    try:
        with complete_directory(path, earlier, PROGRESS if config.resume == "auto" else None) as directory:
            state = points[-1]["store"] if points else None
            writer = StoreWriter(directory, tokenizer, layout, tgt_tokenizer, words, SHARD_TOKENS, state)
            run = _Run(writer, files, config, how, runs, points, block_size)
            report = run.write()
            _check_usable(writer, files, report, problem, config.part)
            run.close()
            writer.close(options or {}, corpus | report.as_json())
        (path / PROGRESS).unlink()  # only now: until the store has its name, a run can go on from there
    except DataError as error:
        raise DataError(f"{error}{_kept(path, runs, config)}") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DataError(
            f"{path}: {error.strerror}. Make room or choose another --dataset_path (a token takes 2 bytes, "
            f"or 4 where the vocabulary has more than 65,536 entries)."
            f"{_kept(path, runs, config) or ' Nothing was kept.'}"
        ) from None
    return report


def _kept(path: Path, runs: list[str], config: PreprocessConfig) -> str:
    """What a failure says about what was done before it, if that is kept."""
    if config.resume != "auto" or _earlier_run(path, runs)[0] is None:
        return ""
    return "\nWhat was done is kept: the same command goes on from there."


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _runs(files: list[CorpusFile], how: How, block_size: int) -> list[str]:
    """Digests of all that the bytes of a store depend on, after reading none, one, two … of the files."""
    sides = (how.tokenizer, how.tgt_tokenizer)
    fingerprints = [side.fingerprint for side in sides if side is not None]
    words = None if how.segmenter is None else how.segmenter.description
    options = [how.layout, how.digests, block_size, SHARD_TOKENS, fingerprints, words]
    found = [_digest(json_text(options))]
    for file in files:
        own = [*map(str, dataclasses.astuple(file)), file.path.stat().st_mtime_ns]
        found.append(_digest(json_text([found[-1], own])))
    return found


def _earlier_run(path: Path, runs: list[str]) -> tuple[Path | None, list[dict[str, Any]]]:
    """The directory of a run that ended early, and the points at which it was equal to this one."""
    for entry in leftovers(path):
        if (entry / PROGRESS).is_file():
            with contextlib.suppress(UserError):
                points = [point for point in read_json(entry / PROGRESS)["points"] if point["run"] in runs]
                if points:
                    return entry, points
    return None, []


def _done(path: Path, run: str, options: dict[str, Any]) -> CorpusReport | None:
    """The report on a part of a corpus that an equal run has finished."""
    try:
        meta = TokenStore.open(path).meta
    except DataError:
        return None
    if meta["corpus"].get("part", {}).get("run") != run or meta["options"] != options:
        return None
    report = CorpusReport()
    vars(report).update((name, meta["corpus"][name]) for name in report.as_json())
    return report


class _Run:
    """One pass over a corpus, perhaps from where an earlier one ended."""

    def __init__(
        self,
        writer: StoreWriter,
        files: list[CorpusFile],
        config: PreprocessConfig,
        how: How,
        runs: list[str],
        points: list[dict[str, Any]],
        block_size: int,
    ) -> None:
        self._writer = writer
        self._files = files
        self._config = config
        self._how = how
        self._runs = runs
        self._block_size = block_size
        self._report = CorpusReport()
        self._file, self._start, self._done = 0, None, 0
        if points:
            vars(self._report).update(copy.deepcopy(points[-1]["report"]))
            self._file, self._start, self._done = points[-1]["position"]
        self._deduplicator = None
        if how.digests:
            state = points[-1]["duplicates"] if points else None
            self._deduplicator = Deduplicator(writer.directory, how.dtype, writer.layout, state)
        # Where the file begins that is being read: if it is damaged, a run with another one goes on there.
        self._before_file = points[0] if points else self._point()

    def write(self) -> CorpusReport:
        writer, report, deduplicator = self._writer, self._report, self._deduplicator
        saved = time.monotonic()
        with (
            _results(self._blocks(), self._how, self._config.processes_num) as results,
            progress_bar(self._files, "preprocess") as bar,
        ):
            if self._done:
                print(f"An interrupted run continues after {self._done:,} bytes.", file=sys.stderr)
                bar.update(self._done)
            for (number, block), result in results:
                if number != self._file:
                    self._file, self._start = number, None
                    self._before_file = self._point() or self._before_file
                sentences = result.tokens, result.lengths, result.starts, result.labels
                if deduplicator is not None:
                    assert result.digests is not None
                    sentences = deduplicator.filter(*sentences, result.digests)
                    report.duplicates_num = deduplicator.dropped_num
                writer.append(*sentences)
                report.add(block, result)
                if report.bad_lines_num > self._config.max_bad_lines:
                    limit = self._config.max_bad_lines
                    raise DataError(f"more bad lines than --max_bad_lines ({limit}).\n{report}")
                bar.update(block.progress)
                self._file, self._start, self._done = number, block.end, self._done + block.progress
                if time.monotonic() - saved >= SAVE_SECONDS:
                    self._save()
                    saved = time.monotonic()
        if deduplicator is not None and self._file < len(self._files):
            writer.append(*deduplicator.rest())
            report.duplicates_num = deduplicator.dropped_num
        return report

    def close(self) -> None:
        """Keep that the pass is over."""
        deduplicator = self._deduplicator
        self._writer.close_last_shard()
        self._file, self._start, self._deduplicator = len(self._files), None, None
        self._save()
        if deduplicator is not None:
            deduplicator.close()

    def _blocks(self) -> Iterator[tuple[int, Block]]:
        first, start = self._file, self._start
        for number, file in enumerate(self._files[first:], start=first):
            for block in blocks(file, self._block_size, start):
                yield number, block
            start = None

    def _point(self) -> dict[str, Any] | None:
        """Where a run may go on; None while a document is being collected that is too long for it."""
        deduplicator = self._deduplicator
        if deduplicator is not None and deduplicator.open_tokens_num > LARGEST_WAITING:
            return None
        files_num = self._file + (self._start is not None)  # that were read, the last one perhaps in part
        return {
            "run": self._runs[files_num],
            "position": [self._file, self._start, self._done],
            "report": copy.deepcopy(vars(self._report)),
            "duplicates": None if deduplicator is None else deduplicator.state(),
            "store": self._writer.state(),
        }

    def _save(self) -> None:
        """Keep the progress."""
        if (point := self._point()) is not None:
            if self._deduplicator is not None:
                self._deduplicator.sync()
            self._writer.save_progress({"points": [self._before_file or point, point]})


def _check_usable(
    writer: StoreWriter,
    files: list[CorpusFile],
    report: CorpusReport,
    problem: Callable[[int, int], str],
    part: tuple[int, int] | None,
) -> None:
    """Refuse a corpus that is of no use; of a part say so, as the others may make it good."""
    names = ", ".join(str(file.path) for file in files[:3]) + (" …" if len(files) > 3 else "")
    tokens, sentences, documents = (writer.count(what) for what in COUNTS)
    is_part = part not in (None, (1, 1))
    if tokens:
        why = problem(documents, sentences)
    else:
        why = str(report) or ("all lines are blank." if report.lines_num else "it is empty.")
        why = "" if is_part else f"nothing in this corpus can be used: {why}"
    if why and is_part:
        print(
            f"{names}, this part: {why} If all parts are like that, they cannot be joined.", file=sys.stderr
        )
    elif why:
        raise DataError(f"{names}: {why}")


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

    def encode(batch: list[str]) -> Array:
        ids, counts = tokenizer.encode_batch(batch, special_tokens=False)
        tokens.append(ids.astype(dtype))
        if segmenter is not None:
            tokens[-1][segmenter.continues(batch, tokenizer, ids, counts)] += CONTINUES
        return counts

    for chunk in _chunks(texts):
        if max(map(len, chunk)) <= CHUNK_CHARS:
            lengths.append(encode(chunk))
        else:
            lengths.append(
                np.array([sum(int(encode([piece])[0]) for piece in _pieces(text)) for text in chunk])
            )
    return np.concatenate(tokens), np.concatenate(lengths)


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > CHUNK_CHARS:
        middle, end = start + CHUNK_CHARS // 2, start + CHUNK_CHARS
        cut = max(text.rfind(char, middle, end) for char in CUTS)
        cut = end if cut < 0 else cut
        yield text[start:cut]
        start = cut
    yield text[start:]


def _chunks(texts: list[str]) -> Iterator[list[str]]:
    numbers = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts))) // CHUNK_CHARS
    borders = (np.flatnonzero(np.diff(numbers)) + 1).tolist()
    for low, high in itertools.pairwise([0, *borders, len(texts)]):
        if low < high:
            yield texts[low:high]


@contextlib.contextmanager
def _results(
    every_block: Iterable[Numbered], how: How, processes_num: int
) -> Iterator[Iterator[tuple[Numbered, Tokenised]]]:
    """Blocks tokenised, in order: by as many processes, or here where one is enough."""
    if processes_num == 1:
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
