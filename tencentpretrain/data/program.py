"""What preprocess.py and scripts/preprocess_ray.py are asked to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from tencentpretrain.config import (
    DataConfig,
    Options,
    PreprocessConfig,
    TargetTokenizerConfig,
    TokenizerConfig,
    as_json,
)
from tencentpretrain.data.preprocess import CorpusReport, preprocess
from tencentpretrain.data.processors.base import Processor
from tencentpretrain.data.words import Segmenter, is_chinese
from tencentpretrain.errors import ConfigError
from tencentpretrain.registry import PROCESSORS
from tencentpretrain.tokenizers import Tokenizer, build_tokenizer

CONCERNS = (PreprocessConfig, DataConfig, TokenizerConfig, TargetTokenizerConfig)


class Job(NamedTuple):
    """A corpus and what becomes of it."""

    config: PreprocessConfig
    layout: str
    tokenizer: Tokenizer
    options: dict[str, Any]  # data options that the store remembers
    tgt_tokenizer: Tokenizer | None
    notes: list[str]  # about options without effect
    words: bool  # whether the store shall know the words of the texts
    processor: type[Processor]

    def run(self) -> CorpusReport:
        segmenter = Segmenter(self.config.user_dict_path) if self.words else None
        return preprocess(
            self.config,
            self.layout,
            self.tokenizer,
            self.options,
            self.tgt_tokenizer,
            segmenter,
            processor=self.processor,
        )


def read_job(arguments: Sequence[str] | None = None) -> Job:
    """The options of preprocess.py, checked before any work.

    Args:
        arguments: default: the command line.

    Raises:
        UserError: options that are wrong or do not fit each other, or an unusable vocabulary.
    """
    options = Options("Tokenise a corpus once, into a token store.", *CONCERNS, arguments=arguments)
    config, data, tokenizer_config, tgt_tokenizer_config = options.build(*CONCERNS)
    tokenizer = build_tokenizer(tokenizer_config)
    tgt_config = tgt_tokenizer_config.as_tokenizer_config()
    tgt_tokenizer = None if tgt_config is None else build_tokenizer(tgt_config)
    processor = PROCESSORS[data.data_processor]
    if tgt_tokenizer is not None and not processor.two_vocabularies:
        raise ConfigError(
            f"data processor '{data.data_processor}' has one tokenizer; leave the --tgt_ options out."
        )
    for side in (tokenizer, tgt_tokenizer or tokenizer):  # before the work, not when training starts
        processor.check(data, side)
    if config.user_dict_path is not None and not data.whole_word_masking:
        raise ConfigError("--user_dict_path has words for --whole_word_masking; give that too, or neither.")
    words = data.whole_word_masking and (config.user_dict_path is not None or is_chinese(tokenizer))
    if processor.json_corpus:
        config = dataclasses.replace(config, json_format_corpus=True)
    given = {name: value for name, value in as_json(data).items() if options.given(name)}
    notes = options.notes
    if config.part is not None and config.dedup is not None:
        notes.append("--dedup compares the documents of this part of the corpus only, not those of others.")
    return Job(config, processor.layout, tokenizer, given, tgt_tokenizer, notes, words, processor)
