"""Two processes with gloo compute what one computes. They are started once, and do all their work then."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import random
import re
import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from tencentpretrain.config import PreprocessConfig, TokenizerConfig
from tencentpretrain.data.preprocess import preprocess
from tencentpretrain.errors import ConfigError
from tencentpretrain.files import write_json
from tencentpretrain.registry import TARGETS
from tencentpretrain.targets.output import Part
from tencentpretrain.tokenizers import build_tokenizer
from tencentpretrain.training import checkpoint, report
from tencentpretrain.training.engines import DDPEngine, Engine, Place, choose_engine
from tencentpretrain.training.engines.processes import run_processes
from tencentpretrain.training.pretraining import make_trainer
from tencentpretrain.training.settings import read_settings
from tencentpretrain.training.trainer import Trainer

STEPS = 20
WORDS = [f"w{number}" for number in range(60)]
SIZES = {
    "emb_size": 16, "hidden_size": 16, "feedforward_size": 32, "heads_num": 2, "layers_num": 2,
    "max_seq_length": 32, "dropout": 0,
}  # fmt: skip
BERT = {"embedding": ["word", "pos", "seg"], "target": ["mlm", "sp"], "data_processor": "bert"}
MODELS: dict[str, dict[str, Any]] = {
    "bert": BERT | {"tie_weights": True},
    "gpt2": {
        "embedding": ["word", "pos"], "mask": "causal", "target": ["lm"], "data_processor": "lm",
        "layernorm_positioning": "pre", "remove_embedding_layernorm": True, "tie_weights": True,
    },
    "t5": {
        "embedding": ["word"], "tgt_embedding": ["word"], "share_embedding": True, "tie_weights": True,
        "relative_position_embedding": True, "layernorm": "t5", "layernorm_positioning": "pre",
        "remove_transformer_bias": True, "remove_attention_scale": True, "decoder": "transformer",
        "target": ["lm"], "data_processor": "t5",
    },
    "unused": BERT | {"target": ["mlm", "partly_used"]},
    "dropout": BERT | {"dropout": 0.1},
}  # fmt: skip
AGREEING = ("bert", "gpt2", "t5", "unused")


class PartlyUsed(torch.nn.Module):
    """A target with a parameter that no batch reaches."""

    reads = ("sp_labels",)

    def __init__(self, config: Any, sizes: Any) -> None:
        super().__init__()
        self.output_layer = torch.nn.Linear(config.hidden_size, 2)
        self.unused = torch.nn.Linear(config.hidden_size, 2)

    def forward(self, hidden: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> Part:
        logits = self.output_layer(hidden[:, 0]).float()
        loss = torch.nn.functional.cross_entropy(logits, batch["sp_labels"], reduction="sum")
        return Part(loss, torch.tensor(len(hidden)), {})


def gradients_of(engine: Engine) -> dict[str, torch.Tensor]:
    """By the name of the weight, whole, whatever part of them a process has."""
    weights = dict(engine.model.named_parameters())
    if getattr(engine, "stage", 0):  # DeepSpeed has them elsewhere
        from deepspeed.utils import safe_get_full_grad

        return {
            name: weight.get_full_hp_grad() if hasattr(weight, "_hp_mapping") else safe_get_full_grad(weight)
            for name, weight in weights.items()
        }
    gradients = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
    return {
        name: gradient.full_tensor() if isinstance(gradient, DTensor) else gradient.clone()
        for name, gradient in gradients.items()
    }


def run(place: Path, name: str, model: str, rank: int = 0, **options: Any) -> str:
    """Train as one process of those there are; what it ended with. Step 1's gradient is kept beside."""
    values: dict[str, Any] = {
        "dataset_path": place / "train", "config_path": place / f"{model}.json", "precision": "fp32",
        "output_model_path": place / name, "total_steps": STEPS, "report_steps": 1, "learning_rate": 1e-3,
        "scheduler": "constant", "save_checkpoint_steps": 1000, "log_path": place / f"{name}.log",
        "log_level": "ERROR",
    }  # fmt: skip
    stop: Mapping[int, tuple[int, int]] = options.pop("stop", {})
    disturb: Callable[[Trainer], None] = options.pop("disturb", lambda trainer: None)
    values |= options
    settings = read_settings([f"--{option}={value}" for option, value in values.items()])
    log = logging.getLogger("tencentpretrain")
    before = log.handlers[:], log.level, log.propagate
    report.start_logging(settings.run, rank)
    try:
        trainer = make_trainer(settings)
        clip, stepped = trainer.engine.clip, trainer.report.stepped

        def kept(max_norm: float) -> torch.Tensor:
            if trainer.step == 0:
                torch.save(gradients_of(trainer.engine), place / f"{name}.gradient-{rank}")
            return clip(max_norm)

        def signalled() -> None:
            stepped()
            if rank in stop and trainer.step == stop[rank][0]:
                os.kill(os.getpid(), stop[rank][1])

        trainer.engine.clip = kept  # type: ignore[method-assign]
        trainer.report.stepped = signalled  # type: ignore[method-assign]
        disturb(trainer)
        with contextlib.closing(trainer.report):
            trainer.train()
    except (Exception, KeyboardInterrupt) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        log.handlers[:], log.level, log.propagate = before
    return f"step {trainer.step}"


def spoil_losses(steps: tuple[int, ...], trainer: Trainer) -> None:
    """The loss of this process becomes NaN in these steps."""
    forward = trainer.engine.forward

    def spoilt(*arguments: Any, **options: Any) -> Any:
        output = forward(*arguments, **options)
        if trainer.step + 1 in steps:
            output.parts["mlm"].loss_sum.data.fill_(math.nan)
        return output

    trainer.engine.forward = spoilt  # type: ignore[method-assign]


def signal_in_validation(own: bool, batches: list[int], trainer: Trainer) -> None:
    """SIGTERM, if it is this process's `own`, in its first held-out batch; counts the batches."""
    forward = trainer.engine.forward

    def signalled(*arguments: Any, **options: Any) -> Any:
        if not trainer.engine.model.training:
            batches.append(1)
            if own:
                os.kill(os.getpid(), signal.SIGTERM)
        return forward(*arguments, **options)

    trainer.engine.forward = signalled  # type: ignore[method-assign]


def fail_saves(patch: pytest.MonkeyPatch, *steps: int) -> None:
    """The disk is full when the first process completes the states of these steps."""
    write = write_json

    def write_unless_full(path: Path, value: Any) -> None:
        if value["step"] in steps:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, value)

    patch.setattr(checkpoint, "write_json", write_unless_full)


def work(place: Path) -> None:
    """What a process of the two does; its outcomes by name in outcomes-<rank>.json."""
    torch.set_num_threads(1)
    report.draw_curves = lambda records, path: None
    TARGETS.register("partly_used")(PartlyUsed)
    dist.init_process_group("gloo")  # for all runs, which leave it as it is
    rank, dev = dist.get_rank(), {"eval_dataset_path": place / "dev", "eval_steps": 10}
    outcomes: dict[str, str] = {}

    def train(name: str, model: str, **options: Any) -> None:
        outcomes[name] = run(place, f"{name}.bin", model, rank, **options)

    for model in AGREEING:
        train(f"two-{model}", model, batch_size=4, **dev)
        train(f"two-{model}-accumulated", model, batch_size=2, accumulation_steps=2, **dev)
    train("small", "bert", total_steps=1, batch_size=20, eval_dataset_path=place / "dev")
    further = {
        "batch_size": 3, "total_steps": 14, "workers_num": 1, "accumulation_steps": 2, "report_steps": 4,
    }  # fmt: skip
    train("whole", "dropout", **further)
    train("parts", "dropout", **further, stop={1: (3, signal.SIGTERM)})
    outcomes["first stop"] = outcomes["parts"]
    train("parts", "dropout", **further, stop={0: (9, signal.SIGINT)})
    outcomes["second stop"] = outcomes["parts"]
    train("parts", "dropout", **further)
    train("background", "dropout", **further, async_checkpoint=True, save_checkpoint_steps=4)
    train("again", "dropout", **further, resume=place / "background.bin.states/12")
    train("fewer", "bert", batch_size=4, total_steps=6)
    train("more", "bert", batch_size=4, resume=place / "one-half.bin.states/6")
    train("other", "bert", batch_size=3, resume=place / "one-half.bin.states/6")
    train("diverged", "bert", learning_rate=1e30, max_grad_norm=0, max_skipped_steps=4)
    train("spoilt", "bert", batch_size=4, disturb=partial(spoil_losses, (3, 4) if rank == 0 else (4, 8)))
    held_out: list[int] = []
    heed = partial(signal_in_validation, rank == 1, held_out)
    train("validation", "bert", batch_size=2, disturb=heed, **dev)
    outcomes["validated"] = str(len(held_out))
    with pytest.MonkeyPatch.context() as patch:
        fail_saves(patch, 2, 6)
        train("full", "bert", save_checkpoint_steps=2, total_steps=8)
        fail_saves(patch, 2, 4, 6, 8)
        train("still full", "bert", save_checkpoint_steps=2)
    (place / f"outcomes-{rank}.json").write_text(json.dumps(outcomes))


def write_stores(place: Path) -> None:
    sentinels = [f"<extra_id_{number}>" for number in range(5)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *sentinels]
    (place / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    tokenizer = build_tokenizer(TokenizerConfig(vocab_path=str(place / "vocab.txt")))
    generator = random.Random(3)
    for name, documents in (("train", 40), ("dev", 8)):
        text = "\n\n".join(
            "\n".join(" ".join(generator.choices(WORDS, k=generator.randint(3, 9))) for _ in range(4))
            for _ in range(documents)
        )
        (place / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
        config = PreprocessConfig(corpus_path=(str(place / f"{name}.txt"),), dataset_path=str(place / name))
        preprocess(config, "sentences", tokenizer, {"seq_length": 24})
    for name, model in MODELS.items():
        (place / f"{name}.json").write_text(json.dumps(SIZES | model), encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one process and two have done the same."""
    place = tmp_path_factory.mktemp("ddp")
    write_stores(place)
    draw, report.draw_curves = report.draw_curves, lambda records, path: None
    flush = torch.tensor([1e-40]).mul(0.5).item() == 0
    TARGETS.register("partly_used")(PartlyUsed)
    try:
        for model in AGREEING:
            options = {"batch_size": 8, "eval_dataset_path": place / "dev", "eval_steps": 10}
            assert run(place, f"one-{model}.bin", model, **options) == f"step {STEPS}"
        assert run(place, "one-half.bin", "bert", batch_size=8, total_steps=6) == "step 6"
        run(place, "one-spoilt.bin", "bert", batch_size=8, disturb=partial(spoil_losses, (3, 4, 8)))
        run(place, "one-small.bin", "bert", total_steps=1, batch_size=40, eval_dataset_path=place / "dev")
        run_processes(partial(work, place), 2, (0, 1), None)
        resumed = {"batch_size": 8, "resume": place / "fewer.bin.states/6"}
        assert run(place, "continued.bin", "bert", **resumed) == f"step {STEPS}"
    finally:
        report.draw_curves = draw
        del TARGETS._entries["partly_used"]
        torch.set_flush_denormal(flush)
    return place


def records_of(place: Path, name: str) -> list[dict[str, Any]]:
    lines = (place / f"{name}.bin.logs/metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_same_curve(place: Path, one: str, other: str, first_step: int = 1) -> None:
    """Losses, accuracies, gradients' norms, tokens, to 1e-5."""
    left, right = (records_of(place, name) for name in (one, other))
    if first_step > 1:
        left = [record for record in left if record["step"] >= first_step]
        right = [record for record in right if record["step"] >= first_step]
    left, right = ([r for r in records if "loss" in r or first_step == 1] for records in (left, right))
    assert [record["step"] for record in left] == [record["step"] for record in right]
    measured = {"time", "tokens_per_second", "memory_gb", "data_wait", "mfu"}
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - measured:
            assert a[key] == pytest.approx(b[key], rel=1e-5), (a["step"], key)


def assert_same_gradients(place: Path, one: str, other: str) -> None:
    """Those of step 1, on both ranks of the other run."""
    gradients = torch.load(place / f"{one}.bin.gradient-0", weights_only=True)
    for rank in range(2):
        others = torch.load(place / f"{other}.bin.gradient-{rank}", weights_only=True)
        assert gradients.keys() == others.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, rtol=1e-5, atol=1e-6, msg=name)
        whole, both = (
            torch.cat([each[name].flatten() for name in gradients]) for each in (gradients, others)
        )
        assert (both - whole).norm() < 1e-6 * whole.norm()


@pytest.mark.parametrize("model", AGREEING)
@pytest.mark.parametrize("variant", ["", "-accumulated"])
def test_two_processes_compute_what_one_does(
    place: Path, outcomes: Callable[[str], list[str]], model: str, variant: str
) -> None:
    name = f"two-{model}{variant}"
    assert outcomes(name) == [f"step {STEPS}"] * 2
    assert len([record for record in records_of(place, name) if "eval_loss" in record]) == 2
    assert_same_curve(place, f"one-{model}", name)
    assert_same_gradients(place, f"one-{model}", name)


def test_unused_parameters_are_searched_for_where_there_are_some(place: Path) -> None:
    line = "every step searches for weights without a gradient: target.partly_used.unused.weight, "
    assert line in (place / "two-unused.bin.log").read_text()
    assert "searches" not in (place / "two-bert.bin.log").read_text()


def test_the_first_process_alone_tells_and_writes(place: Path) -> None:
    text = (place / "two-bert.bin.log").read_text()
    assert text.count("engine: ddp, 2 processes, gloo") == 1 and text.count("saved step 20") == 1
    assert "20 steps of 8 samples" in text


def test_a_process_without_data_holds_nobody_up(place: Path, outcomes: Callable[[str], list[str]]) -> None:
    """All held-out samples are the first rank's."""
    assert outcomes("small") == ["step 1", "step 1"]
    one, two = (records_of(place, name)[-1] for name in ("one-small", "small"))
    assert two["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-6)


def test_a_stopped_run_ends_as_the_undisturbed_one(place: Path, outcomes: Callable[[str], list[str]]) -> None:
    """Bit for bit, with dropout; a signal to one process stops both after the same step."""
    assert outcomes("first stop") == ["Terminated: "] * 2
    assert outcomes("second stop") == ["KeyboardInterrupt: "] * 2
    assert outcomes("parts") == outcomes("whole") == ["step 14"] * 2
    text = (place / "parts.bin.log").read_text()
    assert "stopped after step 3" in text and "stopped after step 9" in text
    whole, parts = (torch.load(place / f"{name}.bin", weights_only=True) for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    states = [
        torch.load(place / f"{name}.bin.states/14/training.pt", weights_only=True)
        for name in ("whole", "parts")
    ]
    assert states[0]["position"] == states[1]["position"] and states[0]["tokens"] == states[1]["tokens"]
    assert states[0]["position"][0] > 0  # a later epoch
    moments = [
        [tensor for entry in state["optimizer"]["state"].values() for tensor in entry.values()]
        for state in states
    ]
    assert len(moments[0]) == len(moments[1]) and all(map(torch.equal, *moments))
    assert_same_curve(place, "whole", "parts")


def test_a_run_goes_on_from_a_state_written_in_the_background(
    place: Path, outcomes: Callable[[str], list[str]]
) -> None:
    whole = torch.load(place / "whole.bin", weights_only=True)
    for name in ("background", "again"):
        assert outcomes(name) == ["step 14"] * 2
        weights = torch.load(place / f"{name}.bin", weights_only=True)
        assert all(torch.equal(whole[key], weights[key]) for key in whole)


def three_of_them(place: Path) -> None:
    torch.set_num_threads(1)
    report.draw_curves = lambda records, path: None
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    options = {"emb_size": 128, "hidden_size": 128, "feedforward_size": 512, "layers_num": 4, "batch_size": 2}
    assert run(place, "uninterrupted.bin", "dropout", rank, total_steps=4, **options) == "step 4"
    stop = dict.fromkeys(range(3), (2, signal.SIGTERM))
    assert run(place, "resumed.bin", "dropout", rank, total_steps=4, stop=stop, **options) == "Terminated: "
    assert run(place, "resumed.bin", "dropout", rank, total_steps=4, **options) == "step 4"


@pytest.mark.slow
def test_a_resumed_run_of_three_processes_sums_in_the_same_order(tmp_path: Path) -> None:
    """Gradients fill several buckets, so that the order of the sums depends on how they are sorted."""
    write_stores(tmp_path)
    run_processes(partial(three_of_them, tmp_path), 3, (0, 1, 2), None)
    one, other = (
        torch.load(tmp_path / f"{name}.bin", weights_only=True) for name in ("uninterrupted", "resumed")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_dropout_differs_between_processes() -> None:
    drawn = []
    for rank in range(2):
        engine = DDPEngine(Place(rank, 2, rank), "fp32")
        engine.seed(5)
        drawn.append(torch.rand(3))
        engine.seed(5)
        assert torch.equal(torch.rand(3), drawn[-1])
    assert not torch.equal(*drawn)


def test_another_number_of_processes_goes_on(place: Path, outcomes: Callable[[str], list[str]]) -> None:
    assert outcomes("more") == [f"step {STEPS}"] * 2
    for name in ("more", "continued"):
        assert_same_curve(place, "one-bert", name, first_step=7)
        text = (place / f"{name}.bin.log").read_text()
        assert "resume: world_size was" in text and "resume: batch_size was" in text
    ended = outcomes("other")
    assert ended[0].startswith("UserError: ") and ended[1].startswith("SharedError: ")
    assert "batch_size · accumulation_steps · world_size: 8 there, 6 now" in ended[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [("still full", "No space left on device"), ("diverged", "of 4 updates in a row was not finite")],
)
def test_what_stops_one_stops_all_and_is_told_once(
    outcomes: Callable[[str], list[str]], name: str, message: str
) -> None:
    first, second = outcomes(name)
    assert first.startswith("UserError: ") and second.startswith("SharedError: ")
    assert first.count(message) == 1


def test_a_save_that_fails_on_one_process_stops_none(
    place: Path, outcomes: Callable[[str], list[str]]
) -> None:
    assert outcomes("full") == ["step 8"] * 2
    assert (place / "full.bin.log").read_text().count("No space left on device") == 2
    assert sorted(path.name for path in (place / "full.bin.states").iterdir()) == ["4", "8"]


def test_a_loss_that_is_lost_on_one_process_skips_the_update_of_all(
    place: Path, outcomes: Callable[[str], list[str]]
) -> None:
    """So does one process, whose losses they share."""
    assert outcomes("spoilt") == [f"step {STEPS}"] * 2
    one, two = (records_of(place, name) for name in ("one-spoilt", "spoilt"))
    assert [record["skipped_steps"] for record in two] == [0, 0, 1, 2, 2, 2, 2] + [3] * 13
    for a, b in zip(one, two, strict=True):
        for key in ("grad_norm", "skipped_steps", "tokens") + (() if a["loss"] is None else ("loss",)):
            assert a[key] == (None if b[key] is None else pytest.approx(b[key], rel=1e-5))
    two_ranks = r"step (\d+): no update.* of rank 0 ([\d: ]+); of rank 1 ([\d: ]+)$"
    told = re.findall(two_ranks, (place / "spoilt.bin.log").read_text(), re.M)
    alone = re.findall(
        two_ranks.replace("; of rank 1 ([\\d: ]+)", ""), (place / "one-spoilt.bin.log").read_text(), re.M
    )
    assert [(step, f"{first} {second}") for step, first, second in told] == alone and len(told) == 3


def test_a_validation_is_broken_off_on_all(place: Path, outcomes: Callable[[str], list[str]]) -> None:
    """One process alone was told to stop, in the first of its batches."""
    assert outcomes("validation") == ["Terminated: "] * 2 and outcomes("validated") == ["1", "1"]
    assert "validation was broken off" in (place / "validation.bin.log").read_text()
    assert [path.name for path in (place / "validation.bin.states").iterdir()] == ["10"]


def test_the_engine_follows_from_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_engine("auto", 1) == "single" and choose_engine("auto", 2) == "ddp"
    assert choose_engine("ddp", 1) == "ddp"
    with pytest.raises(ConfigError, match="--engine single trains in one process, but there are 2"):
        choose_engine("single", 2)
    assert Place.here() is None
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert Place.here() == Place(3, 4, 1)


def test_one_process_may_use_ddp(place: Path) -> None:
    assert run(place, "alone.bin", "bert", total_steps=2, batch_size=8, engine="ddp") == "step 2"
    assert not dist.is_initialized()
    assert records_of(place, "alone")[1]["loss"] == records_of(place, "one-bert")[1]["loss"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"world_size": 2, "gpu_ranks": "0 0"}, "--gpu_ranks 0 0: expected different numbers"),
        ({"world_size": 2, "gpu_ranks": "1 2"}, "each below --world_size 2"),
        ({"world_size": 3, "gpu_ranks": "0 1"}, "names 2 of 3 processes.*--master_ip tcp://host:port"),
        ({"world_size": 2, "engine": "single"}, "--engine single trains in one process, but there are 2"),
    ],
)
def test_options_that_do_not_fit(place: Path, options: dict[str, Any], message: str) -> None:
    values = {"dataset_path": place / "train", "output_model_path": place / "none.bin"} | options
    words = [word for name, value in values.items() for word in (f"--{name}", *str(value).split())]
    with pytest.raises(ConfigError, match=message):
        read_settings([*words, "--config_path", str(place / "bert.json")])
