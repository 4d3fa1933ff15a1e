"""Draw several runs into one picture; `--help` lists the options."""

from __future__ import annotations

from tencentpretrain.config import Options
from tencentpretrain.errors import run_program
from tencentpretrain.training.curves import PlotConfig, plot_runs


def main() -> None:
    (config,) = Options("Compare runs in one picture.", PlotConfig).build(PlotConfig)
    print(plot_runs(config))


if __name__ == "__main__":
    run_program(main)
