"""Memory of training, estimated without allocating it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tencentpretrain.config import ModelConfig, OptimizationConfig, PretrainConfig
from tencentpretrain.model import build_model
from tencentpretrain.training.count import CountConfig, describe_count
from tencentpretrain.training.dry_run import describe_memory, dry_run
from tencentpretrain.training.engines import Place, SingleEngine
from tencentpretrain.training.memory import (
    Memory,
    _Exact,
    _Heap,
    _Live,
    full_batch,
    judge_depth,
    largest_batch,
    measure_memory,
)
from tencentpretrain.training.optimizers import make_optimizer
from tencentpretrain.training.pretraining import checkpoint_activations, cost_of_first_batch
from tencentpretrain.training.settings import read_settings

ROOT = Path(__file__).parents[2]
MiB = 1 << 20
CONFIG = ModelConfig(
    embedding=("word", "pos"), emb_size=64, hidden_size=64, feedforward_size=256, heads_num=4, layers_num=2,
    max_seq_length=64, target=("mlm",),
)  # fmt: skip
VOCABULARY = 500


def memory(
    rows: int = 64,
    recompute: bool = False,
    optimizer: str = "adamw",
    ema_decay: float = 0.0,
    layers_num: int = 2,
    **options: object,
) -> Memory:
    def build() -> nn.Module:
        model = build_model(dataclasses.replace(CONFIG, layers_num=layers_num), VOCABULARY)
        checkpoint_activations(
            model, PretrainConfig(output_model_path="", activation_checkpointing=recompute)
        )
        return model

    ids = torch.ones(rows, 64, dtype=torch.int64)
    batch = {"input_ids": ids, "segment_ids": ids, "mlm_labels": ids, "mlm_positions": torch.arange(rows * 9)}
    make = partial(make_optimizer, config=OptimizationConfig(optimizer=optimizer, ema_decay=ema_decay))
    return measure_memory(build, make, batch, torch.device("cpu"), **options)


def test_parts() -> None:
    whole = memory()
    parameters = sum(weight.numel() for weight in build_model(CONFIG, VOCABULARY).parameters())
    assert whole.weights == whole.gradients == 4 * parameters
    assert whole.optimizer == pytest.approx(8 * parameters, rel=0.01)
    assert whole.peak == whole.weights + whole.gradients + whole.optimizer + whole.activations
    adafactor = memory(optimizer="adafactor")
    assert adafactor.optimizer < 0.1 * whole.optimizer and adafactor.peak < whole.peak
    average = memory(ema_decay=0.9)
    assert average.optimizer - whole.optimizer == whole.weights


def test_each_of_several_ranks_has_a_part_of_what_is_divided() -> None:
    whole = Memory(8, 8, 16, peak=40)
    assert whole.shared(4, ()) == whole
    assert whole.shared(4, ("optimizer", "gradients")) == Memory(8, 2, 4, peak=22)
    assert whole.without(("optimizer", "weights")) == Memory(0, 8, 0, peak=16)


def test_activations() -> None:
    whole, half = memory(64), memory(32)
    assert half.activations == pytest.approx(whole.activations / 2, rel=0.2)
    assert memory(64, recompute=True).activations < 0.6 * whole.activations
    assert memory(64, dtype=torch.bfloat16).activations < 0.9 * whole.activations
    # Gradients of the batch before are there while the next one is computed.
    small, accumulated = memory(1), memory(1, accumulation=True)
    assert 0.4 * small.gradients < accumulated.peak - small.peak < 1.6 * small.gradients


def test_deep_models_are_judged_by_shallow_ones() -> None:
    few, twice, deep = (memory(layers_num=layers_num) for layers_num in (2, 4, 16))
    judged = twice.beyond(few, (16 - 4) / (4 - 2))
    assert dataclasses.astuple(judged)[:3] == dataclasses.astuple(deep)[:3]
    assert judged.peak == pytest.approx(deep.peak, rel=0.01)
    # The worst moment may be that of weights, gradients and optimizer, though not of a shallow model.
    assert Memory(1, 1, 2, 8).beyond(Memory(0, 0, 0, 7), 9).peak == 40


@pytest.mark.parametrize(
    ("depth", "together", "measured"),
    [(24, 1, [24]), (25, 1, [12, 6]), (32, 8, [16, 8]), (26, 13, [26]), (39, 13, [26, 13])],
)
def test_layers_that_are_recomputed_together_are_judged_together(
    depth: int, together: int, measured: list[int]
) -> None:
    seen = []

    def measure(layers_num: int) -> Memory:
        seen.append(layers_num)
        inputs, recomputed = -(-layers_num // together), 10 * min(layers_num, together)
        return Memory(layers_num, layers_num, 2 * layers_num, 4 * layers_num + inputs + recomputed)

    judged = judge_depth(measure, depth, together)
    assert seen == measured and judged == measure(depth)


def test_a_state_on_disk_is_weights_and_optimizer(
    arguments: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Memory(weights=10**9, gradients=10**9, optimizer=3 * 10**9, peak=9 * 10**9)
    monkeypatch.setattr("tencentpretrain.training.dry_run.measure_memory", lambda *_, **__: measured)
    text = dry_run(read_settings(arguments(keep_checkpoints=3)))
    assert "disk: 4.00 GB a training state, 3 are kept" in text and "allocator" not in text


@pytest.mark.parametrize("options", [{"accumulation_steps": 2}, {"activation_checkpointing": True}])
def test_what_the_estimate_leaves_out_on_a_cpu_is_said(
    arguments: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    measured = Memory(weights=10**6, gradients=10**6, optimizer=10**6, peak=10**7)
    monkeypatch.setattr("tencentpretrain.training.dry_run.measure_memory", lambda *_, **__: measured)
    assert "the allocator of a CPU may keep half as much again" in dry_run(
        read_settings(arguments(**options))
    )


def test_what_is_kept_on_the_host_is_not_on_the_device(
    arguments: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Offloading(SingleEngine):
        divided = on_host = ("gradients", "optimizer")

    measured, engine = Memory(10**9, 10**9, 2 * 10**9, peak=9 * 10**9), Offloading("fp32")
    monkeypatch.setattr("tencentpretrain.training.dry_run.measure_memory", lambda *_, **__: measured)
    monkeypatch.setattr("tencentpretrain.training.dry_run.free_memory", lambda device: 8 * 10**9)
    settings = dataclasses.replace(read_settings(arguments()), place=Place(world_size=2))
    _, loaded = cost_of_first_batch(settings, engine)
    lines = {}
    for kind in ("cpu", "cuda"):
        engine.device = torch.device(kind)
        lines[kind] = "\n".join(describe_memory(settings, engine, loaded))
    assert "host:" not in lines["cpu"] and "gradients 0.50, optimizer 1.00, activations" in lines["cpu"]
    assert (
        "about 6.00 GB in a process: weights 1.00, activations and what operations need 5.00" in lines["cuda"]
    )
    assert "host: gradients, optimizer 1.50 GB, 8.00 GB free\nfits" in lines["cuda"]


def test_only_what_lives_at_once_counts() -> None:
    exact = _Exact()
    with _Live(exact):
        first = torch.empty(3 * MiB, dtype=torch.uint8)
        view = first[MiB:].view(2, -1)
        del first
        second = view + 1
        del view, second
        torch.empty(4 * MiB, dtype=torch.uint8)
    assert exact.peak == 5 * MiB


def test_full_batches_and_the_largest_that_fits() -> None:
    ids = torch.ones(2, 8, dtype=torch.int64)
    batch = {"input_ids": ids, "mlm_labels": ids, "mlm_positions": torch.arange(4), "sp_labels": ids[:, 0]}
    shapes = {name: tuple(tensor.shape) for name, tensor in full_batch(batch, 3, 16).items()}
    assert shapes == {
        "input_ids": (3, 16), "mlm_labels": (3, 16), "mlm_positions": (12,), "sp_labels": (3,),
    }  # fmt: skip
    batch = {"input_ids": ids, "decoder_input_ids": ids[:, :4], "lm_labels": ids[:, :4],
             "lm_positions": torch.arange(6)}  # fmt: skip
    shapes = {name: tuple(tensor.shape) for name, tensor in full_batch(batch, 2, 16, 6).items()}
    assert shapes == {
        "input_ids": (2, 16), "decoder_input_ids": (2, 6), "lm_labels": (2, 6), "lm_positions": (9,),
    }  # fmt: skip

    def measure(rows: int) -> Memory:
        return Memory(10, 10, 20, 100 + 7 * rows)

    for rows in (1, 4, 50):
        assert [largest_batch(measure, rows, measure(rows), room) for room in (106, 107, 240)] == [0, 1, 20]

    def bent(rows: int) -> Memory:
        return Memory(10, 10, 20, 100 + 7 * max(rows, 10))

    assert largest_batch(bent, 2, bent(2), 240) == 20


def test_heap_reuses_only_what_is_large_enough() -> None:
    heap = _Heap()
    heap.allocate(30 * MiB)()  # mapped, and given back; from here on blocks of this size are the heap's
    first, _ = heap.allocate(4 * MiB), heap.allocate(MiB)
    assert heap.peak == pytest.approx(30 * MiB, rel=0.01)
    held = heap.allocate(26 * MiB)
    assert heap.peak == pytest.approx(31 * MiB, rel=0.01)
    first()
    heap.allocate(4 * MiB)  # would fit, but for its alignment
    assert heap.peak == pytest.approx(35 * MiB, rel=0.01)
    heap.allocate(3 * MiB)  # into the hole
    assert heap.peak == pytest.approx(35 * MiB, rel=0.01)
    held()


def test_recurrent_layers_have_the_products_of_their_steps() -> None:
    length, width, hidden = 50, 24, 16
    for encoder, gates in (("lstm", 4), ("gru", 3), ("rnn", 1)):
        config = ModelConfig(
            embedding=("word",), encoder=encoder, target=("cls",), emb_size=width, hidden_size=hidden,
            layers_num=2, pooling="max", max_seq_length=length,
        )  # fmt: skip
        text = describe_count(config, CountConfig(vocab_size=30, seq_length=length, batch_size=1000))
        # Two operations a product, the backward pass twice the forward pass; the head is computed once a row.
        expected = 6 * gates * hidden * (width + hidden + 2 * hidden) / 1e9
        counted = float(text.rpartition("computation: ")[2].split()[0])
        assert counted == pytest.approx(expected, abs=0.6e-3)


@pytest.mark.slow
def test_estimate_is_what_a_process_takes() -> None:
    result = subprocess.run(
        [sys.executable, "benchmarks/memory.py", "--cases", "bert/mini 24 128"], cwd=ROOT, text=True,
        capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    off = int(result.stdout.rstrip(" |\n%").rpartition("|")[2])
    assert abs(off) <= 15, result.stdout
