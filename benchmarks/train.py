"""Training throughput: this project's model and the same model in Transformers, in turn, in one process.

Both sides: BERT with the masked-language-model and next-sentence heads, scaled_dot_product_attention, fused
AdamW, gradient clipping, the vocabulary layer at the masked positions only, same batches, same precision.

    python benchmarks/train.py --config_path models/bert/mini_config.json --batch_size 32 --seq_length 128
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tencentpretrain import build_model, load_config
from tencentpretrain.batch import IGNORED, Batch

Step = Callable[[Batch], Tensor]


def make_batches(number: int, rows: int, length: int, vocab_size: int, device: str) -> list[Batch]:
    """Full rows of random tokens, 15 % masked, two segments."""
    generator = torch.Generator().manual_seed(7)
    batches = []
    for _ in range(number):
        ids = torch.randint(5, vocab_size, (rows, length), generator=generator)
        hidden = torch.rand(rows, length, generator=generator) < 0.15
        labels = ids.masked_fill(~hidden, IGNORED)
        segments = torch.ones(rows, length, dtype=torch.int64)
        segments[:, length // 2 :] = 2
        batch = {
            "input_ids": ids.masked_fill(hidden, 4),
            "segment_ids": segments,
            "mlm_labels": labels,
            "mlm_positions": hidden.flatten().nonzero().squeeze(1),
            "sp_labels": torch.randint(0, 2, (rows,), generator=generator),
        }
        batches.append({name: value.to(device) for name, value in batch.items()})
    return batches


class Setting(NamedTuple):
    config_path: str
    vocab_size: int
    device: str
    precision: str
    compile: bool


def training_step(model: nn.Module, loss_of: Callable[[Batch], Tensor], setting: Setting) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    forward = torch.compile(loss_of) if setting.compile else loss_of

    def step(batch: Batch) -> Tensor:
        with torch.autocast(setting.device, dtype=torch.bfloat16, enabled=setting.precision == "bf16"):
            loss = forward(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def ours(setting: Setting) -> Step:
    model = build_model(load_config(setting.config_path), setting.vocab_size).to(setting.device)
    return training_step(model, lambda batch: model(batch).loss, setting)


def transformers_peer(setting: Setting) -> Step:
    from transformers import BertConfig, BertForPreTraining

    config = load_config(setting.config_path)
    model = BertForPreTraining(
        BertConfig(
            vocab_size=setting.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.layers_num,
            num_attention_heads=config.heads_num,
            intermediate_size=config.feedforward_size,
            max_position_embeddings=config.max_seq_length,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            attn_implementation="sdpa",
            tie_word_embeddings=config.tie_weights,
        )
    ).to(setting.device)

    def loss_of(batch: Batch) -> Tensor:
        out = model.bert(batch["input_ids"], token_type_ids=batch["segment_ids"] - 1)
        states = out.last_hidden_state.flatten(0, 1).index_select(0, batch["mlm_positions"])
        labels = batch["mlm_labels"].flatten().index_select(0, batch["mlm_positions"])
        words = F.cross_entropy(model.cls.predictions(states), labels)
        return words + F.cross_entropy(model.cls.seq_relationship(out.pooler_output), batch["sp_labels"])

    return training_step(model, loss_of, setting)


def timed(step: Step, batches: list[Batch], device: str) -> float:
    start = time.perf_counter()
    for batch in batches:
        step(batch)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_memory(name: str, precision: str, options: argparse.Namespace) -> float:
    """GiB that three steps take beyond what the process had before, measured in a process of its own."""
    command = [sys.executable, __file__, "--measure_memory", name, "--precisions", precision]
    for option in ("config_path", "batch_size", "seq_length", "vocab_size"):
        command += [f"--{option}", str(getattr(options, option))]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(result.stdout.split()[-1])


def peak_rss() -> int:
    """Largest resident size of this process so far, in bytes (getrusage would count the parent's, too)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def measure_memory(step: Step, batches: list[Batch], device: str, before: int) -> None:
    timed(step, batches[:3], device)
    if device == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**30)
    else:
        print((peak_rss() - before) / 2**30)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config_path", default="models/bert/mini_config.json")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seq_length", type=int, default=128)
    parser.add_argument("--vocab_size", type=int, default=21128)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4, help="steps in a round")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--measure_memory", choices=list(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batches = make_batches(options.steps, options.batch_size, options.seq_length, options.vocab_size, device)

    def make(side: str, precision: str) -> Step:
        setting = Setting(options.config_path, options.vocab_size, device, precision, options.compile)
        return SIDES[side](setting)

    if options.measure_memory:
        if options.measure_memory == "transformers":
            import transformers.models.bert.modeling_bert  # noqa: F401  its size is not the model's
        measure_memory(make(options.measure_memory, options.precisions[0]), batches, device, peak_rss())
        return
    print(
        f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, {options.config_path}, "
        f"batch {options.batch_size} x {options.seq_length}, vocabulary {options.vocab_size}"
    )
    tokens = options.steps * options.batch_size * options.seq_length
    medians: dict[str, float] = {}
    for precision in options.precisions:
        steps = {side: make(side, precision) for side in SIDES}
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        for round_ in range(options.rounds + 1):
            for side, step in steps.items():
                elapsed = timed(step, batches, device)
                if round_:  # the first warms up
                    seconds[side].append(elapsed)
        ratios = [b / a for a, b in zip(seconds["ours"], seconds["transformers"], strict=True)]
        for side in SIDES:
            speed = tokens / statistics.median(seconds[side])
            memory = peak_memory(side, precision, options)
            print(f"{precision}  {side:12}  {speed:9,.0f} tokens/s  peak memory {memory:.2f} GiB")
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        print(f"{precision}  ours / transformers: {middle:.2f} x (from {low:.2f} to {high:.2f})")
        medians[precision] = statistics.median(seconds["ours"])
    if len(medians) == 2:
        print(f"ours, bf16 / fp32: {medians['fp32'] / medians['bf16']:.2f} x")


SIDES = {"ours": ours, "transformers": transformers_peer}

if __name__ == "__main__":
    main()
