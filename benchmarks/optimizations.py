"""What each optimisation of a training step gains: the step with and without it, in turn, in one process.

    OMP_NUM_THREADS=2 python benchmarks/optimizations.py

BERT-mini on the CPU; each optimisation is replaced by the plain form it stands for (docs/performance.md).
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from train import peak_rss

from tencentpretrain import build_model, load_config
from tencentpretrain.batch import IGNORED, Batch
from tencentpretrain.encoders.transformer import TransformerEncoder
from tencentpretrain.layers.attention import MultiHeadedAttention
from tencentpretrain.layers.masks import AttentionMask
from tencentpretrain.layers.recomputation import Recomputation
from tencentpretrain.layers.vocabulary import vocabulary_loss
from tencentpretrain.model import initialise
from tencentpretrain.tasks.classification import Classifier

CONFIG = "models/bert/mini_config.json"
VOCABULARY = 21128


def pretraining(rows: int, length: int, **changes: float) -> tuple[nn.Module, Batch]:
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(5, VOCABULARY, (rows, length), generator=generator)
    hidden = torch.rand(rows, length, generator=generator) < 0.15
    batch = {
        "input_ids": ids.masked_fill(hidden, 4),
        "segment_ids": torch.ones_like(ids),
        "mlm_labels": ids.masked_fill(~hidden, IGNORED),
        "mlm_positions": hidden.flatten().nonzero().squeeze(1),
        "sp_labels": torch.randint(0, 2, (rows,), generator=generator),
    }
    return build_model(load_config(CONFIG, **changes), VOCABULARY), batch


def classification(rows: int, length: int) -> tuple[nn.Module, Batch]:
    model = Classifier(load_config(CONFIG), VOCABULARY, labels_num=2, soft_alpha=0.5)
    initialise(model)
    ids = torch.randint(5, VOCABULARY, (rows, length))
    segments = torch.ones_like(ids)
    segments[0, -1] = 0  # as most batches, this one has padding
    return model, {"input_ids": ids, "segment_ids": segments, "cls_labels": torch.randint(0, 2, (rows,))}


@contextlib.contextmanager
def torch_dropout() -> Iterator[None]:
    def attend(
        self: MultiHeadedAttention, query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask
    ) -> tuple[Tensor, AttentionMask]:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask.allowed, dropout_p=self.dropout, is_causal=mask.causal
        ), mask

    with (
        mock.patch("tencentpretrain.layers.dropout.dropout", F.dropout),
        mock.patch.object(MultiHeadedAttention, "_attend", attend),
    ):
        yield


def written_out() -> AbstractContextManager[object]:
    """Scores of all pairs of positions, their softmax, and the product with the values."""

    def attend(
        self: MultiHeadedAttention, query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask
    ) -> tuple[Tensor, AttentionMask]:
        return self._weighted(self._scores(query, key, mask), value), mask

    return mock.patch.object(MultiHeadedAttention, "_attend", attend)


def one_product() -> AbstractContextManager[object]:
    """Queries, keys and values by one product with joined weights, which keep their own names."""
    products: dict[int, tuple[Tensor, ...]] = {}  # by where the states lie

    def heads(self: MultiHeadedAttention, layer: int, states: Tensor) -> Tensor:
        if layer == 0:
            products.clear()
            weight, bias = (
                torch.cat([getattr(each, name) for each in self.linear_layers]) for name in ("weight", "bias")
            )
            products[states.data_ptr()] = F.linear(states, weight, bias).chunk(3, -1)
        each = products[states.data_ptr()][layer]
        return each.view(*each.shape[:2], -1, self.head_size).transpose(1, 2)

    return mock.patch.object(MultiHeadedAttention, "_heads", heads)


def recomputing(keeps_linear: bool) -> tuple[nn.Module, Batch]:
    model, batch = pretraining(32, 128)
    encoder: Any = model.encoder
    encoder.recomputation = Recomputation(keeps_linear=keeps_linear)
    return model, batch


def recomputing_all() -> AbstractContextManager[object]:
    run = Recomputation.run
    return mock.patch.object(Recomputation, "run", lambda self, *arguments: run(Recomputation(), *arguments))


def plain_vocabulary_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    logits = F.linear(hidden, weight, bias)
    loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return loss, ((logits.argmax(1) == labels) & (labels != IGNORED)).sum()


def every_position(hidden: Tensor, batch: Batch, target: str) -> tuple[Tensor, Tensor]:
    return hidden.flatten(0, 1), batch[f"{target}_labels"].flatten()


def all_outputs() -> AbstractContextManager[object]:
    forward = TransformerEncoder.forward

    def whole(self: TransformerEncoder, hidden: Tensor, batch: Batch, outputs: int | None = None) -> Tensor:
        return forward(self, hidden, batch)

    return mock.patch.object(TransformerEncoder, "forward", whole)


CASES: dict[
    str, tuple[Callable[[], tuple[nn.Module, Batch]], Callable[[], AbstractContextManager[object]]]
] = {
    "dropout from 16 random bits": (lambda: pretraining(32, 128), torch_dropout),
    "attention by torch's kernel, 8 x 512, no dropout": (
        lambda: pretraining(8, 512, dropout=0.0),
        written_out,
    ),
    "vocabulary loss in chunks": (
        lambda: pretraining(32, 128),
        lambda: mock.patch("tencentpretrain.targets.predicted.vocabulary_loss", plain_vocabulary_loss),
    ),
    "vocabulary layer at predicted positions": (
        lambda: pretraining(32, 128),
        lambda: mock.patch("tencentpretrain.targets.mlm.predicted", every_position),
    ),
    "queries, keys and values in three products, not one": (lambda: pretraining(32, 128), one_product),
    "recomputation that keeps linear layers' results": (lambda: recomputing(True), recomputing_all),
    "last layer for the first position (classification)": (lambda: classification(32, 40), all_outputs),
}


def denormal_moments(with_it: bool) -> float:
    """Milliseconds of AdamW on a word embedding whose first moments have decayed."""
    torch.set_flush_denormal(with_it)  # before threads start, as the engine does
    weight = nn.Parameter(torch.randn(VOCABULARY, 256))
    optimizer = torch.optim.AdamW([weight], fused=True)
    weight.grad = torch.zeros_like(weight)
    seconds = []
    for _ in range(6):
        optimizer.step()
        optimizer.state[weight]["exp_avg"].copy_(torch.tensor(1e-40))
        start = time.perf_counter()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def vocabulary_memory(with_it: bool, words: int = VOCABULARY) -> float:
    """MB that the loss of 4,096 predictions over the vocabulary takes at its peak."""
    hidden = torch.randn(4096, 256, requires_grad=True)
    weight = torch.randn(words, 256, requires_grad=True)
    labels = torch.randint(0, words, (4096,))
    before = peak_rss()
    (vocabulary_loss if with_it else plain_vocabulary_loss)(hidden, weight, None, labels)[0].backward()
    return (peak_rss() - before) / 1e6


# Measured in processes of their own.
APART: dict[str, tuple[Callable[[bool], float], str]] = {
    "denormal numbers as zero (AdamW, such moments only)": (denormal_moments, "ms"),
    "vocabulary loss in chunks (memory)": (vocabulary_memory, "MB"),
    "vocabulary loss in chunks (memory, 128,000 words)": (partial(vocabulary_memory, words=128_000), "MB"),
}


def measured_apart(name: str, way: str) -> float:
    command = [sys.executable, __file__, "--apart", name, way]
    return float(subprocess.run(command, capture_output=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--apart", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.apart:
        name, way = options.apart
        print(APART[name][0](way == "with"))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {CONFIG}, fp32")
    for name, (make, without) in CASES.items():
        plain, ours, ratio = in_turn(make, without, options.rounds)
        print(f"{name:52}  {plain:6.0f} ms without, {ours:6.0f} ms with: {ratio:.2f} x")
    for name, (_, unit) in APART.items():
        plain, ours = measured_apart(name, "without"), measured_apart(name, "with")
        print(f"{name:52}  {plain:6.0f} {unit} without, {ours:6.0f} {unit} with: {plain / ours:.2f} x")


def in_turn(
    make: Callable[[], tuple[nn.Module, Batch]],
    without: Callable[[], AbstractContextManager[object]],
    rounds: int,
) -> tuple[float, float, float]:
    """Median milliseconds of a step without and with an optimisation, and the median of the ratios."""
    model, batch = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def seconds() -> float:
        start = time.perf_counter()
        model(batch).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start

    seconds()
    plain, ours = [], []
    for _ in range(rounds):
        ours.append(seconds())
        with without():
            plain.append(seconds())
    ratio = statistics.median(a / b for a, b in zip(plain, ours, strict=True))
    return 1000 * statistics.median(plain), 1000 * statistics.median(ours), ratio


if __name__ == "__main__":
    main()
