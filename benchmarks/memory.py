"""Memory of training: what `--dry_run` estimates, and the peak that a process reaches.

Each case is trained for three updates in a process of its own. Measured is its largest resident size beyond
that after the imports and an update of a tiny model, which loads the libraries; on a GPU the largest amount
that was allocated.

    python benchmarks/memory.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.optim import Optimizer

from tencentpretrain import build_model, load_config
from tencentpretrain.batch import Batch
from tencentpretrain.config import OptimizationConfig, PretrainConfig
from tencentpretrain.model import Model
from tencentpretrain.training.engines import SingleEngine
from tencentpretrain.training.memory import measure_memory, program_memory
from tencentpretrain.training.optimizers import make_optimizer
from tencentpretrain.training.pretraining import checkpoint_activations

VOCABULARY = {"mlm": 21128, "lm": 50257}
TINY = {"layers_num": 1, "hidden_size": 32, "emb_size": 32, "feedforward_size": 64, "heads_num": 2}
# Configuration, batch, length, further options.
CASES = (
    "bert/mini 16 64", "bert/mini 32 128", "bert/mini 64 128", "bert/mini 8 512", "bert/small 16 128",
    "bert/medium 16 128", "bert/base 4 128", "bert/base 8 128", "bert/base 16 128", "bert/base 4 512",
    "gpt2/distil 4 256", "gpt2/ 4 256", "gpt2/ 2 512", "gpt2/ 2 1024",
    "bert/mini 32 128 --activation_checkpointing", "bert/base 16 128 --activation_checkpointing",
    "gpt2/ 2 512 --activation_checkpointing",
    "bert/base 16 128 --activation_checkpointing --checkpointed_keep linear",
    "bert/mini 32 128 --accumulation_steps 2",
    "bert/base 8 128 --accumulation_steps 2", "gpt2/ 2 512 --accumulation_steps 2",
    "bert/base 8 128 --optimizer adafactor",
)  # fmt: skip


def make_batch(target: str, rows: int, length: int) -> Batch:
    """Full rows; of a masked language model 15 % are predicted."""
    ids = torch.ones(rows, length, dtype=torch.int64)
    batch = {"input_ids": ids, "segment_ids": ids, f"{target}_labels": ids}
    if target == "lm":
        return batch | {"lm_positions": torch.arange(rows * length)}
    predicted = torch.arange(round(0.15 * rows * length))
    return batch | {"mlm_positions": predicted, "sp_labels": torch.ones(rows, dtype=torch.int64)}


class Case:
    def __init__(self, words: list[str]) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("config")
        parser.add_argument("batch_size", type=int)
        parser.add_argument("seq_length", type=int)
        parser.add_argument("--activation_checkpointing", action="store_true")
        parser.add_argument("--checkpointed_keep", default="inputs")
        parser.add_argument("--accumulation_steps", type=int, default=1)
        parser.add_argument("--optimizer", default="adamw")
        self.options = parser.parse_args(words)
        name = self.options.config
        self.config = load_config(f"models/{name}{'' if name.endswith('/') else '_'}config.json")
        self.target = "lm" if "lm" in self.config.target else "mlm"
        self.batch = make_batch(self.target, self.options.batch_size, self.options.seq_length)
        self.pretrain = PretrainConfig(
            output_model_path="",
            activation_checkpointing=self.options.activation_checkpointing,
            checkpointed_keep=self.options.checkpointed_keep,
        )
        self.optimizer = partial(make_optimizer, config=OptimizationConfig(optimizer=self.options.optimizer))

    def model(self) -> Model:
        model = build_model(self.config, VOCABULARY[self.target])
        checkpoint_activations(model, self.pretrain)
        return model

    def estimate(self, device: torch.device) -> float:
        memory = measure_memory(
            self.model, self.optimizer, self.batch, device, accumulation=self.options.accumulation_steps > 1
        )
        return memory.peak / 1e9

    def measure(self, steps: int = 3) -> float:
        engine = SingleEngine("fp32")
        tiny = build_model(load_config("models/bert/mini_config.json", **TINY), 200)
        train(engine, tiny, self.optimizer, make_batch("mlm", 2, 16), 2, 1)
        before = program_memory()
        if engine.device.type == "cpu":
            Path("/proc/self/clear_refs").write_text("5")  # the largest resident size starts anew
        else:
            torch.cuda.reset_peak_memory_stats()
        train(engine, self.model(), self.optimizer, self.batch, steps, self.options.accumulation_steps)
        if engine.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 1e9
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return (1024 * int(status.split("VmHWM:")[1].split()[0]) - before) / 1e9


def train(
    engine: SingleEngine,
    model: Model,
    optimizer: Callable[[Model], Optimizer],
    batch: Batch,
    steps: int,
    micro_batches: int,
) -> None:
    engine.prepare(model, optimizer)
    for _ in range(steps):
        for _ in range(micro_batches):
            engine.backward(engine.forward(batch).loss)
        engine.clip(1.0)
        engine.step(1e-4)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--cases", nargs="+", default=CASES, help="as 'bert/mini 32 128'")
    options = parser.parse_args()
    if options.measure:
        print(Case(options.measure.split()).measure())
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"torch {torch.__version__}, {device}, fp32\n\n| case | estimated, GB | measured, GB | off by |")
    print("|---|---|---|---|")
    for case in options.cases:
        estimated = Case(case.split()).estimate(device)
        command = [sys.executable, __file__, "--measure", case]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        measured = float(result.stdout.split()[-1])
        print(f"| {case} | {estimated:.2f} | {measured:.2f} | {estimated / measured - 1:+.0%} |", flush=True)


if __name__ == "__main__":
    main()
