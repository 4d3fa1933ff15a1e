"""What the data fixes about a model."""

from __future__ import annotations

from typing import NamedTuple


class DataSizes(NamedTuple):
    """Sizes that modules take from the data, not from the configuration.

    Attributes:
        vocab_size: rows of the word embedding and of the vocabulary layers.
        labels_num: classes of the cls target; None where there is none.
        tgt_vocab_size: the same as vocab_size for the decoder's side; None: one vocabulary for both.
    """

    vocab_size: int
    labels_num: int | None = None
    tgt_vocab_size: int | None = None

    @property
    def of_target(self) -> DataSizes:
        """Sizes as the decoder's embeddings and the targets see them."""
        return self._replace(vocab_size=self.tgt_vocab_size or self.vocab_size)
