"""How examples are built from tokens."""

from __future__ import annotations

import dataclasses
import re
from typing import ClassVar

from tencentpretrain.config.options import option
from tencentpretrain.config.shared import CORPUS_PATH, PLUGINS, SEED
from tencentpretrain.errors import ConfigError
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
        0.1, "Probability of an example shorter than seq_length (bert, albert).", minimum=0, maximum=1
    )
    tgt_seq_length: int = option(
        128, "Length of the decoder's side of an example, in tokens (mt, gsg).", minimum=2
    )
    sentence_selection_strategy: str = option(
        "lead",
        "Sentences that gsg predicts: the first, random ones, or those most like the rest (ROUGE-1).",
        choices=("lead", "random", "principal"),
    )
    full_sentences: bool = option(
        False, "Join documents across lines so that examples are full (mlm, lm, bilm, t5)."
    )
    packing: bool = option(
        False,
        "Several samples share a row without seeing each other (bert albert mlm lm llm_pretrain prefixlm "
        "llm_sft).",
    )
    whole_word_masking: bool = option(
        False, "Hide all of a word together; preprocess.py finds Chinese words then."
    )
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
    processes_num: int = option(
        1, "Processes that tokenise, at most 4 a core; the result does not depend on it.", minimum=1
    )
    max_bad_lines: int = option(1000, "More unusable lines than this are an error.", minimum=0)
    shard: str | None = option(
        None, "i/n: only part i (from 1) of n of the corpus; scripts/merge_datasets.py joins the parts."
    )
    dedup: str | None = option(
        None, "Leave out documents that were there before (exact: equal tokens).", choices=("exact",)
    )
    user_dict_path: str | None = option(
        None,
        "Further words for --whole_word_masking in Chinese, as jieba takes them: word [frequency] [tag].",
    )
    resume: str = option(
        "auto",
        "auto: go on where an equal run was interrupted; never: begin anew.",
        choices=("auto", "never"),
        alone="auto",
    )
    plugins: tuple[str, ...] = PLUGINS()

    obsolete: ClassVar[dict[str, str]] = {
        "docs_buffer_size": "documents are streamed, memory does not depend on the corpus.",
    }

    def __post_init__(self) -> None:
        if self.shard is not None and self.part is None:
            raise ConfigError(f"--shard is '{self.shard}', expected i/n with i from 1 to n, as in 2/8.")

    @property
    def part(self) -> tuple[int, int] | None:
        """The number of the part of the corpus that is wanted, and of how many."""
        numbers = re.fullmatch(r"(\d{1,6})/(\d{1,6})", self.shard or "")
        if numbers is None or not 1 <= int(numbers[1]) <= int(numbers[2]):
            return None
        return int(numbers[1]), int(numbers[2])
