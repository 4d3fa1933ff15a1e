"""The mean of several weights files of one model; `--help` lists the options."""

from __future__ import annotations

from tencentpretrain.average import AverageConfig, average_models
from tencentpretrain.config import Options
from tencentpretrain.errors import run_program


def main() -> None:
    (config,) = Options("Average weights of one model.", AverageConfig).build(AverageConfig)
    print(average_models(config))


if __name__ == "__main__":
    run_program(main)
