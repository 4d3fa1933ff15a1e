"""What the data fixes about a model."""

from __future__ import annotations

from typing import NamedTuple


class DataSizes(NamedTuple):
    """Sizes that modules take from the data, not from the configuration.

    Attributes:
        vocab_size: rows of the word embedding and of the vocabulary layers.
        labels_num: classes of the cls target; None where there is none.
    """

    vocab_size: int
    labels_num: int | None = None
