"""Split a weights file into a directory of smaller ones; `--help` lists the options."""

from __future__ import annotations

from tencentpretrain.blocks import BlocksConfig, convert_into_blocks
from tencentpretrain.config import Options
from tencentpretrain.errors import run_program


def main() -> None:
    (config,) = Options("Split a weights file.", BlocksConfig).build(BlocksConfig)
    print(convert_into_blocks(config))


if __name__ == "__main__":
    run_program(main)
