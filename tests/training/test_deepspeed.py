"""Engine deepspeed: its configuration, states of every stage and number of processes, deep models."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_ddp import STEPS, assert_same_curve, records_of, run, spoil_losses, write_stores
from test_fsdp import assert_initial_weights, assert_same_weights

from tencentpretrain.errors import ConfigError
from tencentpretrain.training import report, zero_state
from tencentpretrain.training.dry_run import dry_run
from tencentpretrain.training.engines import (
    DeepSpeedEngine,
    DeepSpeedSetup,
    Place,
    read_deepspeed_config,
)
from tencentpretrain.training.engines.processes import run_processes
from tencentpretrain.training.settings import read_settings
from tencentpretrain.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
DEEP = {"layers_num": 90, "deep_init": "true", "total_steps": 2}
RECOMPUTED = {"activation_checkpointing": "true", "checkpointed_layers": 4}
STATES = ((0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "fp32"))
DROPOUT = {
    "batch_size": 3, "total_steps": 8, "accumulation_steps": 2, "report_steps": 4,
}  # fmt: skip


def zero(stage: int, kind: str = "") -> dict[str, Any]:
    return {"deepspeed": "true", "deepspeed_config": f"zero-{stage}{kind}.json"}


def write_configs(place: Path) -> None:
    offload = {"device": "cpu", "pin_memory": True}
    for stage in range(4):
        config: dict[str, Any] = {"stage": stage}
        if stage == 3:
            config["stage3_param_persistence_threshold"] = 20
        offloaded = (
            config | {"offload_optimizer": offload} | ({"offload_param": offload} if stage == 3 else {})
        )
        deep = config | ({"stage3_param_persistence_threshold": 300} if stage == 3 else {})
        for kind, section in (("", config), ("-offload", offloaded), ("-deep", deep)):
            (place / f"zero-{stage}{kind}.json").write_text(json.dumps({"zero_optimization": section}))


def keep_parts(place: Path, name: str, trainer: Trainer) -> None:
    """How many numbers this process has of the weights, and of all."""
    weights = list(trainer.engine.model.parameters())
    own = sum(weight.ds_tensor.numel() for weight in weights)  # type: ignore[attr-defined]
    beside = sum(weight.numel() for weight in weights if weight.ds_numel > 20)  # type: ignore[attr-defined]
    whole = sum(weight.ds_numel for weight in weights)  # type: ignore[attr-defined]
    (place / f"{name}-{trainer.engine.rank}").write_text(json.dumps([own, beside, whole]))


def one_of_two(place: Path) -> None:
    torch.set_num_threads(1)
    report.draw_curves = lambda records, path: None
    os.chdir(place)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    outcomes: dict[str, str] = {}

    def train(name: str, model: str, **options: Any) -> None:
        outcomes[name] = run(place, f"{name}.bin", model, rank, **options)

    for stage, precision in STATES:
        options = DROPOUT | zero(stage) | {"precision": precision}
        kind = f"{stage}-{precision}"
        train(f"whole-{kind}", "dropout", **options)
        train(f"parts-{kind}", "dropout", **options, stop={1: (3, signal.SIGTERM)})
        outcomes[f"stop-{kind}"] = outcomes[f"parts-{kind}"]
        train(f"parts-{kind}", "dropout", **options)
    background = {"async_checkpoint": "true", "save_checkpoint_steps": 2}
    train("background", "dropout", **DROPOUT, **zero(2), **background, stop={1: (5, signal.SIGTERM)})
    train("background", "dropout", **DROPOUT, **zero(2), **background)
    for stage in (1, 2, 3):
        train(f"half-{stage}", "bert", **zero(stage), batch_size=4, total_steps=6)
        train(f"more-{stage}", "bert", **zero(stage), batch_size=4, resume=place / "one-half.bin.states/6")
        train(f"offload-{stage}", "bert", **zero(stage, "-offload"), batch_size=4, total_steps=4)
    resume = {"resume": place / "half-3.bin.states/6"}
    train("ddp", "bert", batch_size=4, **resume)
    train("fsdp", "bert", batch_size=4, engine="fsdp", **resume)
    still = {"learning_rate": 0, "total_steps": 1, "deep_init": "true"}
    train("initial", "bert", **zero(3), **still, disturb=partial(keep_parts, place, "kept"))
    loaded = {"pretrained_model_path": place / "one-half.bin", "learning_rate": 0, "total_steps": 1}
    outcomes["loaded"] = run(place, "loaded.safetensors", "bert", rank, **zero(3), **loaded)
    for stage in (2, 3):
        spoil = partial(spoil_losses, (2,) if rank == 1 else ())
        train(f"spoilt-{stage}", "bert", **zero(stage), batch_size=4, total_steps=4, disturb=spoil)
    save = torch.save

    def full(value: Any, path: Any, **options: Any) -> None:
        if rank == 1 and "/.2." in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(value, path, **options)

    torch.save = full
    for name, options in (("full", {}), ("full-background", {"async_checkpoint": "true"})):
        train(name, "bert", **zero(2), save_checkpoint_steps=2, total_steps=4, **options)
    (place / f"outcomes-{rank}.json").write_text(json.dumps(outcomes))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("deepspeed")
    write_stores(place)
    write_configs(place)
    flush = torch.tensor([1e-40]).mul(0.5).item() == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(report, "draw_curves", lambda records, path: None)
        assert run(place, "one.bin", "bert", batch_size=8) == f"step {STEPS}"
        assert run(place, "one-half.bin", "bert", batch_size=8, total_steps=6) == "step 6"
        assert (
            run(place, "one-initial.bin", "bert", learning_rate=0, total_steps=1, deep_init="true")
            == "step 1"
        )
        run_processes(partial(one_of_two, place), 2, (0, 1), None)
        # One group for all runs, which leave it as it is; DeepSpeed keeps the first for good.
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        for stage in (1, 2, 3):
            resume = {"resume": place / f"half-{stage}.bin.states/6", "batch_size": 8}
            assert run(place, f"alone-{stage}.bin", "bert", **zero(stage), **resume) == f"step {STEPS}"
        assert run(place, "single.bin", "bert", **resume) == f"step {STEPS}"
        dist.destroy_process_group()
    yield place
    torch.set_flush_denormal(flush)


@pytest.mark.parametrize("kind", [f"{stage}-{precision}" for stage, precision in STATES])
def test_a_stopped_run_ends_as_the_undisturbed_one(
    place: Path, outcomes: Callable[[str], list[str]], kind: str
) -> None:
    """Bit for bit, with dropout and accumulation; published are the fp32 weights."""
    assert outcomes(f"stop-{kind}") == ["Terminated: "] * 2
    assert outcomes(f"parts-{kind}") == outcomes(f"whole-{kind}") == ["step 8"] * 2
    assert_same_weights(place / f"whole-{kind}.bin", place / f"parts-{kind}.bin")
    assert_same_curve(place, f"whole-{kind}", f"parts-{kind}")
    weights = torch.load(place / f"whole-{kind}.bin", weights_only=True)
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    if kind.endswith("bf16"):  # they have more digits than bf16
        assert not all(torch.equal(weight, weight.bfloat16().float()) for weight in weights.values())


def test_states_written_in_the_background_are_the_same(
    place: Path, outcomes: Callable[[str], list[str]]
) -> None:
    assert outcomes("background") == ["step 8"] * 2
    assert_same_weights(place / "whole-2-fp32.bin", place / "background.bin")


@pytest.mark.parametrize(
    "name", ["alone-1", "alone-2", "alone-3", "single", "ddp", "fsdp", "more-1", "more-2", "more-3"]
)
def test_other_numbers_of_processes_and_engines_go_on(place: Path, name: str) -> None:
    """Of two processes' state one process, or another engine; of one process's state two."""
    assert_same_curve(place, "one", name, first_step=7)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloading_changes_nothing(place: Path, outcomes: Callable[[str], list[str]], stage: int) -> None:
    assert outcomes(f"offload-{stage}") == ["step 4"] * 2
    losses = [[record["loss"] for record in records_of(place, name)] for name in ("one", f"offload-{stage}")]
    assert losses[1] == pytest.approx(losses[0][:4], rel=1e-5)


def test_no_process_has_the_whole_of_stage_3(place: Path) -> None:
    for rank in range(2):
        own, beside, whole = json.loads((place / f"kept-{rank}").read_text())
        assert whole / 2 <= own < whole / 2 + 30 and beside == 0


def test_initial_weights_are_those_of_one_process(place: Path) -> None:
    assert_initial_weights(place)


def one_of_the_deep(place: Path) -> None:
    torch.set_num_threads(1)
    report.draw_curves = lambda records, path: None
    os.chdir(place)
    dist.init_process_group("gloo")
    options = DEEP | RECOMPUTED | zero(3, "-deep")
    assert run(place, "deep.bin", "bert", dist.get_rank(), **options, batch_size=4) == "step 2"


@pytest.mark.slow
def test_ninety_layers_with_recomputed_activations(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "draw_curves", lambda records, path: None)
    assert run(place, "one-deep.bin", "bert", **DEEP, batch_size=8) == "step 2"
    run_processes(partial(one_of_the_deep, place), 2, (0, 1), None)
    assert_same_curve(place, "one-deep", "deep")


def test_the_published_ninety_layers_are_planned(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command = json.loads((ROOT / "models/bert/90-layer_config.json").read_text())["about"]["command"]
    arguments = command.replace("--dataset_path dataset", f"--dataset_path {place / 'train'}").split()[2:]
    text = dry_run(
        read_settings([*arguments, "--seq_length", "512", "--batch_size", "64", "--precision", "bf16"])
    )
    assert "engine: deepspeed, ZeRO stage 3, 8 processes" in text
    assert "transformer (90 layers of 1024) → mlm+sp, 1,1" in text


@pytest.mark.parametrize("stage", [2, 3])
def test_an_update_that_is_not_finite_is_left_out(
    place: Path, outcomes: Callable[[str], list[str]], stage: int
) -> None:
    assert outcomes(f"spoilt-{stage}") == ["step 4"] * 2
    assert records_of(place, f"spoilt-{stage}")[-1]["skipped_steps"] == 1
    weights = torch.load(place / f"spoilt-{stage}.bin", weights_only=True)
    assert all(weight.isfinite().all() for weight in weights.values())


@pytest.mark.parametrize("name", ["full", "full-background"])
def test_a_disk_that_is_full_for_one_process_fails_the_save_of_all(
    place: Path, outcomes: Callable[[str], list[str]], name: str
) -> None:
    assert outcomes(name) == ["step 4"] * 2
    assert [path.name for path in (place / f"{name}.bin.states").iterdir()] == ["4"]
    assert "No space left on device" in (place / f"{name}.bin.log").read_text()


class Harmful:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


def test_files_that_would_run_code_are_refused(tmp_path: Path) -> None:
    torch.save({"module": Harmful()}, tmp_path / "states.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        zero_state.load_file(tmp_path / "states.pt")


def read(tmp_path: Path, config: object, precision: str = "auto", optimizer: str = "adamw") -> Any:
    (tmp_path / "config.json").write_text(json.dumps(config))
    decided = {
        "train_micro_batch_size_per_gpu": (4, "--batch_size"),
        "gradient_clipping": (1.0, "--max_grad_norm"),
        "optimizer.params.lr": (1e-3, "--learning_rate"),
        "optimizer.params.betas": ([0.9, 0.99], "--beta1 --beta2"),
    }
    return read_deepspeed_config(tmp_path / "config.json", decided, precision, optimizer)


def test_what_the_configuration_leaves_open_is_filled_in(tmp_path: Path) -> None:
    setup = read(
        tmp_path,
        {
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_clipping": 1.0,
            "bf16": {"enabled": True},
            "optimizer": {"type": "Adam", "params": {"lr": 1e-3, "betas": [0.9, 0.99], "eps": "auto"}},
            "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto", "allgather_bucket_size": 1e6},
        },
    )
    assert setup.precision == "bf16" and setup.stage == 2
    assert setup.config["train_micro_batch_size_per_gpu"] == 4 and "optimizer" not in setup.config
    assert setup.config["zero_optimization"] == {"stage": 2, "allgather_bucket_size": 1e6}
    assert read(tmp_path, {}, "bf16").stage == 0 and read(tmp_path, {}, "bf16").precision == "bf16"


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (
            {"train_micro_batch_size_per_gpu": 3},
            {},
            "gpu is 3, but --batch_size is 4; make them equal, or .*auto",
        ),
        (
            {"optimizer": {"params": {"lr": 0.1}}},
            {},
            r"optimizer.params.lr is 0.1, but --learning_rate is 0.001",
        ),
        (
            {"optimizer": {"params": {"betas": [0.9, 0.9]}}},
            {},
            r"\[0.9, 0.9\], but --beta1 --beta2 is \[0.9, 0.99\]",
        ),
        (
            {"optimizer": {"type": "SGD"}},
            {},
            "optimizer.type is SGD, which does not go with --optimizer adamw",
        ),
        ({"scheduler": {"type": "WarmupLR"}}, {}, "scheduler: not an option that can be used here"),
        ({"zero_optimisation": {}}, {}, r"did you mean 'zero_optimization'\?"),
        ({"zero_optimization": {"stage": 7}}, {}, "zero_optimization.stage is 7: "),
        ({"zero_optimization": {"stag": 1}}, {}, "zero_optimization.stag is 1: "),
        (
            {"zero_optimization": {"offload_param": {"device": "nvme"}}},
            {},
            "device is nvme; expected cpu or none",
        ),
        ({"fp16": {"enabled": True}}, {"precision": "bf16"}, "fp16 is enabled, but --precision is bf16"),
        ({"bf16": {"enabled": False}}, {"precision": "bf16"}, "bf16 is not enabled, but --precision is bf16"),
        ({"zero_optimization": {"stage": 1}}, {"optimizer": "adafactor"}, "adafactor needs whole matrices"),
        ([], {}, "expected an object"),
        (
            {"zero_optimization": {"stage": "2"}},
            {},
            'config.json: .*stage is "2"; expected a number or "auto"',
        ),
        ({"zero_optimization": 3}, {}, "config.json: zero_optimization is 3; expected an object"),
        ({"zero_optimization": "x"}, {}, 'zero_optimization is "x"; expected an object'),
        ({"zero_optimization": None}, {}, "zero_optimization is null; expected an object"),
        ({"optimizer": {"type": 5}}, {}, "optimizer.type is 5; expected a string"),
        ({"optimizer": "Adam"}, {}, 'optimizer is "Adam"; expected an object'),
        ({"optimizer": {"params": 3}}, {}, "optimizer.params is 3; expected an object"),
        ({"fp16": True}, {}, "fp16 is true; expected an object"),
        ({"fp16": {"enabled": "yes"}}, {}, 'fp16.enabled is "yes"; expected true or false'),
        ({"train_batch_size": {"x": 2}}, {}, r'train_batch_size is {"x": 2}; expected a number or "auto"'),
        ({"steps_per_print": True}, {}, "steps_per_print is true; expected a number"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, {}, "bf16 and fp16 are both enabled"),
    ],
)
def test_what_contradicts_the_command_line_is_an_error(
    tmp_path: Path, config: object, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, config, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deepspeed": "true", "engine": "ddp"}, "--deepspeed is --engine deepspeed, but --engine is ddp"),
        ({"enable_zero3": "true"}, "--enable_zero3 need --deepspeed, but the engine is single"),
        ({"fsdp_offload": "true"}, "--fsdp_offload needs --engine fsdp, but the engine is single"),
        (zero(2) | {"enable_zero3": "true"}, "stage is 2, but --enable_zero3 is 3"),
        (zero(2) | {"local_rank": 1}, "--local_rank is 1, but LOCAL_RANK of the environment is not there"),
        (zero(2) | {"deepspeed_config": "none.json"}, "none.json"),
        ({"checkpointed_layers": 2}, "--checkpointed_layers is about --activation_checkpointing"),
    ],
)
def test_options_that_do_not_fit(
    place: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(place)
    values = {
        "dataset_path": place / "train", "output_model_path": "none.bin", "config_path": place / "bert.json",
    } | options  # fmt: skip
    with pytest.raises(ValueError, match=message):
        read_settings([f"--{name}={value}" for name, value in values.items()])


def test_what_follows_an_update_of_all_weights_is_refused() -> None:
    engine = DeepSpeedEngine(Place(), DeepSpeedSetup({"zero_optimization": {"stage": 2}}, "fp32"))

    def make_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(model.parameters())
        optimizer.register_step_post_hook(lambda *_: None)
        return optimizer

    with pytest.raises(ConfigError, match="one group of weights after the other"):
        engine.prepare(torch.nn.Linear(2, 2), make_optimizer)


@pytest.mark.parametrize(
    ("stage", "divided"),
    [(0, ""), (1, "optimizer"), (2, "gradients optimizer"), (3, "gradients optimizer weights")],
)
def test_what_each_stage_divides(stage: int, divided: str) -> None:
    """Rajbhandari et al. 2020, figure 1."""
    engine = DeepSpeedEngine(Place(), DeepSpeedSetup({"zero_optimization": {"stage": stage}}, "fp32"))
    assert sorted(engine.divided) == divided.split() and not engine.on_host


def test_what_offloading_keeps_on_the_host() -> None:
    zero: dict[str, Any] = {"stage": 3, "offload_param": {"device": "cpu"}, "offload_optimizer": None}
    engine = DeepSpeedEngine(Place(), DeepSpeedSetup({"zero_optimization": zero}, "fp32"))
    assert engine.on_host == ["weights"]
    zero |= {"offload_param": {"device": "none"}, "offload_optimizer": {"device": "cpu"}}
    assert sorted(engine.on_host) == ["gradients", "optimizer"]


def test_stage_3_is_not_compiled() -> None:
    with pytest.raises(ConfigError, match="--compile: ZeRO stage 3 takes weights apart between layers"):
        DeepSpeedEngine(Place(), DeepSpeedSetup({"zero_optimization": {"stage": 3}}, "fp32"), compile=True)


@pytest.mark.slow
def test_the_launcher_of_deepspeed_starts_it(place: Path) -> None:
    """With the options as published."""
    options = [
        "--deepspeed", "--deepspeed_config", str(ROOT / "models/deepspeed_zero3_config.json"),
        "--enable_zero3", "--dataset_path", str(place / "train"), "--config_path", str(place / "bert.json"),
        "--precision", "fp32",
        "--output_model_path", str(place / "launched.bin"), "--total_steps", "2", "--batch_size", "4",
        "--learning_rate", "1e-3", "--scheduler", "constant", "--warmup", "0", "--report_steps", "1",
    ]  # fmt: skip
    launcher = [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        "--num_gpus",
        "2",
        "--master_port",
        "29713",
    ]
    done = subprocess.run(
        [*launcher, str(ROOT / "pretrain.py"), *options],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    losses = [[record["loss"] for record in records_of(place, name)] for name in ("one", "launched")]
    assert losses[1] == pytest.approx(losses[0][:2], rel=1e-5)
