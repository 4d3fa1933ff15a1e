"""Pre-train a model: `python pretrain.py --dataset_path … --config_path … --output_model_path …`."""

from __future__ import annotations

from tencentpretrain.errors import run_program
from tencentpretrain.training.dry_run import dry_run
from tencentpretrain.training.engines.processes import Place, run_processes
from tencentpretrain.training.pretraining import make_trainer
from tencentpretrain.training.report import start_logging
from tencentpretrain.training.settings import read_settings


def main() -> None:
    settings = read_settings()
    pretrain, place = settings.pretrain, settings.place
    if pretrain.dry_run:
        if place.rank == 0:
            print(dry_run(settings))
        return
    if place.world_size > 1 and Place.here() is None:
        run_processes(main, place.world_size, pretrain.local_ranks, pretrain.master_ip)
        return
    start_logging(settings.run, place.rank)
    trainer = make_trainer(settings)
    try:
        trainer.train()
    finally:
        trainer.report.close()


if __name__ == "__main__":
    run_program(main)
