"""Engine fsdp: states in parts, continued by the same and other numbers of processes; weights published."""

from __future__ import annotations

import errno
import json
import pickle
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_ddp import PartlyUsed, assert_same_curve, records_of, run, write_stores
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from tencentpretrain.config import ModelConfig
from tencentpretrain.errors import ConfigError
from tencentpretrain.model import build_model
from tencentpretrain.registry import TARGETS
from tencentpretrain.state_dict import read_tensors
from tencentpretrain.training import report
from tencentpretrain.training.engines import FSDPEngine, Place
from tencentpretrain.training.engines.processes import run_processes
from tencentpretrain.training.sharded import read_parts

STEPS = 9
FSDP = {"engine": "fsdp"}
DROPOUT = FSDP | {
    "batch_size": 3, "total_steps": 14, "workers_num": 1, "accumulation_steps": 2, "report_steps": 4,
}  # fmt: skip
BACKGROUND = {"async_checkpoint": True, "save_checkpoint_steps": 2}
UNUSUAL = {
    "shared": ("bert", {"parameter_sharing": True}),
    "recomputed": ("t5", {"activation_checkpointing": True, "layers_num": 1}),
    "recurrent": ("gpt2", {"encoder": "lstm", "mask": "fully_visible", "layernorm_positioning": "post"}),
    "adafactor": ("bert", {"optimizer": "adafactor"}),
    "unused": ("unused", {}),
}


def one_of_two(place: Path) -> None:
    torch.set_num_threads(1)
    report.draw_curves = lambda records, path: None
    TARGETS.register("partly_used")(PartlyUsed)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    outcomes: dict[str, str] = {}

    def train(name: str, model: str, **options: Any) -> None:
        outcomes[name] = run(place, f"{name}.bin", model, rank, **FSDP | options)

    def stopped(name: str, *stops: dict[int, tuple[int, int]], **options: Any) -> None:
        for number, stop in enumerate(stops):
            train(name, "dropout", **options, stop=stop)
            outcomes[f"{name}, stop {number}"] = outcomes[name]
        train(name, "dropout", **options)

    train("whole", "dropout", **DROPOUT)
    stopped("parts", {1: (3, signal.SIGTERM)}, {0: (9, signal.SIGINT)}, **DROPOUT)
    stopped("background", {1: (9, signal.SIGTERM)}, **DROPOUT, **BACKGROUND)
    train("again", "dropout", **DROPOUT, resume=place / "background.bin.states/12")
    train("half", "bert", batch_size=4, total_steps=6)
    train("more", "bert", batch_size=4, resume=place / "one-half.bin.states/6", total_steps=STEPS)
    still = {"learning_rate": 0, "total_steps": 1, "deep_init": True}
    train("initial", "bert", **still)
    outcomes["loaded"] = run(
        place, "loaded.safetensors", "bert", rank, **FSDP, learning_rate=0, total_steps=1,
        pretrained_model_path=place / "one-half.bin",
    )  # fmt: skip
    for name, (model, options) in UNUSUAL.items():
        train(name, model, **options, batch_size=4, total_steps=3)
    small = {"total_steps": 1, "eval_dataset_path": place / "dev"}
    train("small", "bert", **small, batch_size=20)
    train("rounded", "bert", batch_size=4, total_steps=3, precision="bf16")
    write_data = FileSystemWriter.write_data

    def full(self: FileSystemWriter, *arguments: Any) -> Any:
        if rank == 1 and "/.2." in str(self.path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_data(self, *arguments)

    FileSystemWriter.write_data = full  # type: ignore[method-assign]
    train("full", "bert", save_checkpoint_steps=2, total_steps=4)
    train("full-background", "bert", save_checkpoint_steps=2, total_steps=4, async_checkpoint=True)
    (place / f"outcomes-{rank}.json").write_text(json.dumps(outcomes))


def one_of_four(place: Path) -> None:
    torch.set_num_threads(1)
    report.draw_curves = lambda records, path: None
    dist.init_process_group("gloo")
    rank, resume = dist.get_rank(), place / "half.bin.states/6"
    assert (
        run(place, "four.bin", "bert", rank, **FSDP, batch_size=2, resume=resume, total_steps=STEPS)
        == f"step {STEPS}"
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("fsdp")
    write_stores(place)
    flush = torch.tensor([1e-40]).mul(0.5).item() == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_curves", lambda records, path: None)
        patch.setitem(TARGETS._entries, "partly_used", PartlyUsed)
        assert run(place, "one.bin", "bert", batch_size=8, total_steps=STEPS) == f"step {STEPS}"
        assert run(place, "one-half.bin", "bert", batch_size=8, total_steps=6) == "step 6"
        still = {"learning_rate": 0, "total_steps": 1, "deep_init": True}
        assert run(place, "one-initial.bin", "bert", **still) == "step 1"
        for name, (model, options) in UNUSUAL.items():
            assert run(place, f"one-{name}.bin", model, **options, batch_size=8, total_steps=3) == "step 3"
        small = {"total_steps": 1, "eval_dataset_path": place / "dev"}
        assert run(place, "one-small.bin", "bert", **small, batch_size=40) == "step 1"
        run_processes(partial(one_of_two, place), 2, (0, 1), None)
        run_processes(partial(one_of_four, place), 4, (0, 1, 2, 3), None)
        resume = {"batch_size": 8, "resume": place / "half.bin.states/6", "total_steps": STEPS}
        assert run(place, "single.bin", "bert", **resume) == f"step {STEPS}"
        assert run(place, "alone.bin", "bert", **resume, **FSDP) == f"step {STEPS}"
    yield place
    torch.set_flush_denormal(flush)


def assert_same_weights(one: Path, other: Path) -> None:
    left, right = read_tensors(one), read_tensors(other)
    assert list(left) == list(right)
    assert all(torch.equal(left[name], right[name]) for name in left)


def assert_initial_weights(place: Path) -> None:
    """Those of one process to the last bit, from the seed or a file; tied ones are one when published too."""
    assert_same_weights(place / "one-initial.bin", place / "initial.bin")
    assert_same_weights(place / "one-half.bin", place / "loaded.safetensors")
    weights = torch.load(place / "initial.bin", weights_only=True)
    tied = [weights[name] for name in ("embedding.word.embedding.weight", "target.mlm.linear_2.weight")]
    assert tied[0].data_ptr() == tied[1].data_ptr()


@pytest.mark.parametrize("name", ["parts", "background"])
def test_a_stopped_run_ends_as_the_undisturbed_one(
    place: Path, outcomes: Callable[[str], list[str]], name: str
) -> None:
    """Bit for bit, within an epoch and across its border, with dropout and accumulation."""
    assert outcomes(f"{name}, stop 0") == ["Terminated: "] * 2
    if name == "parts":
        assert outcomes("parts, stop 1") == ["KeyboardInterrupt: "] * 2
    assert outcomes(name) == outcomes("whole") == ["step 14"] * 2
    assert_same_weights(place / "whole.bin", place / f"{name}.bin")
    assert_same_weights(place / "whole.bin", place / "again.bin")  # from a state written in the background
    assert_same_curve(place, "whole", name)
    assert json.loads((place / f"{name}.bin.states/14/COMPLETE").read_text())["options"]["engine"] == "fsdp"


@pytest.mark.parametrize("name", ["single", "alone", "four"])
def test_any_number_of_processes_goes_on(place: Path, name: str) -> None:
    assert_same_curve(place, "one", name, first_step=7)


def test_it_goes_on_from_a_state_of_one_process(place: Path, outcomes: Callable[[str], list[str]]) -> None:
    assert outcomes("more") == [f"step {STEPS}"] * 2
    assert_same_curve(place, "one", "more", first_step=7)
    assert "resume: engine was single until step 6 and is fsdp" in (place / "more.bin.log").read_text()


def test_initial_weights_are_those_of_one_process(place: Path) -> None:
    assert_initial_weights(place)


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_models(place: Path, outcomes: Callable[[str], list[str]], name: str) -> None:
    assert outcomes(name) == ["step 3"] * 2
    assert_same_curve(place, f"one-{name}", name)


def test_a_process_without_data_goes_along(place: Path, outcomes: Callable[[str], list[str]]) -> None:
    """All held-out samples are the first rank's; the other one has a part of the weights."""
    assert outcomes("small") == ["step 1"] * 2
    assert_same_curve(place, "one-small", "small")


def test_layers_compute_in_bf16(place: Path, outcomes: Callable[[str], list[str]]) -> None:
    assert outcomes("rounded") == ["step 3"] * 2
    losses = [[record["loss"] for record in records_of(place, name)[:3]] for name in ("one", "rounded")]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3) and losses[1] != pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize("name", ["full", "full-background"])
def test_a_disk_that_is_full_for_one_process_fails_the_save_of_all(
    place: Path, outcomes: Callable[[str], list[str]], name: str
) -> None:
    assert outcomes(name) == ["step 4"] * 2
    assert [path.name for path in (place / f"{name}.bin.states").iterdir()] == ["4"]
    assert "No space left on device" in (place / f"{name}.bin.log").read_text()


def test_a_list_of_contents_with_code_in_it_is_refused(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "half.bin.states/6/shards", tmp_path / "shards")
    assert read_parts(tmp_path)[0]["model/target.sp.linear_2.bias"].shape == (2,)
    (tmp_path / "shards/.metadata").write_bytes(pickle.dumps(partial(print, "done")))
    with pytest.raises(pickle.UnpicklingError, match="has no place in a training state"):
        read_parts(tmp_path)


def test_a_model_is_built_without_its_weights() -> None:
    """Matrices have no contents as soon as the module that has them is complete; ties are kept."""
    engine = FSDPEngine(Place(), "fp32")
    config = ModelConfig(
        hidden_size=8, emb_size=8, feedforward_size=8, heads_num=2, layers_num=2, decoder="transformer",
        target=("lm",), share_embedding=True,
    )  # fmt: skip
    seen = []
    with engine.building():
        model = build_model(config, 20, place=lambda model: seen.extend(model.parameters()))
    assert seen and all(parameter.is_meta for parameter in seen)
    assert model.embedding.word.embedding.weight is model.tgt_embedding.word.embedding.weight


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_what_it_cannot_do_is_refused() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tencentpretrain.training.engines.base.choose_precision", lambda *_: ("fp16", ""))
        with pytest.raises(ConfigError, match="--engine fsdp computes in bf16 or fp32"):
            FSDPEngine(Place(), "fp16")
    with pytest.raises(ConfigError, match="--fsdp_offload moves weights from GPUs to the host, but there is"):
        FSDPEngine(Place(), "fp32", offload=True)
