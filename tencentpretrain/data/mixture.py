"""Samples from several token stores, each with a probability."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tencentpretrain.data.processors.base import EMPTY, Arrays, Processor, padding_of
from tencentpretrain.data.processors.plans import CHUNK, joined
from tencentpretrain.data.random import Ints, Purpose, shuffled, streams
from tencentpretrain.data.store import TokenStore
from tencentpretrain.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tencentpretrain.config import Options

# A key of the mixture is source · 2^56 + epoch of the source · 2^40 + key of the source.
_SOURCE, _EPOCH = 56, 40
_SOURCES, _EPOCHS = 1 << (63 - _SOURCE), 1 << (_SOURCE - _EPOCH)
# Of a source in a training; the rest is for epochs that are smaller than the first.
MOST_EPOCHS = _EPOCHS // 2


class Source(NamedTuple):
    """A store and the probability that a sample comes from it; None: what its share of the samples is."""

    store: TokenStore
    weight: float | None


def open_sources(paths: Sequence[str]) -> tuple[Source, ...]:
    """The stores that `--dataset_path` names, each as PATH or PATH:WEIGHT; probabilities add up to 1.

    Without weights every sample of every store is as probable as any other.

    Raises:
        ConfigError: some have a weight and some not, or a weight is not above 0.
        DataError: no store there, or the stores do not go together.
    """
    named = [_split(path) for path in paths]
    stores = [TokenStore.open(path) for path, _ in named]
    weights = [weight for _, weight in named if weight is not None]
    if weights and len(weights) < len(named):
        raise ConfigError("--dataset_path: give every dataset a weight (PATH:0.7), or none.")
    for store in stores:
        if not store.documents_num:
            raise DataError(f"{store.path}: {EMPTY}")
    first = stores[0]
    for store in stores[1:]:
        if [store.tokenizer.fingerprint, store.tgt_tokenizer.fingerprint] != [
            first.tokenizer.fingerprint,
            first.tgt_tokenizer.fingerprint,
        ]:
            raise DataError(f"{store.path} was made with another tokenizer than {first.path}; make it again.")
    if len({store.path.resolve() for store in stores}) < len(stores):
        raise ConfigError("--dataset_path names a dataset twice; give it a larger weight instead.")
    if len(stores) > _SOURCES:
        raise ConfigError(f"--dataset_path names {len(stores)} datasets, at most {_SOURCES} can be mixed.")
    if not weights:
        return tuple(Source(store, None if len(stores) > 1 else 1.0) for store in stores)
    return tuple(Source(store, weight / sum(weights)) for store, weight in zip(stores, weights, strict=True))


def check_options(stores: Sequence[TokenStore], options: Options) -> None:
    """Refuse options that stores remember differently, and that nothing before them says.

    Raises:
        ConfigError: with all of them.
    """
    names = dict.fromkeys(name for store in stores for name in store.options)
    problems = []
    for name in names:
        values = [store.options.get(name) for store in stores]
        if any(value != values[0] for value in values) and not options.said(name):
            found = " and ".join("none" if value is None else str(value) for value in values)
            problems.append(f"--{name} must be given: the datasets remember different ones ({found}).")
    if problems:
        raise ConfigError(problems)


def _split(text: str) -> tuple[str, float | None]:
    path, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, None
    try:
        value = float(weight)
    except ValueError:
        return text, None
    if not 0 < value < float("inf"):
        raise ConfigError(f"--dataset_path {text}: a weight must be above 0.")
    return path, value


class MixtureProcessor(Processor):
    """Builds the samples of several processors of one kind.

    An epoch has as many samples as all sources together have in theirs; each source gives its share, and goes
    through its own epochs at its own pace, every one in an order of its own.

    Args:
        processors: one for each source.
        weights: the probability of each, adding up to 1; None for each: of every sample the same.

    Raises:
        ConfigError: see `check_epochs`.
    """

    def __init__(self, processors: Sequence[Processor], weights: Sequence[float | None]) -> None:
        first = processors[0]
        self.name, self.provides, self.pad_id = first.name, first.provides, first.pad_id  # type: ignore[misc]
        self.store, self.config, self.tokenizer = first.store, first.config, first.tokenizer
        self.processors = processors
        self._sizes: list[list[int]] = [[] for _ in processors]  # samples of the epochs of each source so far
        sizes = [self._epoch_size(source, 0) for source in range(len(processors))]
        self._size = sum(sizes)
        self.weights = [
            size / self._size if weight is None else weight
            for size, weight in zip(sizes, weights, strict=True)
        ]
        self.check_epochs(0)

    def epochs(self, samples: float) -> list[float]:
        """Epochs of each source in that many samples of the mixture, if its epochs are like its first one."""
        return [samples * weight / self._epoch_size(source, 0) for source, weight in enumerate(self.weights)]

    def check_epochs(self, samples: float) -> None:
        """Refuse to go through a source more than MOST_EPOCHS times for that many samples of the mixture.

        Raises:
            ConfigError: which source, how often it would be, and what to do.
        """
        planned = (samples // self._size + 1) * self._size  # an epoch is planned as a whole
        for processor, weight, epochs in zip(
            self.processors, self.weights, self.epochs(planned), strict=True
        ):
            if epochs > MOST_EPOCHS:
                raise ConfigError(
                    f"--dataset_path: {processor.store.path} with probability {weight:.3g} would be gone "
                    f"through {epochs:,.0f} times, at most {MOST_EPOCHS:,} are possible; give it a smaller "
                    "weight or more text, or train for fewer --total_steps."
                )

    def plan(self, epoch: int) -> Ints:
        return joined(
            keys
            for source in range(len(self.processors))
            for keys in self._take(source, self._given(source, epoch), self._given(source, epoch + 1))
        )

    def _given(self, source: int, epoch: int) -> int:
        """Samples a source has given before an epoch of the mixture."""
        return round(self.weights[source] * self._size * epoch)

    def _epoch_size(self, source: int, epoch: int) -> int:
        processor, sizes = self.processors[source], self._sizes[source]
        epoch = epoch if processor.plans_differ else 0
        while len(sizes) <= epoch:
            sizes.append(processor.plan(len(sizes)).size)
            if not sizes[-1]:
                raise DataError(f"{processor.store.path}: '{self.name}' finds no samples in it.")
        return sizes[epoch]

    def _take(self, source: int, begin: int, end: int) -> Iterator[Ints]:
        """Samples begin … end of the endless shuffled stream of a source, some at a time."""
        epoch, first = 0, 0  # `first`: samples of the epochs before
        plan = None
        while first < end:
            size = self._epoch_size(source, epoch)
            if first + size > begin:
                order = streams(self.config.seed, Purpose.SOURCES, source, epoch)
                if plan is None:
                    plan = self.processors[source].plan(epoch)
                last = min(end - first, size)
                for low in range(max(begin - first, 0), last, CHUNK):
                    keys = plan[shuffled(np.arange(low, min(low + CHUNK, last)), size, order)]
                    assert epoch < _EPOCHS and keys.max(initial=0) < 1 << _EPOCH
                    yield (source << _SOURCE) + (epoch << _EPOCH) + keys
                if self.processors[source].plans_differ:
                    plan = None  # before the next one is made
            first, epoch = first + size, epoch + 1

    def lengths(self, keys: Ints, epochs: Ints) -> Ints:
        found = np.empty_like(keys)
        for source, here, own_keys, own_epochs in _parts(keys):
            found[here] = self.processors[source].lengths(own_keys, own_epochs)
        return found

    def build(self, keys: Ints, epochs: Ints) -> Arrays:
        parts = [
            (here, self.processors[source].build(own_keys, own_epochs))
            for source, here, own_keys, own_epochs in _parts(keys)
        ]
        found: Arrays = {}
        for name in parts[0][1]:
            arrays = [arrays[name] for _, arrays in parts]
            shape = np.max([array.shape[1:] for array in arrays], axis=0).astype(int)
            found[name] = np.full((keys.size, *shape), padding_of(name, self.pad_id), arrays[0].dtype)
            for (here, _), array in zip(parts, arrays, strict=True):
                places: tuple[Any, ...] = (here, *map(slice, array.shape[1:]))
                found[name][places] = array
        return found


def _parts(keys: Ints) -> Iterator[tuple[int, Ints, Ints, Ints]]:
    """Sources that occur among keys of a mixture: which, where, and its keys and epochs there."""
    sources = keys >> _SOURCE
    for source in np.unique(sources).tolist():
        here = np.flatnonzero(sources == source)
        own = keys[here]
        yield source, here, own & ((1 << _EPOCH) - 1), (own >> _EPOCH) % _EPOCHS
