"""Corpus to token store, in parallel: the same bytes for any number of processes, in bounded memory."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import errno
import hashlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tencentpretrain.config.data import PreprocessConfig
from tencentpretrain.data.corpora import (
    BLOCK_SIZE,
    Block,
    CorpusFile,
    blocks,
    corpus_files,
    part_of,
    progress_bar,
)
from tencentpretrain.data.duplicates import Deduplicator
from tencentpretrain.data.lines import CONVERT, NOT_UTF8
from tencentpretrain.data.processors.base import Processor
from tencentpretrain.data.store import COUNTS, TokenStore
from tencentpretrain.data.tokenising import How, Tokenised, tokenise_all
from tencentpretrain.data.writer import PROGRESS, SHARD_TOKENS, StoreWriter, check_replaceable
from tencentpretrain.errors import DataError, UserError
from tencentpretrain.files import (
    complete_directory,
    json_text,
    leftovers,
    read_json,
    remove_leftovers,
    write_json,
)

if TYPE_CHECKING:
    from tencentpretrain.data.words import Segmenter
    from tencentpretrain.tokenizers.base import Tokenizer

EXAMPLES = 10  # bad lines named one by one
SAVE_SECONDS = 10.0  # how often an interrupted run could go on
LARGEST_WAITING = 1 << 20  # tokens of an unfinished document; while it has more, nothing is saved


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

    @classmethod
    def total(cls, reports: Iterable[CorpusReport]) -> CorpusReport:
        """What became of the lines of all parts of a corpus."""
        total = cls()
        for report in reports:
            total.lines_num += report.lines_num
            total.bad_lines_num += report.bad_lines_num
            total.bad_lines += report.bad_lines[: EXAMPLES - len(total.bad_lines)]
            total.empty_num += report.empty_num
            total._foreign = total._foreign or report._foreign
        return total

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def check(self, max_bad_lines: int) -> None:
        """Raise DataError where there are more bad lines."""
        if self.bad_lines_num > max_bad_lines:
            raise DataError(f"more bad lines than --max_bad_lines ({max_bad_lines}).\n{self}")

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
    processor: type[Processor] = Processor,
) -> CorpusReport:
    """Write the token store `config.dataset_path` from the corpus `config.corpus_path`.

    Args:
        layout: how lines make documents, as the processor wants them (see `corpora.read_texts`).
        options: data options of the user that the store remembers.
        tgt_tokenizer: of the second text of each pair, where it is another one.
        segmenter: finds words, if the store shall know them.
        processor: what the store is made for; default: for any.

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
        if processor is not Processor:
            corpus["part"]["processor"] = processor.name
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
            if points:  # before the writer cuts off what lies behind the last of them
                write_json(directory / PROGRESS, {"points": points})
            writer = StoreWriter(directory, tokenizer, layout, tgt_tokenizer, words, SHARD_TOKENS, state)
            run = _Run(writer, files, config, how, runs, points, block_size)
            report = run.write()
            _check_usable(writer, files, report, processor, config.part)
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
            tokenise_all(self._blocks(), self._how, self._config.processes_num) as results,
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
                report.check(self._config.max_bad_lines)
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
        if deduplicator is not None:
            self._before_file = None  # a run that goes on from there needs the digests, which end here
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
    processor: type[Processor],
    part: tuple[int, int] | None,
) -> None:
    """Refuse a corpus that is of no use; of a part say so, as the others may make it good."""
    names = ", ".join(str(file.path) for file in files[:3]) + (" …" if len(files) > 3 else "")
    tokens, sentences, documents = (writer.count(what) for what in COUNTS)
    is_part = part not in (None, (1, 1))
    if tokens:
        why = processor.problem(documents, sentences)
    else:
        why = str(report) or ("all lines are blank." if report.lines_num else "it is empty.")
        why = "" if is_part else f"nothing in this corpus can be used: {why}"
    if why and is_part:
        print(
            f"{names}, this part: {why} If all parts are like that, they cannot be joined.", file=sys.stderr
        )
    elif why:
        raise DataError(f"{names}: {why}")
