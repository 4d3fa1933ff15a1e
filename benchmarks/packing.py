"""Tokens per second of training with samples padded and with samples packed, in turn, in one process.

python preprocess.py --corpus_path c.txt --vocab_path v.txt --dataset_path dataset --data_processor mlm
python benchmarks/packing.py --dataset_path dataset
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator

import torch

from tencentpretrain import build_model
from tencentpretrain.config import ModelConfig, Options, load_config, option
from tencentpretrain.config.data import DataConfig
from tencentpretrain.data.loader import LoadedBatch, Loader
from tencentpretrain.data.store import TokenStore
from tencentpretrain.errors import run_program
from tencentpretrain.model import Model
from tencentpretrain.registry import PROCESSORS


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """Packing against padding."""

    dataset_path: str = option(..., "Token store.")
    config_path: str = option("models/bert/mini_config.json", "Model configuration.")
    data_processor: str = option("mlm", "How examples are built.")
    seq_length: int = option(512, "Length of a row, in tokens.")
    batch_size: int = option(16, "Rows of a batch.")
    rounds: int = option(40, "Steps of each kind.")


def step(model: Model, optimizer: torch.optim.Optimizer, loaded: LoadedBatch) -> tuple[float, float]:
    """Tokens per second of processor time, and the loss."""
    begin = time.process_time()
    output = model(loaded.batch)
    output.loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loaded.tokens / (time.process_time() - begin), output.loss.item()


def main() -> None:
    options = Options("Measure what packing gains.", BenchmarkConfig)
    (config,) = options.build(BenchmarkConfig)
    store = TokenStore.open(config.dataset_path)
    kind = PROCESSORS[config.data_processor]
    targets = [field.removesuffix("_labels") for field in kind.provides if field.endswith("_labels")]
    model_config: ModelConfig = load_config(config.config_path, target=targets, dropout=0.0)
    batches: dict[str, Iterator[LoadedBatch]] = {}
    models: dict[str, tuple[Model, torch.optim.Optimizer]] = {}
    rows = config.batch_size
    for name in ("packed", "padded"):
        data = DataConfig(
            data_processor=config.data_processor, seq_length=config.seq_length, packing=name == "packed"
        )
        loader = Loader(kind(store, data, store.tokenizer), rows, targets=targets)
        batches[name] = loader.batches()
        rows = round(rows * loader.samples_num() / loader.rows_num())  # as many tokens in an update
        torch.manual_seed(7)
        model = build_model(model_config, store.tokenizer.vocab_size)
        models[name] = model, torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    speeds: dict[str, list[float]] = {name: [] for name in batches}
    tokens = dict.fromkeys(batches, 0)
    for round_ in range(1, config.rounds + 1):
        losses = []
        for name, stream in batches.items():
            loaded = next(stream)
            speed, loss = step(*models[name], loaded)
            tokens[name] += loaded.tokens
            speeds[name].append(speed)
            losses.append(f"{name} {tokens[name]:,} tokens, loss {loss:.3f}")
        if round_ % max(config.rounds // 10, 1) == 0:
            print("; ".join(losses))
    medians = {name: statistics.median(values[1:]) for name, values in speeds.items()}  # the first warms up
    for name, median in medians.items():
        print(f"{name}: {median:,.0f} tokens/s of processor time")
    print(f"packed is {medians['packed'] / medians['padded']:.2f} × as fast a token that is not padding")


if __name__ == "__main__":
    run_program(main)
