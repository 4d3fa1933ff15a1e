"""Engines of two processes have the loss curve and the gradients of one process. An engine is a line here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_ddp import STEPS, assert_same_curve, assert_same_gradients, run, write_stores

from tencentpretrain.training import report
from tencentpretrain.training.engines.processes import run_processes

ENGINES: dict[str, dict[str, Any]] = {
    "fsdp": {"engine": "fsdp"},
    **{
        f"zero-{stage}": {"engine": "deepspeed", "deepspeed_config": f"zero-{stage}.json"}
        for stage in range(4)
    },
}
MODELS = ("bert", "gpt2", "t5")
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"batch_size": 4},
    "accumulated": {"batch_size": 2, "accumulation_steps": 2},
}


def train_all(place: Path) -> None:
    """What a process of the two does."""
    torch.set_num_threads(1)
    report.draw_curves = lambda records, path: None
    os.chdir(place)
    dist.init_process_group("gloo")  # for all runs, which leave it as it is
    outcomes = {}
    for engine, options in ENGINES.items():
        for model in MODELS:
            for variant, batches in VARIANTS.items():
                name = f"{engine}-{model}-{variant}"
                evaluation = {"eval_dataset_path": place / "dev", "eval_steps": 10}
                outcomes[name] = run(
                    place, f"{name}.bin", model, dist.get_rank(), **options, **batches, **evaluation
                )
    (place / f"outcomes-{dist.get_rank()}.json").write_text(json.dumps(outcomes))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where one process and two have done the same."""
    place = tmp_path_factory.mktemp("engines")
    write_stores(place)
    for stage in range(4):
        zero = {"stage": stage} | ({"stage3_param_persistence_threshold": 20} if stage == 3 else {})
        (place / f"zero-{stage}.json").write_text(json.dumps({"zero_optimization": zero}))
    flush = torch.tensor([1e-40]).mul(0.5).item() == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_curves", lambda records, path: None)
        for model in MODELS:
            options = {"batch_size": 8, "eval_dataset_path": place / "dev", "eval_steps": 10}
            assert run(place, f"one-{model}.bin", model, **options) == f"step {STEPS}"
    run_processes(partial(train_all, place), 2, (0, 1), None)
    yield place
    torch.set_flush_denormal(flush)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_compute_what_one_does(place: Path, engine: str, model: str, variant: str) -> None:
    name = f"{engine}-{model}-{variant}"
    outcomes = [json.loads((place / f"outcomes-{rank}.json").read_text())[name] for rank in range(2)]
    assert outcomes == [f"step {STEPS}"] * 2
    assert_same_curve(place, f"one-{model}", name)
    assert_same_gradients(place, f"one-{model}", name)
