from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import json
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tencentpretrain import build_model
from tencentpretrain.batch import labels_of, positions_of
from tencentpretrain.config import ModelConfig
from tencentpretrain.data.loader import LoadedBatch
from tencentpretrain.errors import ConfigError, DataError, Terminated, UserError, WeightsError
from tencentpretrain.layers.transformer import TransformerLayer
from tencentpretrain.model import length_problems
from tencentpretrain.registry import TARGETS
from tencentpretrain.targets.output import Part
from tencentpretrain.training import checkpoint
from tencentpretrain.training.engines import Engine
from tencentpretrain.training.pretraining import deep_init, make_loader
from tencentpretrain.training.settings import read_settings
from tencentpretrain.training.trainer import Trainer

Run = Callable[..., Trainer]

RECORD = {
    "step", "loss", "loss_mlm", "loss_sp", "acc_mlm", "acc_sp", "learning_rate", "grad_norm", "skipped_steps",
    "tokens", "tokens_per_second", "mfu", "memory_gb", "data_wait", "time",
}  # fmt: skip


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights_of(one), weights_of(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def assert_same_state(one: Any, other: Any) -> None:
    """Containers of tensors and numbers, equal to the last bit."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        assert_same_state(list(one.values()), [other[key] for key in one])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same_state(left, right)
    else:
        assert one == other


def records_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(f"{output}.logs/metrics.jsonl").read_text().splitlines()]


def reported(output: Path) -> list[dict[str, Any]]:
    """What does not depend on the clock or the machine."""
    keys = ("step", "loss", "loss_mlm", "acc_sp", "learning_rate", "grad_norm", "tokens", "eval_loss")
    return [{key: record.get(key) for key in keys} for record in records_of(output)]


def test_it_learns_and_reports(run: Run, tmp_path: Path, workplace: Path) -> None:
    trainer = run(
        total_steps=60,
        report_steps=20,
        learning_rate=1e-2,
        eval_dataset_path=workplace / "dev",
        eval_steps=30,
        draw=True,
    )
    records = records_of(tmp_path / "model.bin")
    training = [record for record in records if "loss" in record]
    assert [record["step"] for record in training] == [20, 40, 60]
    assert all(set(record) == RECORD for record in training)
    assert training[-1]["loss_mlm"] < math.log(65) < training[0]["loss_mlm"] + 0.3
    assert training[0]["loss"] == pytest.approx(training[0]["loss_mlm"] + training[0]["loss_sp"], abs=0.05)
    validation = [record for record in records if "eval_loss" in record]
    assert [record["step"] for record in validation] == [30, 60]
    assert all(set(record) == {"step", "eval_loss", "eval_perplexity", "time"} for record in validation)
    # The perplexity is of the tokens; eval_loss includes the loss of sp, about ln 2.
    assert validation[1]["eval_loss"] - math.log(validation[1]["eval_perplexity"]) == pytest.approx(
        0.69, abs=0.2
    )
    marker = json.loads((tmp_path / "model.bin.states/60/COMPLETE").read_text())
    assert marker["options"]["precision"] == trainer.engine.precision != "auto"
    logs = tmp_path / "model.bin.logs"
    assert (logs / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list(logs.glob("events.out.tfevents.*"))


def test_two_runs_are_equal(run: Run, tmp_path: Path) -> None:
    run("one.bin", workers_num=0)
    run("two.bin", workers_num=2)
    assert_same_weights(tmp_path / "one.bin", tmp_path / "two.bin")
    run("three.bin", seed=8)
    assert not torch.equal(
        weights_of(tmp_path / "one.bin")["embedding.word.embedding.weight"],
        weights_of(tmp_path / "three.bin")["embedding.word.embedding.weight"],
    )


@pytest.mark.parametrize(
    ("device", "given", "number"), [("cpu", {}, 0), ("cuda", {}, 1), ("cuda", {"workers_num": 0}, 0)]
)
def test_a_process_builds_batches_beside_a_gpu(
    arguments: Callable[..., list[str]], device: str, given: dict[str, int], number: int
) -> None:
    settings = read_settings(arguments(**given))
    engine: Any = SimpleNamespace(device=torch.device(device), rank=0, world_size=1, compile=False)
    loader = make_loader(settings, settings.sources, engine, settings.pretrain.workers_num)
    assert loader.workers_num == number


@pytest.mark.parametrize(
    "options",
    [
        {"accumulation_steps": 2, "workers_num": 2},
        {"optimizer": "adafactor", "precision": "bf16", "scheduler": "wsd"},
    ],
    ids=["accumulation, workers", "adafactor, bf16"],
)
def test_resume_equals_the_uninterrupted_run(
    run: Run, tmp_path: Path, workplace: Path, options: dict[str, Any]
) -> None:
    """Bit for bit, twice in a row, within an epoch and across its border, between two reports."""
    options = {
        "total_steps": 14,
        "eval_dataset_path": workplace / "dev",
        "eval_steps": 6,
        "batch_size": 7,
    } | options
    whole = run("whole.bin", **options)
    assert whole.position.epoch > 0
    with pytest.raises(KeyboardInterrupt):
        run("parts.bin", stop=(3, signal.SIGINT), **options)
    with pytest.raises(Terminated):
        run("parts.bin", stop=(9, signal.SIGTERM), **options)
    assert not (tmp_path / "parts.bin").exists()
    parts = run("parts.bin", **options)
    assert parts.position == whole.position and parts.tokens == whole.tokens
    assert_same_weights(tmp_path / "whole.bin", tmp_path / "parts.bin")
    assert reported(tmp_path / "whole.bin") == reported(tmp_path / "parts.bin")
    first, second = (
        torch.load(tmp_path / f"{name}.bin.states/14/training.pt", weights_only=True)
        for name in ("whole", "parts")
    )
    assert_same_state(first, second)


def test_a_killed_run_reports_no_step_twice(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"report_steps": 2, "save_checkpoint_steps": 5}
    tell = Trainer._tell

    def crash(trainer: Trainer) -> None:
        tell(trainer)
        if trainer.step == 8:
            with (tmp_path / "model.bin.logs/metrics.jsonl").open("a") as file:
                file.write('{"step": 9, "lo')
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(Trainer, "_tell", crash)
        run(**options)
    run(**options)
    assert [record["step"] for record in records_of(tmp_path / "model.bin")] == [2, 4, 6, 8, 10, 12]


def test_a_finished_run_is_not_repeated(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    run()
    (tmp_path / "model.bin").unlink()
    (tmp_path / "model.bin-12").unlink()
    again = run()
    assert again.step == 12 and again._first_step == 12
    assert_same_weights(tmp_path / "model.bin", tmp_path / "model.bin-12")
    longer = run(total_steps=15)  # allowed, and told
    assert "resume: total_steps was 12 until step 12 and is 15 from there on" in caplog.messages
    assert longer.step == 15 and longer._first_step == 12
    with pytest.raises(ConfigError, match=r"--total_steps is 9, but .* is of step 15"):
        run(total_steps=9)


def test_accumulation_is_one_big_batch(run: Run, tmp_path: Path) -> None:
    """Gradients of micro-batches with uneven numbers of predictions add up to those of the whole batch."""
    options = {"dropout": 0, "learning_rate": 0, "total_steps": 1}  # the initial weights stay
    big = run("big.bin", batch_size=8, **options)
    small = run("small.bin", batch_size=2, accumulation_steps=4, **options)
    assert_same_weights(tmp_path / "big.bin", tmp_path / "small.bin")
    predicted, gradients = [], []
    for trainer in (big, small):
        with contextlib.closing(trainer.loader.batches()) as batches:
            loaded = [next(batches) for _ in range(trainer.plan.accumulation_steps)]
        predicted.append([micro.counts["mlm"] for micro in loaded])
        counts = {name: sum(micro.counts[name] for micro in loaded) for name in loaded[0].counts}
        for micro in loaded:
            trainer.engine.backward(trainer.engine.forward(micro.batch).normalised(counts))
        gradients.append({name: weight.grad for name, weight in trainer.engine.model.named_parameters()})
    assert sum(predicted[0]) == sum(predicted[1]) and len(set(predicted[1])) > 1
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6, msg=name)
    one, other = (records_of(tmp_path / f"{name}.bin")[0] for name in ("big", "small"))
    for key in ("loss", "loss_mlm", "acc_mlm", "grad_norm", "tokens"):  # what the loop itself made of it
        assert one[key] == pytest.approx(other[key], rel=1e-5)


def test_clipping(run: Run) -> None:
    trainer = run(total_steps=1)
    for max_norm, expected in ((0.0, None), (1e-3, 1e-3)):
        loaded = next(trainer.loader.batches())
        trainer.engine.backward(trainer.engine.forward(loaded.batch).loss)
        norm = trainer.engine.clip(max_norm)
        gradients = [weight.grad for weight in trainer.engine.model.parameters() if weight.grad is not None]
        after = torch.stack([gradient.norm() for gradient in gradients]).norm()
        torch.testing.assert_close(
            after, norm if expected is None else torch.tensor(expected), rtol=1e-3, atol=0
        )
        trainer.engine.optimizer.zero_grad()


def full_disk(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """The states of these steps cannot be written."""
    write = checkpoint.write_json

    def write_unless_full(path: Path, value: Any) -> None:
        if value["step"] in steps:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, value)

    monkeypatch.setattr(checkpoint, "write_json", write_unless_full)


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_fails_the_save_and_not_the_run(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    background: bool,
) -> None:
    full_disk(monkeypatch, 4, 6, 10)
    assert run(save_checkpoint_steps=2, async_checkpoint=background).step == 12
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    directory = tmp_path / "model.bin.states"
    assert told == [
        f"cannot save the training state {directory}/{step}: No space left on device; the newest complete is "
        f"of step {newest}. Free space or fix the path. Training goes on; it ends when 3 saves in a row have "
        "failed."
        for step, newest in ((4, 2), (6, 2), (10, 8))
    ]
    assert sorted(path.name for path in directory.iterdir()) == ["12", "8"]
    assert not (tmp_path / "model.bin-4").exists() and (tmp_path / "model.bin").exists()


def test_a_state_is_written_while_training_goes_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is of the step at which it was due, to the last bit; the next one waits for it."""
    options = {"save_checkpoint_steps": 4, "keep_checkpoints": 3}
    run("usual.bin", **options)
    states = tmp_path / "parallel.bin.states"
    complete, goes_on, seen = checkpoint.complete_directory, threading.Event(), []

    def held_up(path: Path) -> Any:
        assert path.name != "4" or goes_on.wait(60)
        return complete(path)

    def stepped(trainer: Trainer, batches: Any) -> None:
        update(trainer, batches)
        if trainer.step == 7:
            seen.extend(path.name for path in states.iterdir() if path.name.isdigit())
            goes_on.set()

    update = Trainer._update
    monkeypatch.setattr(checkpoint, "complete_directory", held_up)
    monkeypatch.setattr(Trainer, "_update", stepped)
    run("parallel.bin", **options, async_checkpoint=True)
    assert not seen and sorted(path.name for path in states.iterdir()) == ["12", "4", "8"]
    for step in (4, 8, 12):
        usual = tmp_path / f"usual.bin.states/{step}"
        assert_same_weights(usual / "model.pt", states / str(step) / "model.pt")
        first, second = (
            torch.load(path / "training.pt", weights_only=True) for path in (usual, states / str(step))
        )
        assert_same_state(first, second)
    run("again.bin", **options, resume=states / "8")
    assert_same_weights(tmp_path / "usual.bin", tmp_path / "again.bin")


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(
    ("steps", "stop", "end"), [((4, 6, 8), None, 8), ((12,), None, 12), ((5,), (5, signal.SIGTERM), 5)]
)
def test_saves_that_fail_end_the_run_where_no_later_one_can_help(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: tuple[int, ...],
    stop: Any,
    end: int,
    background: bool,
) -> None:
    full_disk(monkeypatch, *steps)
    with pytest.raises(
        UserError, match=rf"states/{end}: No space left on device.*\. Then give the same command"
    ):
        run(save_checkpoint_steps=2, stop=stop, async_checkpoint=background)
    monkeypatch.undo()
    assert not [path for path in (tmp_path / "model.bin.states").iterdir() if not path.name.isdigit()]
    assert run().step == 12


def test_a_signal_is_heeded_within_a_step(run: Run, workplace: Path, tmp_path: Path) -> None:
    """Also amid micro-batches and amid a validation, which is broken off."""
    calls = {"training": 0, "validation": 0}

    def signalled(which: str, number: int) -> Callable[..., Any]:
        forward = Engine.forward

        def counted(engine: Engine, *arguments: Any, **options: Any) -> Any:
            now = "training" if engine.model.training else "validation"
            calls[now] += 1
            if (now, calls[now]) == (which, number):
                os.kill(os.getpid(), signal.SIGTERM)
            return forward(engine, *arguments, **options)

        return counted

    options = {"accumulation_steps": 4, "eval_dataset_path": workplace / "dev", "eval_steps": 2}
    for which, number in (("training", 6), ("validation", 3)):
        calls |= {"training": 0, "validation": 0}
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Terminated):
            patch.setattr(Engine, "forward", signalled(which, number))
            run(which, **options)
        assert [path.name for path in (tmp_path / f"{which}.states").iterdir()] == ["2"]
    assert calls["training"] == 2 * 4 and calls["validation"] == 3


def test_deep_init_scales_what_layers_add(run: Run, tmp_path: Path) -> None:
    plain = run("plain.bin", total_steps=1, learning_rate=0)
    deep = run("deep.bin", total_steps=1, learning_rate=0, deep_init=True)
    before, after = (trainer.engine.model.state_dict() for trainer in (plain, deep))
    for name in before:
        ends = name.startswith("encoder.") and name.endswith(("final_linear.weight", "linear_2.weight"))
        torch.testing.assert_close(after[name], before[name] / (2 if ends else 1))  # √(2 · 2 layers)


def test_deep_init_of_a_decoder_scales_by_its_own_additions() -> None:
    config = ModelConfig(
        hidden_size=8, emb_size=8, feedforward_size=8, heads_num=2, layers_num=2, decoder_layers_num=3,
        decoder="transformer", target=("lm",),
    )  # fmt: skip
    model = build_model(config, 20)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    deep_init(model)
    for name, after in model.state_dict().items():
        additions = {"encoder": 2 * 2, "decoder": 3 * 3}.get(name.partition(".")[0], 1)
        if not name.endswith(("final_linear.weight", "linear_2.weight")):
            additions = 1
        torch.testing.assert_close(after, before[name] / math.sqrt(additions))


def test_what_a_decoder_reads_has_to_fit_its_positions() -> None:
    config = ModelConfig(
        max_seq_length=16, embedding=("word",), tgt_embedding=("word", "pos"), decoder="transformer",
        target=("lm",),
    )  # fmt: skip
    assert length_problems(config, 100, ("tgt_seq_length", 16)) == []
    (problem,) = length_problems(config, 100, ("tgt_seq_length", 17))
    assert problem.startswith("`tgt_seq_length` (17) must not exceed `max_seq_length` (16)")
    (problem,) = length_problems(dataclasses.replace(config, embedding=("word", "pos")), 100)  # said once
    assert problem.startswith("`seq_length` (100)")
    assert (
        length_problems(
            dataclasses.replace(config, decoder=None, tgt_embedding=("word",), mask="causal"), 100
        )
        == []
    )


def test_activation_checkpointing_changes_nothing_but_memory(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = {"plain.bin": 0, "recomputed.bin": 0}
    forward = TransformerLayer.forward
    for name in computed:

        def counted(*arguments: Any, name: str = name) -> torch.Tensor:
            computed[name] += 1
            return forward(*arguments)

        monkeypatch.setattr(TransformerLayer, "forward", counted)
        run(name, total_steps=3, activation_checkpointing=name == "recomputed.bin")
    assert_same_weights(tmp_path / "plain.bin", tmp_path / "recomputed.bin")
    assert computed == {"plain.bin": 3 * 2, "recomputed.bin": 3 * 2 * 2}  # steps, layers, once more


def test_continue_from_weights_without_repeating_options(run: Run, tmp_path: Path, workplace: Path) -> None:
    run("first.bin", total_steps=2)
    beside = tmp_path / "first.bin.json"
    description = json.loads(beside.read_text(encoding="utf-8"))
    assert "family" not in description
    beside.write_text(json.dumps(description | {"family": "roberta"}), encoding="utf-8")
    trainer = run(
        "second.bin",
        config_path=None,
        pretrained_model_path=tmp_path / "first.bin",
        total_steps=1,
        learning_rate=0,
    )
    assert_same_weights(tmp_path / "first.bin", tmp_path / "second.bin")
    assert trainer.engine.model.config.layers_num == 2
    description = json.loads((tmp_path / "second.bin.json").read_text(encoding="utf-8"))
    assert description["family"] == "roberta"
    with pytest.raises(ConfigError, match="hidden_size"):
        run("third.bin", pretrained_model_path=tmp_path / "first.bin", hidden_size=32, emb_size=32)
    (tmp_path / "first.bin.json").unlink()
    weights = weights_of(tmp_path / "first.bin")
    for name in ("embedding.word.embedding.weight", "target.mlm.linear_2.weight", "target.mlm.linear_2.bias"):
        weights[name] = torch.cat([weights[name], weights[name][:1]])
    torch.save(weights, tmp_path / "larger.bin")
    with pytest.raises(WeightsError, match=r"66 tokens, the model 65"):
        run("fourth.bin", pretrained_model_path=tmp_path / "larger.bin")


def test_the_dataset_brings_its_tokenizer_and_options(run: Run, tmp_path: Path, workplace: Path) -> None:
    trainer = run("plain.bin", total_steps=1)
    assert trainer.loader.processor.config.seq_length == 24  # given to preprocess.py
    run("same.bin", total_steps=1, vocab_path=workplace / "vocab.txt")
    other = tmp_path / "other.txt"
    other.write_text((workplace / "vocab.txt").read_text() + "another\n")
    with pytest.raises(DataError, match="made with another tokenizer"):
        run("other.bin", vocab_path=other)
    with pytest.raises(DataError, match="made with another tokenizer"):
        run("other.bin", tokenizer="char")
    with pytest.raises(DataError, match=r"than the one given \(--do_lower_case False\)"):
        run("other.bin", do_lower_case="false")
    assert not list(tmp_path.glob("other.bin*"))


def test_what_does_not_fit_together_is_refused_before_anything_is_written(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'cls_labels', which processor 'bert' does not provide"):
        run(target="cls", labels_num=2)
    with pytest.raises(ConfigError, match=r"`seq_length` \(24\) must not exceed `max_seq_length` \(16\)"):
        run(max_seq_length=16)
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        run(precision="fp16")
    with pytest.raises(DataError, match=str(tmp_path)):
        run(eval_dataset_path=tmp_path)
    with pytest.raises(UserError, match="not a complete training state"):
        run(resume=tmp_path)
    with pytest.raises(WeightsError):
        run(pretrained_model_path=tmp_path / "none.bin")
    assert not list(tmp_path.glob("model.bin*"))


def test_loaded_batches_are_what_the_trainer_takes_them_for(run: Run) -> None:
    loaded: LoadedBatch = next(run(total_steps=1).loader.batches())
    labels = loaded.batch[labels_of("mlm")]
    assert loaded.counts["mlm"] == int((labels != -100).sum()) == len(loaded.batch[positions_of("mlm")])


def widths(trainer: Trainer) -> set[int]:
    """How long the rows of batches are."""
    with contextlib.closing(trainer.loader.batches()) as batches:
        return {loaded.batch["input_ids"].shape[1] for loaded in itertools.islice(batches, 30)}


@pytest.mark.slow
def test_compiled_layers_compute_the_same(run: Run, tmp_path: Path) -> None:
    options = {"dropout": 0, "total_steps": 4, "report_steps": 1, "batch_size": 1}
    counters = torch._dynamo.utils.counters["stats"]
    counters.clear()
    plain = run("plain.bin", **options)
    assert not counters["unique_graphs"] and len(widths(plain)) > 1
    compiled = run("compiled.bin", compile=True, **options)
    assert counters["unique_graphs"] == len(widths(compiled)) == 1
    assert counters["calls_captured"] > 20  # the layers, not a remnant
    for one, other in zip(
        records_of(tmp_path / "plain.bin"), records_of(tmp_path / "compiled.bin"), strict=True
    ):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)


class LengthTarget(torch.nn.Module):
    """The number of tokens, from the first state: has no labels in the batch."""

    reads = ("segment_ids",)

    def __init__(self, config: Any, sizes: Any) -> None:
        super().__init__()
        self.output_layer = torch.nn.Linear(config.hidden_size, 1)

    def forward(self, hidden: torch.Tensor, batch: dict[str, torch.Tensor]) -> Part:
        lengths = (batch["segment_ids"] > 0).sum(1).float().log()
        errors = (self.output_layer(hidden[:, 0]).squeeze(1).float() - lengths) ** 2
        return Part(errors.sum(), torch.tensor(len(errors)), {})


@pytest.fixture
def length_target() -> Iterator[None]:
    TARGETS.register("length")(LengthTarget)
    yield
    del TARGETS._entries["length"]


@pytest.mark.usefixtures("length_target")
def test_a_target_without_labels(run: Run, tmp_path: Path, workplace: Path) -> None:
    """It trains and validates; its loss is the mean over rows, with accumulated batches as with big ones."""
    config = json.loads((workplace / "config.json").read_text())
    config |= {"target": ["mlm", "length"], "target_weights": {"length": 0.5}, "dropout": 0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = {
        "config_path": tmp_path / "config.json", "total_steps": 2, "report_steps": 1,
        "eval_dataset_path": workplace / "dev",
    }  # fmt: skip
    run("big.bin", batch_size=8, **options)
    run("small.bin", batch_size=2, accumulation_steps=4, **options)
    big, small = (records_of(tmp_path / f"{name}.bin") for name in ("big", "small"))
    for one, other in zip(big, small, strict=True):
        for key in one.keys() & {"loss", "loss_mlm", "loss_length", "grad_norm", "eval_loss"}:
            assert one[key] == pytest.approx(other[key], rel=1e-4)
        if "loss" in one:
            assert one["loss"] == pytest.approx(one["loss_mlm"] + 0.5 * one["loss_length"], rel=1e-9)
