"""Attention with shared keys and values, with a bias by distance, with dropout: each way of doing it.

    OMP_NUM_THREADS=1 python benchmarks/attention.py

The best of several runs, in milliseconds of the processor; without and with the backward pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from tencentpretrain.config import ModelConfig
from tencentpretrain.layers import attention
from tencentpretrain.layers.masks import AttentionMask

ATTENTION = F.scaled_dot_product_attention


def milliseconds(run: Callable[[], object], runs: int = 15) -> float:
    times = []
    for _ in range(runs):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def report(name: str, attend: Callable[[], Tensor]) -> None:
    with torch.no_grad():
        forward = milliseconds(attend)
    print(f"  {name:32s} {forward:8.1f} {milliseconds(lambda: attend().sum().backward()):8.1f}", flush=True)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def shared_heads(rows: int, heads: int, groups: int, queries: int, keys: int, size: int) -> None:
    print(f"{heads} heads of {size}, {groups} of keys and values; {rows} × {queries} queries, {keys} keys")
    query, key, value = (
        random(rows, n, s, size) for n, s in ((heads, queries), (groups, keys), (groups, keys))
    )
    causal = queries == keys

    def repeated() -> Tensor:
        each = (part.repeat_interleave(heads // groups, 1) for part in (key, value))
        return ATTENTION(query, *each, is_causal=causal)

    report("enable_gqa", lambda: ATTENTION(query, key, value, is_causal=causal, enable_gqa=True))
    report("repeat_interleave", repeated)


def biased(rows: int, heads: int, length: int, size: int) -> None:
    print(f"{heads} heads of {size}; {rows} × {length} tokens; bias by distance [1, H, S, S]")
    query, key, value = (random(rows, heads, length, size) for _ in range(3))
    bias = random(1, heads, length, length)
    seen = torch.ones(rows, 1, 1, length, dtype=torch.bool)
    seen[::2, :, :, length // 2 :] = False
    report("neither bias nor padding", lambda: ATTENTION(query, key, value))
    report("padding", lambda: ATTENTION(query, key, value, attn_mask=seen))
    report("bias", lambda: ATTENTION(query, key, value, attn_mask=bias))
    both = torch.where(seen, bias, -torch.inf).detach().requires_grad_()
    report("bias and padding [B, H, S, S]", lambda: ATTENTION(query, key, value, attn_mask=both))
    report("  made once for all layers", lambda: torch.where(seen, bias, -torch.inf))


def causal_with_dropout(rows: int, heads: int, length: int, size: int) -> None:
    width = heads * size
    print(f"{heads} heads of {size}; {rows} × {length} tokens; causal, with dropout")
    layer = attention.MultiHeadedAttention(ModelConfig(hidden_size=width, emb_size=width, heads_num=heads))
    query, key, value = (random(rows, heads, length, size) for _ in range(3))
    for queries in (length, 256, 128, 64):
        with mock.patch.object(attention, "CAUSAL_ROWS", queries):
            report(
                f"{queries} queries at a time",
                lambda: layer._attend(query, key, value, AttentionMask(causal=True))[0],
            )


def main() -> None:
    torch.manual_seed(0)
    shared_heads(4, 32, 8, 128, 128, 64)
    shared_heads(4, 32, 8, 512, 512, 64)
    shared_heads(4, 32, 8, 1, 512, 64)  # a step of generation
    biased(16, 12, 128, 64)
    biased(8, 12, 512, 64)
    causal_with_dropout(2, 12, 512, 64)
    causal_with_dropout(1, 12, 1024, 64)


if __name__ == "__main__":
    main()
