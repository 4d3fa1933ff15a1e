"""From a processor to batches: order, position, ranks, worker processes."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Collection, Generator, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from tencentpretrain.batch import FIELDS, IGNORED, Batch, labels_of, positions_of, second_segment_only
from tencentpretrain.data.packing import WINDOW, pack, packed
from tencentpretrain.data.processors.base import Arrays, Processor
from tencentpretrain.data.random import Ints, Purpose, shuffled, streams
from tencentpretrain.errors import ConfigError, DataError, UserError
from tencentpretrain.registry import PROCESSORS

_ROWS_OF_WINDOW = 1 << 32  # places for rows in the numbering of packed rows; more than there can be
_BLOCK = 1 << 13  # samples whose order is computed at a time
_GRACE = 3600  # seconds that a process which builds batches lives on after SIGTERM; saving may take long
_MULTIPLE = 8  # kernels like row lengths that are multiples of this


class DataPosition(NamedTuple):
    """Where training stands: `offset` samples (of all ranks) of epoch `epoch` are used."""

    epoch: int = 0
    offset: int = 0


class LoadedBatch(NamedTuple):
    """A batch of one rank.

    Attributes:
        batch: CPU tensors, see batch.py.
        counts: target name to how much of it is predicted: labels that are not -100, or all rows where the
            batch has no field `<target>_labels` of integers.
        tokens: tokens that are not padding, of source and target.
        position: where the data stands after this batch.
    """

    batch: Batch
    counts: dict[str, int]
    tokens: int
    position: DataPosition


class _Request(NamedTuple):
    """The samples of one batch: all a worker needs to know."""

    keys: Ints
    epochs: Ints
    position: DataPosition
    rows: Ints | None = None  # the row of each sample, where several share one


@dataclasses.dataclass
class _Builder(Dataset[LoadedBatch | UserError]):
    """Builds requested batches, here or in a worker process; has no state."""

    processor: Processor
    targets: Collection[str]
    trim: bool
    prefix_lm_loss: bool

    def __getitem__(self, request: _Request) -> LoadedBatch | UserError:
        try:
            return self._build(request)
        except UserError as error:  # if a worker raised it, its message would become a traceback
            return error

    def _build(self, request: _Request) -> LoadedBatch:
        arrays = self.processor.build(request.keys, request.epochs)
        if request.rows is not None:
            fields = {name for name in arrays if is_sequence(name)}
            arrays = packed(arrays, request.rows, fields, self.processor.pad_id)
        if self.trim:
            arrays = _trim(arrays)
        if self.prefix_lm_loss:  # as the target will do, so that the counts are right before it does
            labels, segments = (torch.from_numpy(arrays[name]) for name in ("lm_labels", "segment_ids"))
            arrays = arrays | {"lm_labels": second_segment_only(labels, segments).numpy()}
        if request.rows is not None:
            begins = (arrays["document_ids"] > 0) & (arrays["position_ids"] == 0)
            arrays = arrays | {"document_starts": np.flatnonzero(begins)}
        batch = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        for name, array in arrays.items():
            if name.endswith("_labels") and is_sequence(name):
                positions = torch.from_numpy(np.flatnonzero(array != IGNORED))
                batch[positions_of(name.removesuffix("_labels"))] = positions
        counts = {target: _count(arrays.get(labels_of(target)), request.keys.size) for target in self.targets}
        return LoadedBatch(batch, counts, _tokens(arrays), request.position)


def _can_be_packed(processor: str) -> bool:
    return PROCESSORS[processor].lengths is not Processor.lengths


def _count(labels: NDArray[Any] | None, rows: int) -> int:
    """How many labels are predicted; rows where there are none, or where they are a teacher's logits."""
    if labels is None or labels.dtype.kind != "i":
        return rows
    return int(np.count_nonzero(labels != IGNORED))


def _tokens(arrays: Arrays) -> int:
    """Tokens that are not padding, of source and target."""
    total = 0
    for side in ("", "decoder_"):
        if f"{side}segment_ids" in arrays:
            total += int(np.count_nonzero(arrays[f"{side}segment_ids"]))
        elif f"{side}input_ids" in arrays:
            total += arrays[f"{side}input_ids"].size
    return total


def _trim(arrays: Arrays) -> Arrays:
    """Cut columns of source and of target that are padding in every row, to a multiple of 8 each; padding is
    on the right. Labels have the columns of what they are predicted from.
    """
    widths = {}
    for letter, side in (("S", ""), ("T", "decoder_")):
        if f"{side}segment_ids" in arrays:
            used = int(arrays[f"{side}segment_ids"].any(axis=0).sum())
            widths[letter] = -(-used // _MULTIPLE) * _MULTIPLE
    labels = "T" if "decoder_input_ids" in arrays else "S"

    def width(name: str) -> int | None:
        letter = _columns(name)
        return widths.get(labels if letter == "S" and name.endswith("_labels") else letter)

    return {name: array if array.ndim < 2 else array[:, : width(name)] for name, array in arrays.items()}


def _columns(name: str) -> str:
    """The letter of what a field's columns stand for, as in batch.py."""
    letters = FIELDS[name].shape.split() if name in FIELDS else []
    return letters[1] if len(letters) > 1 else ""


def is_sequence(name: str) -> bool:
    """Whether a field has a column for every token that is read."""
    return _columns(name) in ("S", "T")


def depend_on_the_main_process(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach every process; the main one needs batches to finish its step.

    If it was killed while this process started, nobody else would notice: torch asks who the parent is later.
    """
    main = multiprocessing.parent_process()
    if main is not None and os.getppid() != main.pid:
        sys.exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_GRACE))


class Loader:
    """Batches of a processor's samples, shuffled anew in every epoch.

    Order and contents depend on the seed alone, not on the number of workers; the batches of all ranks
    together are the batches one rank would get with `batch_size · world_size`.

    Args:
        processor: builds the samples.
        batch_size: rows per batch of one rank.
        workers_num: processes that build batches; 0: this one does.
        targets: names of the model's targets, to count what each predicts.
        rank, world_size: which part of every global batch is wanted.
        trim: cut columns in which all rows of a batch are padding.
        prefix_lm_loss: the target lm counts the second segment only.
        pin_memory: put batches where a GPU copies them from without waiting.

    Batches raise DataError where the processor finds no samples.
    """

    def __init__(
        self,
        processor: Processor,
        batch_size: int,
        workers_num: int = 0,
        *,
        targets: Collection[str] = (),
        rank: int = 0,
        world_size: int = 1,
        trim: bool = True,
        pin_memory: bool = False,
        prefix_lm_loss: bool = False,
    ) -> None:
        self.processor = processor
        self.batch_size = batch_size
        self._seed = processor.config.seed
        self._rank = rank
        self._world_size = world_size
        self._builder = _Builder(processor, targets, trim, prefix_lm_loss)
        self.workers_num = workers_num
        self._pin_memory = pin_memory
        self._packing = processor.config.packing
        if self._packing and not _can_be_packed(processor.name):
            raise ConfigError(
                f"--packing: samples of data processor '{processor.name}' cannot share a row; those of "
                f"{', '.join(name for name in PROCESSORS if _can_be_packed(name))} can."
            )
        self._planned: tuple[int, Ints] | None = None

    def samples_num(self, epoch: int = 0) -> int:
        """Samples of an epoch, of all ranks."""
        return self._keys(epoch).size

    def rows_num(self, epoch: int = 0) -> int:
        """Rows of an epoch, of all ranks; where samples are packed, judged by the first ones."""
        samples = self.samples_num(epoch)
        if not self._packing:
            return samples
        return round(len(self._pack(epoch, 0)) * max(samples / WINDOW, 1))

    def batches(self, position: DataPosition | None = None) -> Generator[LoadedBatch, None, None]:
        """Endless batches from a position on; they run on across the border of epochs."""
        return self._load(self._endless_requests(position or DataPosition()))

    def samples(self, position: DataPosition, batches_num: int) -> Ints:
        """The samples of this rank's batches from a position on, [2, n]: epochs, and numbers as the processor
        counts.
        """
        requests = itertools.islice(self._endless_requests(position), batches_num)
        return np.concatenate([np.stack([request.epochs, request.keys]) for request in requests], axis=1)

    def _endless_requests(self, position: DataPosition) -> Iterator[_Request]:
        return self._packed_requests(position) if self._packing else self._requests(position)

    def one_pass(self) -> Generator[LoadedBatch, None, None]:
        """Every sample of the first epoch once, in the order of the corpus; the last batch may be smaller.

        A rank gets nothing of a last global batch that is too small for it.
        """
        if self._packing:
            return self._load(self._packed_requests(DataPosition(), endless=False))
        return self._load(self._requests_in_order())

    def _load(self, requests: Iterable[_Request]) -> Generator[LoadedBatch, None, None]:
        batches = DataLoader(
            self._builder,
            sampler=requests,
            batch_size=None,
            num_workers=self.workers_num,
            pin_memory=self._pin_memory,
            worker_init_fn=depend_on_the_main_process,
            # Without it each pass would advance the generator of dropout, and resuming would differ.
            generator=torch.Generator(),
        )
        for loaded in batches:
            if isinstance(loaded, UserError):
                raise loaded
            yield loaded

    def _keys(self, epoch: int) -> Ints:
        """The plan of an epoch; that of one epoch is kept."""
        if self._planned is None or self._planned[0] != epoch:
            self._planned = None  # two would need twice the memory
            self._planned = epoch, self.processor.plan(epoch)
            if not self._planned[1].size:
                raise DataError(
                    f"{self.processor.store.path}: '{self.processor.name}' finds no samples in it."
                )
        return self._planned[1]

    def _samples(self, position: DataPosition) -> Iterator[tuple[Ints, Ints, Ints]]:
        """Keys in shuffled order with their epochs and offsets, some at a time, without end."""
        epoch, offset = position
        while True:
            keys, order = self._keys(epoch), streams(self._seed, Purpose.SAMPLES, epoch)
            for begin in range(offset, keys.size, _BLOCK):
                offsets = np.arange(begin, min(begin + _BLOCK, keys.size))
                yield keys[shuffled(offsets, keys.size, order)], np.full_like(offsets, epoch), offsets
            epoch, offset = epoch + 1, 0
            del keys  # before the next plan is made

    def _requests(self, position: DataPosition) -> Iterator[_Request]:
        size = self.batch_size * self._world_size
        own = slice(self._rank * self.batch_size, (self._rank + 1) * self.batch_size)
        waiting = np.zeros((3, 0), np.int64)
        for samples in self._samples(position):
            waiting = np.concatenate([waiting, samples], axis=1)
            # The sample after the batch must be known: where it stands is where training would go on.
            while waiting.shape[1] > size:
                keys, epochs, _ = waiting[:, :size][:, own]
                waiting = waiting[:, size:]
                yield _Request(keys, epochs, DataPosition(int(waiting[1, 0]), int(waiting[2, 0])))

    def _pack(self, epoch: int, window: int) -> list[Ints]:
        """The keys of the samples of each row of a window of the shuffled order; rows are shuffled too."""
        keys = self._keys(epoch)
        offsets = np.arange(window * WINDOW, min((window + 1) * WINDOW, keys.size))
        samples = keys[shuffled(offsets, keys.size, streams(self._seed, Purpose.SAMPLES, epoch))]
        lengths = self.processor.lengths(samples, np.full_like(samples, epoch))
        order, rows = pack(lengths, self.processor.config.seq_length)
        found = np.split(samples[order], np.flatnonzero(np.diff(rows)) + 1)
        sequence = shuffled(
            np.arange(len(found)), len(found), streams(self._seed, Purpose.PACKED_ROWS, epoch, window)
        )
        return [found[row] for row in sequence]

    def _packed_rows(self, position: DataPosition, endless: bool) -> Iterator[tuple[Ints, DataPosition]]:
        """The samples of each row from a position on, and its position: the offset is window · 2^32 + row."""
        epoch, (window, row) = position.epoch, divmod(position.offset, _ROWS_OF_WINDOW)
        while True:
            while window * WINDOW < self._keys(epoch).size:
                rows = self._pack(epoch, window)
                for number in range(row, len(rows)):
                    yield rows[number], DataPosition(epoch, window * _ROWS_OF_WINDOW + number)
                window, row = window + 1, 0
            if not endless:
                return
            epoch, window = epoch + 1, 0

    def _packed_requests(self, position: DataPosition, endless: bool = True) -> Iterator[_Request]:
        size = self.batch_size * self._world_size
        rows = self._packed_rows(position, endless)
        waiting = list(itertools.islice(rows, size))
        while waiting:
            own = waiting[self._rank * self.batch_size : (self._rank + 1) * self.batch_size]
            following = list(itertools.islice(rows, size))
            after = following[0][1] if following else DataPosition(waiting[-1][1].epoch + 1, 0)
            if own:
                counts = [keys.size for keys, _ in own]
                epochs = np.repeat([place.epoch for _, place in own], counts)
                keys = np.concatenate([keys for keys, _ in own])
                yield _Request(keys, epochs, after, np.repeat(np.arange(len(own)), counts))
            waiting = following

    def _requests_in_order(self) -> Iterator[_Request]:
        plan, step = self._keys(0), self.batch_size * self._world_size
        for offset in range(0, plan.size, step):
            begin = offset + self._rank * self.batch_size
            keys = plan[begin : min(begin + self.batch_size, offset + step)]
            if keys.size:
                yield _Request(keys, np.zeros_like(keys), DataPosition(0, min(offset + step, plan.size)))
