"""What programs need that look at a model's vectors: of sentences, of words."""

from __future__ import annotations

import dataclasses

from tencentpretrain.config.options import option
from tencentpretrain.config.shared import LOAD_MODEL_PATH
from tencentpretrain.config.training import ReadingConfig


@dataclasses.dataclass(frozen=True)
class FeaturesConfig:
    """Features."""

    whitening_size: int | None = option(
        None, "Whiten the vectors and keep this many dimensions; default: leave them as they are.", minimum=1
    )
    normalize_features: bool = option(
        False, "Give vectors the length 1, so that their dot product is their cosine."
    )


@dataclasses.dataclass(frozen=True)
class NeighboursConfig:
    """Neighbours of words."""

    load_model_path: str = LOAD_MODEL_PATH()
    test_path: str = option(..., "Words, one a line; for neighbours in context each with TAB and a sentence.")
    topn: int = option(15, "Neighbours that are printed of each word.", minimum=1)


@dataclasses.dataclass(frozen=True)
class ContextConfig(ReadingConfig):
    """Context: what is put in the word's place, and how it is read."""

    cand_vocab_path: str | None = option(
        None, "Words that are tried, one a line; default: the vocabulary of the model."
    )


@dataclasses.dataclass(frozen=True)
class WordEmbeddingsConfig:
    """Word embeddings."""

    load_model_path: str = LOAD_MODEL_PATH()
    word_embedding_path: str = option(..., "The vectors are written here, in word2vec's text format.")
