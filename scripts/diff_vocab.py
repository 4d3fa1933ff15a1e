"""Compare two vocabularies; `--help` lists the options."""

from __future__ import annotations

from tencentpretrain.config import Options
from tencentpretrain.errors import run_program
from tencentpretrain.tokenizers.vocab_tools import DiffVocabConfig, diff_vocab


def main() -> None:
    (config,) = Options("Compare two vocabularies.", DiffVocabConfig).build(DiffVocabConfig)
    print(diff_vocab(config))


if __name__ == "__main__":
    run_program(main)
