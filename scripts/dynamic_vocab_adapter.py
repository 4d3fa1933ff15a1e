"""Give a model another vocabulary; `--help` lists the options."""

from __future__ import annotations

from tencentpretrain.config import Options
from tencentpretrain.errors import run_program
from tencentpretrain.tokenizers.vocab_tools import AdapterConfig, adapt_vocab


def main() -> None:
    (config,) = Options("Give a model another vocabulary.", AdapterConfig).build(AdapterConfig)
    print(adapt_vocab(config))


if __name__ == "__main__":
    run_program(main)
