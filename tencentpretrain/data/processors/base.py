"""What a data processor is: it turns tokens of the store into the rows of a batch."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from tencentpretrain.batch import IGNORED
from tencentpretrain.config.data import DataConfig
from tencentpretrain.data.masking import Masking
from tencentpretrain.data.random import Ints, Purpose, UInts, streams
from tencentpretrain.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tencentpretrain.data.store import TokenStore
    from tencentpretrain.tokenizers.base import Tokenizer

Arrays = dict[str, npt.NDArray[Any]]

EMPTY = "the dataset is empty; make it with preprocess.py from a corpus with text."


def padding_of(field: str, pad_id: int) -> int:
    """What stands in a field of a batch where there is no token."""
    if field.endswith("_labels"):
        return IGNORED
    return pad_id if field.endswith("input_ids") else 0


class Processor:
    """Builds the examples of one objective.

    Args:
        store: the tokenised corpus.
        config: how examples are built.
        tokenizer: the tokenizer the store was made with.

    Raises:
        ConfigError: `seq_length` is too small.
        DataError: the dataset is empty, damaged or laid out for other processors; a special token is
            missing.
    """

    name: ClassVar[str]
    second_segment: ClassVar[bool] = False  # whether lm's labels may be those of a second segment
    json_corpus: ClassVar[bool] = False  # whether its corpora are always JSON lines
    layout: ClassVar[str]  # what preprocess.py makes of a corpus for this processor
    readable: ClassVar[tuple[str, ...]]  # the layouts it can build examples from
    provides: ClassVar[tuple[str, ...]]  # the batch fields it fills
    target_length: ClassVar[str] = "seq_length"  # the option that bounds what a decoder reads
    two_vocabularies: ClassVar[bool] = False  # whether its two texts may have a tokenizer each
    roles: ClassVar[tuple[str, ...]] = ()  # the special tokens it puts into rows
    shortest: ClassVar[int] = 4  # the least seq_length
    plans_differ: ClassVar[bool] = False  # whether epochs consist of different samples
    masks_words: ClassVar[bool] = False  # whether it hides tokens, with whole_word_masking whole words

    def __init__(self, store: TokenStore, config: DataConfig, tokenizer: Tokenizer) -> None:
        if store.documents_num == 0:
            raise DataError(f"{store.path}: {EMPTY}")
        if store.layout not in self.readable:
            raise DataError(
                f"{store.path}: the dataset has the layout '{store.layout}', data processor '{self.name}' "
                f"needs '{self.layout}'; make it with preprocess.py --data_processor {self.name}."
            )
        self.check(config, tokenizer)
        store.check_borders()
        # Some vocabularies have no [PAD]; segment 0 says what is padding, so any id that is never hidden will
        # do.
        special = min(tokenizer.special_ids, default=0)
        self.pad_id: int = special if tokenizer.pad_id is None else tokenizer.pad_id
        marked = self.masks_words and config.whole_word_masking and store.has_words
        self.store = store.marking_words() if marked else store
        self.config = config
        self.tokenizer = tokenizer

    @functools.cached_property
    def _masking(self) -> Masking:
        """What chooses the tokens to hide."""
        return Masking(self.config, self.tokenizer, marked=self.store.marks_words)

    @classmethod
    def check(cls, config: DataConfig, tokenizer: Tokenizer) -> None:
        """Refuse options and vocabularies that no dataset would make usable."""
        if config.seq_length < cls.shortest:
            raise ConfigError(
                f"`seq_length` must be at least {cls.shortest} for data processor '{cls.name}', but is "
                f"{config.seq_length}."
            )
        for role in cls.roles:
            tokenizer.require(role)

    @classmethod
    def problem(cls, documents_num: int, sentences_num: int) -> str:
        """Why a corpus of so many documents and sentences is of no use; empty: it is."""
        return ""

    def plan(self, epoch: int) -> Ints:
        """The keys [n] of the samples of an epoch, in the order of the corpus."""
        raise NotImplementedError

    def lengths(self, keys: Ints, epochs: Ints) -> Ints:
        """Tokens of each sample, [B]; processors that have it can be packed."""
        raise NotImplementedError

    def build(self, keys: Ints, epochs: Ints) -> Arrays:
        """The rows of samples.

        Args:
            keys: [B], from the plans of their epochs.
            epochs: [B], the epoch each sample belongs to.

        Returns:
            The fields of `provides`, [B, seq_length] with padding, or [B].
        """
        raise NotImplementedError

    def draw(self, epochs: Any) -> Any:
        """The number of the drawing an epoch uses: its own, or one of `dup_factor` in turn."""
        return epochs if self.config.dup_factor is None else epochs % self.config.dup_factor

    def streams(self, keys: Ints, epochs: Any, purpose: Purpose) -> UInts:
        """The randomness of each sample, [B]."""
        return streams(self.config.seed, purpose, self.draw(epochs), keys)


def first_at_least(values_at: Callable[[Ints], Ints], low: Ints, high: Ints, wanted: Ints) -> Ints:
    """For each place the smallest index in [low, high) whose value is at least `wanted`, else `high`.

    `values_at` must grow with the index. Binary searches, all at once, in an array that may lie on disk.
    """
    while (searching := low < high).any():
        middle = (low + high) // 2
        reached = ~searching
        reached[searching] = values_at(middle[searching]) >= wanted[searching]
        low, high = np.where(reached, low, middle + 1), np.where(reached, middle, high)
    return low


def fit_pair(first: Ints, second: Ints, room: int) -> tuple[Ints, Ints]:
    """Lengths after taking tokens one by one from the longer text until both fit into `room`."""
    return (
        np.minimum(first, np.maximum(room - second, (room + 1) // 2)),
        np.minimum(second, np.maximum(room - first, room // 2)),
    )


def pair_rows(
    processor: Processor, starts: tuple[Ints, Ints], lengths: tuple[Ints, Ints]
) -> tuple[Ints, Ints]:
    """Rows [CLS] a [SEP] b [SEP], or [CLS] a [SEP] where b is empty.

    Args:
        starts: token positions of a and of b, [B] each.
        lengths: their numbers of tokens, [B] each.

    Returns:
        input_ids and segment_ids, [B, seq_length].
    """
    tokenizer, width = processor.tokenizer, processor.config.seq_length
    (first, second), (a, b) = (array[:, None] for array in starts), (array[:, None] for array in lengths)
    columns = np.arange(width)
    total = a + 2 + np.where(b > 0, b + 1, 0)
    used = columns < total
    positions = np.where(columns <= a + 1, first + columns - 1, second + columns - a - 2)
    special = (columns == 0) | (columns == a + 1) | (columns == total - 1)
    input_ids = np.full(used.shape, processor.pad_id, np.int64)
    inside = used & ~special
    input_ids[inside] = processor.store.tokens_at(positions[inside])
    input_ids[special] = tokenizer.require("sep")
    input_ids[:, 0] = tokenizer.require("cls")
    segment_ids = np.where(used, np.where(columns <= a + 1, 1, 2), 0)
    return input_ids, segment_ids
