"""Training throughput: this project's model and the same model in Transformers, in turn, in one process.

BERT with the masked-language-model and next-sentence heads, the vocabulary layer at masked positions only; or
a causal language model, GPT-2 or LLaMA. Both sides: scaled_dot_product_attention, fused AdamW, gradient
clipping, same batches without padding, same precision. MFU: operations of the model (none recomputed, causal
attention in full) of those that products of large matrices reach on this device in the same minute.

    python benchmarks/train.py --config_path models/bert/mini_config.json --batch_size 32 --seq_length 128
    python benchmarks/train.py --config_path models/gpt2/config.json --batch_size 2 --seq_length 512 \\
                               --vocab_size 50257
"""

from __future__ import annotations

import argparse
import contextlib
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
from tencentpretrain.conversion.huggingface import OurModel, as_theirs
from tencentpretrain.conversion.maps import FAMILIES
from tencentpretrain.errors import WeightsError
from tencentpretrain.training.estimate import measure_cost

Step = Callable[[Batch], Tensor]


def make_batches(
    number: int, rows: int, length: int, vocab_size: int, device: str, causal: bool
) -> list[Batch]:
    """Full rows of random tokens: all predicted from those before, or 15 % masked, in two segments."""
    generator = torch.Generator().manual_seed(7)
    batches = []
    for _ in range(number):
        ids = torch.randint(5, vocab_size, (rows, length + causal), generator=generator)
        if causal:
            batch = {
                "input_ids": ids[:, :-1].contiguous(),
                "segment_ids": torch.ones(rows, length, dtype=torch.int64),
                "lm_labels": ids[:, 1:].contiguous(),
                "lm_positions": torch.arange(rows * length),
            }
            batches.append({name: value.to(device) for name, value in batch.items()})
            continue
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
    """The class and the configuration that the conversion of such a model would write."""
    import transformers

    config = load_config(setting.config_path)
    ours = OurModel(build_model(config, setting.vocab_size).state_dict(), config)
    for family in FAMILIES:
        with contextlib.suppress(WeightsError):
            _, values = as_theirs(family, ours, family.parts)
            break
    else:
        raise WeightsError(f"{setting.config_path}: Transformers has no such model.")
    kind = getattr(transformers, values["architectures"][0])
    model = kind(kind.config_class(**values, attn_implementation="sdpa")).to(setting.device)

    def bert_loss(batch: Batch) -> Tensor:
        out = model.bert(batch["input_ids"], token_type_ids=batch["segment_ids"] - 1)
        states = out.last_hidden_state.flatten(0, 1).index_select(0, batch["mlm_positions"])
        labels = batch["mlm_labels"].flatten().index_select(0, batch["mlm_positions"])
        words = F.cross_entropy(model.cls.predictions(states), labels)
        return words + F.cross_entropy(model.cls.seq_relationship(out.pooler_output), batch["sp_labels"])

    def causal_loss(batch: Batch) -> Tensor:
        logits = model(batch["input_ids"], use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), batch["lm_labels"].flatten())

    return training_step(model, bert_loss if "mlm" in config.target else causal_loss, setting)


def matmul_flops(device: str, precision: str) -> float:
    """Operations a second in products of large matrices, the best of a few."""
    size = 8192 if device == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    one = torch.randn(size, size, device=device, dtype=dtype)

    def run() -> float:
        start = time.perf_counter()
        one @ one
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return 2 * size**3 / min(run() for _ in range(5))


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
    config = load_config(options.config_path)
    batches = make_batches(
        options.steps,
        options.batch_size,
        options.seq_length,
        options.vocab_size,
        device,
        "lm" in config.target,
    )

    def make(side: str, precision: str) -> Step:
        setting = Setting(options.config_path, options.vocab_size, device, precision, options.compile)
        return SIDES[side](setting)

    if options.measure_memory:
        if options.measure_memory == "transformers":
            # Their size is not the model's.
            import transformers.models.bert.modeling_bert
            import transformers.models.gpt2.modeling_gpt2
            import transformers.models.llama.modeling_llama  # noqa: F401
        before = peak_rss()
        measure_memory(make(options.measure_memory, options.precisions[0]), batches, device, before)
        return
    print(
        f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, {options.config_path}, "
        f"batch {options.batch_size} x {options.seq_length}, vocabulary {options.vocab_size}"
    )
    tokens = options.steps * options.batch_size * options.seq_length
    flops = options.steps * measure_cost(lambda: build_model(config, options.vocab_size), batches[0]).flops
    medians: dict[str, float] = {}
    for precision in options.precisions:
        steps = {side: make(side, precision) for side in SIDES}
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        for round_ in range(options.rounds + 1):
            for side, step in steps.items():
                elapsed = timed(step, batches, device)
                if round_:  # the first warms up
                    seconds[side].append(elapsed)
        peak = matmul_flops(device, precision)
        print(f"{precision}  products of large matrices: {peak / 1e9:,.0f} GFLOP/s")
        ratios = [b / a for a, b in zip(seconds["ours"], seconds["transformers"], strict=True)]
        for side in SIDES:
            median = statistics.median(seconds[side])
            memory = peak_memory(side, precision, options)
            print(
                f"{precision}  {side:12}  {tokens / median:9,.0f} tokens/s  MFU {flops / median / peak:.0%}  "
                f"peak memory {memory:.2f} GiB"
            )
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        print(f"{precision}  ours / transformers: {middle:.2f} x (from {low:.2f} to {high:.2f})")
        medians[precision] = statistics.median(seconds["ours"])
    if len(medians) == 2:
        print(f"ours, bf16 / fp32: {medians['fp32'] / medians['bf16']:.2f} x")


SIDES = {"ours": ours, "transformers": transformers_peer}

if __name__ == "__main__":
    main()
