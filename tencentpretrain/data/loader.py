"""From a processor to batches: order, position, ranks, worker processes."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Generator, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tencentpretrain.batch import FIELDS, IGNORED, Batch, positions_of
from tencentpretrain.data.processors.base import Arrays, Processor
from tencentpretrain.data.random import Ints, shuffled, streams
from tencentpretrain.errors import DataError

_ORDER = 2  # what a stream of random numbers is for; beside those of processors/base.py
_BLOCK = 1 << 13  # samples whose order is computed at a time
_GRACE = 30  # seconds that a process which builds batches lives on after SIGTERM
_MULTIPLE = 8  # kernels like row lengths that are multiples of this


class DataPosition(NamedTuple):
    """Where training stands: `offset` samples (of all ranks) of epoch `epoch` are used."""

    epoch: int = 0
    offset: int = 0


class LoadedBatch(NamedTuple):
    """A batch of one rank.

    Attributes:
        batch: CPU tensors, see batch.py.
        counts: target name to the number of labels that are predicted.
        tokens: tokens that are not padding.
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


@dataclasses.dataclass
class _Builder(Dataset[LoadedBatch]):
    """Builds requested batches, here or in a worker process; has no state."""

    processor: Processor
    trim: bool

    def __getitem__(self, request: _Request) -> LoadedBatch:
        arrays = self.processor.build(request.keys, request.epochs)
        used = arrays.get("segment_ids")
        if used is not None and self.trim:
            arrays = _trim(arrays, int(used.any(axis=0).sum()))
        batch = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        counts = {}
        for name, array in arrays.items():
            if name.endswith("_labels"):
                target = name.removesuffix("_labels")
                positions = np.flatnonzero(array != IGNORED)
                counts[target] = positions.size
                if _is_sequence(name):
                    batch[positions_of(target)] = torch.from_numpy(positions)
        tokens = arrays["input_ids"].size if used is None else int(np.count_nonzero(used))
        return LoadedBatch(batch, counts, tokens, request.position)


def _trim(arrays: Arrays, length: int) -> Arrays:
    """Cut columns that are padding in every row, to a multiple of 8; padding is on the right."""
    length = -(-length // _MULTIPLE) * _MULTIPLE
    return {name: array[:, :length] if _is_sequence(name) else array for name, array in arrays.items()}


def _is_sequence(name: str) -> bool:
    """Whether a field has a column for every input token."""
    return name in FIELDS and FIELDS[name].shape == "B S"


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach every process; the main one needs batches to finish its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_GRACE))


class Loader:
    """Batches of a processor's samples, shuffled anew in every epoch.

    Order and contents depend on the seed alone, not on the number of workers; the batches of all ranks
    together are the batches one rank would get with `batch_size · world_size`.

    Args:
        processor: builds the samples.
        batch_size: rows per batch of one rank.
        seed: of the order; the processor's own randomness has the seed of its config.
        workers_num: processes that build batches; 0: this one does.
        rank, world_size: which part of every global batch is wanted.
        trim: cut columns in which all rows of a batch are padding.
        pin_memory: put batches where a GPU copies them from without waiting.

    Batches raise DataError where the processor finds no samples.
    """

    def __init__(
        self,
        processor: Processor,
        batch_size: int,
        seed: int,
        workers_num: int = 0,
        *,
        rank: int = 0,
        world_size: int = 1,
        trim: bool = True,
        pin_memory: bool = False,
    ) -> None:
        self.processor = processor
        self.batch_size = batch_size
        self.seed = seed
        self._rank = rank
        self._world_size = world_size
        self._builder = _Builder(processor, trim)
        self._workers_num = workers_num
        self._pin_memory = pin_memory
        self._planned: tuple[int, Ints] | None = None

    def samples_num(self, epoch: int = 0) -> int:
        """Samples of an epoch, of all ranks."""
        return self._keys(epoch).size

    def batches(self, position: DataPosition | None = None) -> Generator[LoadedBatch, None, None]:
        """Endless batches from a position on; they run on across the border of epochs."""
        return self._load(self._requests(position or DataPosition()))

    def one_pass(self) -> Generator[LoadedBatch, None, None]:
        """Every sample of the first epoch once, in the order of the corpus; the last batch may be smaller.

        A rank gets nothing of a last global batch that is too small for it.
        """
        return self._load(self._requests_in_order())

    def _load(self, requests: Iterable[_Request]) -> Generator[LoadedBatch, None, None]:
        yield from DataLoader(
            self._builder,
            sampler=requests,
            batch_size=None,
            num_workers=self._workers_num,
            pin_memory=self._pin_memory,
            worker_init_fn=_leave_signals_to_the_main_process,
            # Without it each pass would advance the generator of dropout, and resuming would differ.
            generator=torch.Generator(),
        )

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
            keys, order = self._keys(epoch), streams(self.seed, _ORDER, epoch)
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

    def _requests_in_order(self) -> Iterator[_Request]:
        plan, step = self._keys(0), self.batch_size * self._world_size
        for offset in range(0, plan.size, step):
            begin = offset + self._rank * self.batch_size
            keys = plan[begin : min(begin + self.batch_size, offset + step)]
            if keys.size:
                yield _Request(keys, np.zeros_like(keys), DataPosition(0, min(offset + step, plan.size)))
