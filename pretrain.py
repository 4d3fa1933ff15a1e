"""Pre-train a model: `python pretrain.py --dataset_path … --config_path … --output_model_path …`."""

from __future__ import annotations

from tencentpretrain.errors import run_program
from tencentpretrain.training.pretraining import dry_run, make_trainer, read_settings
from tencentpretrain.training.report import start_logging


def main() -> None:
    settings = read_settings()
    if settings.pretrain.dry_run:
        print(dry_run(settings))
        return
    start_logging(settings.run)
    trainer = make_trainer(settings)
    try:
        trainer.train()
    finally:
        trainer.report.close()


if __name__ == "__main__":
    run_program(main)
