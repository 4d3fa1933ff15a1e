"""What a model of a configuration costs, without data and without allocating it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from tencentpretrain.batch import FIELDS, labels_of, positions_of
from tencentpretrain.config import ModelConfig
from tencentpretrain.config.options import option
from tencentpretrain.config.shared import CONFIG_PATH, PLUGINS
from tencentpretrain.errors import ConfigError
from tencentpretrain.model import Body, build_model, fields_read, length_problems
from tencentpretrain.registry import TARGETS
from tencentpretrain.sizes import DataSizes
from tencentpretrain.training.estimate import measure_cost, parameters_num, parts_of, state_bytes, tokens_num

PREDICTED = {"mlm": 0.15}  # share of the positions; other targets predict at each


@dataclasses.dataclass(frozen=True)
class CountConfig:
    """Sizes that the data would say."""

    config_path: str = CONFIG_PATH()
    vocab_size: int = option(32000, "Rows of the word embedding.", minimum=1)
    tgt_vocab_size: int | None = option(
        None, "Rows of the decoder's word embedding; default: the same.", minimum=1
    )
    labels_num: int = option(2, "Classes of the cls target.", minimum=2)
    batch_size: int = option(1, "Examples in a batch.", minimum=1)
    seq_length: int = option(128, "Length of an example, in tokens.", minimum=4)
    plugins: tuple[str, ...] = PLUGINS()


def model_for_counting(config: ModelConfig, sizes: DataSizes) -> Body:
    """The pre-training model; of two streams that no target compares, the streams (Sentence-BERT)."""
    if config.is_dual and not any(getattr(TARGETS[name], "streams", 1) == 2 for name in config.target):
        return Body(config, sizes)
    return build_model(config, *sizes)


def empty_batch(config: ModelConfig, rows: int, length: int, labels_num: int) -> dict[str, Any]:
    """A batch without padding of every field that the model reads, on the "meta" device: no contents."""
    if config.is_dual:
        return {
            name: empty_batch(stream, rows, length, labels_num)
            for name, stream in zip(("stream_0", "stream_1"), config.streams, strict=True)
        }
    letters = {"B": rows, "S": length, "T": length, "C": labels_num}
    names = {"input_ids", *(field for field, _ in fields_read(config))}
    if config.mask != "causal_with_prefix":  # else segments say where the prefix ends
        names -= {"segment_ids", "decoder_segment_ids"}
    batch: dict[str, Any] = {}
    for name in names:
        shape = [int(letters.get(letter, letter)) for letter in FIELDS[name].shape.split()]
        batch[name] = torch.empty(shape, dtype=getattr(torch, FIELDS[name].dtype), device="meta")
    for target in config.target:
        labels = batch[labels_of(target)]
        if labels.ndim > 1:  # of each token; where they are cannot be searched without contents
            predicted = round(PREDICTED.get(target, 1.0) * labels.numel())
            batch[positions_of(target)] = torch.empty(predicted, dtype=torch.int64, device="meta")
    return batch


def describe_count(config: ModelConfig, count: CountConfig) -> str:
    """Parameters, memory and arithmetic, as text.

    Raises:
        ConfigError: the model cannot be built, or cannot take sequences of that length.
    """
    if problems := length_problems(config, count.seq_length):
        raise ConfigError(problems)
    sizes = DataSizes(count.vocab_size, count.labels_num, count.tgt_vocab_size)
    with torch.device("meta"):
        model = model_for_counting(config, sizes)
    batch = empty_batch(config, count.batch_size, count.seq_length, count.labels_num)
    cost = measure_cost(lambda: model_for_counting(config, sizes), batch)
    total, tokens = parameters_num(model), tokens_num(batch)
    adamw, adafactor = (state_bytes(total, name) / 1e9 for name in ("adamw", "adafactor"))
    lines = [
        f"{count.config_path}: {total:,} parameters with a vocabulary of {count.vocab_size:,}",
        *(f"  {name:26s} {parameters_num(module):>18,d}" for name, module in parts_of(model)),
        f"weights: {4 * total / 1e9:,.2f} GB in fp32, {2 * total / 1e9:,.2f} GB in bf16 or fp16",
        f"training: {adamw:,.2f} GB with adamw, {adafactor:,.2f} GB with adafactor: weights, gradients and "
        "optimizer, which are in fp32 whatever the precision",
        f"activations of {count.batch_size} × {count.seq_length} tokens: at most "
        f"{cost.activations / 1e9:,.2f} GB in fp32, about half in bf16 or fp16; fused attention keeps less",
        f"computation: {cost.flops / tokens / 1e9:,.3f} GFLOP a token, forward and backward",
    ]
    return "\n".join(lines)
