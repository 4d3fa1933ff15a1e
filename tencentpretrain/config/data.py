"""How examples are built from tokens."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tencentpretrain.config.options import option
from tencentpretrain.config.shared import CORPUS_PATH, PLUGINS, SEED
from tencentpretrain.registry import PROCESSORS


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Examples: how they are built from the corpus."""

    data_processor: str = option("bert", "How examples are built.", choices=lambda: PROCESSORS)
    seq_length: int = option(128, "Length of an example, in tokens.", minimum=4)
    seed: int = SEED()
    dup_factor: int | None = option(
        None,
        "Use only this many different maskings of the corpus, in turn; default: a new one every epoch.",
        minimum=1,
    )
    short_seq_prob: float = option(
        0.1, "Probability of an example shorter than seq_length (bert).", minimum=0, maximum=1
    )
    full_sentences: bool = option(False, "Join documents across lines so that examples are full (mlm, lm).")
    whole_word_masking: bool = option(False, "Hide all pieces of a word together.")
    span_masking: bool = option(False, "Hide spans of geometrically distributed length.")
    span_geo_prob: float = option(
        0.2, "Parameter of the geometric distribution of span lengths.", minimum=1e-6, maximum=1
    )
    span_max_length: int = option(10, "Longest span, in tokens (words with whole_word_masking).", minimum=1)

    obsolete: ClassVar[dict[str, str]] = {
        "dynamic_masking": "masking is always drawn anew; --dup_factor N limits it to N different maskings.",
    }


@dataclasses.dataclass(frozen=True)
class PreprocessConfig:
    """Preprocessing: corpus to token store."""

    corpus_path: tuple[str, ...] = CORPUS_PATH()
    dataset_path: str = option("dataset.pt", "Directory the token store is written to.")
    json_format_corpus: bool = option(False, "Lines are JSON objects with a 'text' key.")
    processes_num: int = option(1, "Processes that tokenise; the result does not depend on it.", minimum=1)
    max_bad_lines: int = option(1000, "More unusable lines than this are an error.", minimum=0)
    plugins: tuple[str, ...] = PLUGINS()

    obsolete: ClassVar[dict[str, str]] = {
        "docs_buffer_size": "documents are streamed, memory does not depend on the corpus.",
    }
