"""Corpus to token store: `python preprocess.py --corpus_path … --vocab_path … --data_processor mlm`."""

from __future__ import annotations

from tencentpretrain.config import DataConfig, Options, PreprocessConfig, TokenizerConfig, as_json
from tencentpretrain.data.preprocess import preprocess
from tencentpretrain.data.store import TokenStore
from tencentpretrain.errors import run_program
from tencentpretrain.registry import PROCESSORS
from tencentpretrain.tokenizers import build_tokenizer


def main() -> None:
    concerns = (PreprocessConfig, DataConfig, TokenizerConfig)
    options = Options("Tokenise a corpus once, into a token store.", *concerns)
    config, data, tokenizer_config = options.build(*concerns)
    for note in options.notes:
        print(note)
    tokenizer = build_tokenizer(tokenizer_config)
    processor = PROCESSORS[data.data_processor]
    for role in processor.roles:
        tokenizer.require(role)  # before the work, not when training starts
    given = {name: value for name, value in as_json(data).items() if options.given(name)}
    report = preprocess(config, processor.layout, tokenizer, given)
    if str(report):
        print(report)
    store = TokenStore.open(config.dataset_path)
    print(
        f"{config.dataset_path}: {store.documents_num:,} documents, {store.sentences_num:,} sentences, "
        f"{store.tokens_num:,} tokens of a vocabulary of {tokenizer.vocab_size:,}."
    )


if __name__ == "__main__":
    run_program(main)
