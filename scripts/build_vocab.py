"""Make a vocabulary from a corpus; `--help` lists the options."""

from __future__ import annotations

from tencentpretrain.config import Options
from tencentpretrain.errors import run_program
from tencentpretrain.tokenizers.build_vocab import BuildVocabConfig, build_vocab


def main() -> None:
    (config,) = Options("Make a vocabulary from a corpus.", BuildVocabConfig).build(BuildVocabConfig)
    print(build_vocab(config))


if __name__ == "__main__":
    run_program(main)
