"""How fast batches are built, in one process: `python benchmarks/loader.py [--workers_num N] [--seconds X]`.

The corpus is synthetic: Zipf-distributed ids, sentences of 1 to 60 tokens, documents of 1 to 40 sentences.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tencentpretrain.config import DataConfig, TokenizerConfig
from tencentpretrain.data.loader import Loader
from tencentpretrain.data.store import TokenStore
from tencentpretrain.data.writer import StoreWriter
from tencentpretrain.registry import PROCESSORS
from tencentpretrain.tokenizers import Tokenizer, build_tokenizer

WORDS = 30000
SENTINELS = [f"<extra_id_{number}>" for number in range(100)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CASES = {
    "lm": ("lm", {}),
    "lm, full sentences": ("lm", {"full_sentences": True}),
    "mlm": ("mlm", {}),
    "mlm, full sentences": ("mlm", {"full_sentences": True}),
    "mlm, whole words": ("mlm", {"full_sentences": True, "whole_word_masking": True}),
    "mlm, spans of words": (
        "mlm",
        {"full_sentences": True, "whole_word_masking": True, "span_masking": True},
    ),
    "mlm, packed": ("mlm", {"packing": True}),
    "bert": ("bert", {}),
    "bert, packed": ("bert", {"packing": True}),
    "albert": ("albert", {}),
    "bilm": ("bilm", {}),
    "t5": ("t5", {"full_sentences": True}),
    "bart": ("bart", {}),
    "gsg": ("gsg", {"sentence_selection_strategy": "principal"}),
}


def make_tokenizer(directory: Path) -> Tokenizer:
    words = [f"##w{number}" if number % 4 == 0 else f"w{number}" for number in range(WORDS)]
    path = directory / "vocab.txt"
    path.write_text("\n".join([*SPECIAL, *words, *SENTINELS]) + "\n", encoding="utf-8")
    return build_tokenizer(TokenizerConfig(vocab_path=str(path)))


def make_store(directory: Path, tokenizer: Tokenizer, sentences_num: int) -> TokenStore:
    generator = np.random.default_rng(7)
    lengths = generator.integers(1, 61, sentences_num)
    ids = len(SPECIAL) + generator.zipf(1.2, int(lengths.sum())) % WORDS
    starts = np.cumsum(generator.integers(1, 41, sentences_num))
    directory.mkdir()
    writer = StoreWriter(directory, tokenizer, "sentences")
    writer.append(ids, lengths, np.concatenate([[0], starts[starts < sentences_num]]))
    writer.close({}, {})
    return TokenStore.open(directory)


def measure(loader: Loader, seconds: float) -> tuple[float, float]:
    """Tokens a second, without padding, and milliseconds a batch."""
    batches = loader.batches()
    for _ in range(3):
        next(batches)
    tokens = steps = 0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        tokens += next(batches).tokens
        steps += 1
    spent = time.perf_counter() - start
    return tokens / spent, 1000 * spent / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--workers_num", type=int, default=0)
    parser.add_argument("--sentences_num", type=int, default=1_000_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer = make_tokenizer(Path(temporary))
        store = make_store(Path(temporary) / "store", tokenizer, arguments.sentences_num)
        print(f"{store.tokens_num:,} tokens, {store.sentences_num:,} sentences")
        for seq_length, batch_size in ((512, 32), (128, 32)):
            for title, (name, options) in CASES.items():
                config = DataConfig(seq_length=seq_length, **options)
                processor = PROCESSORS[name](store, config, tokenizer)
                loader = Loader(processor, batch_size, arguments.workers_num)
                start = time.perf_counter()
                samples_num = loader.samples_num()
                planned = time.perf_counter() - start
                rate, milliseconds = measure(loader, arguments.seconds)
                speed = f"{rate / 1e6:6.2f} M tokens/s, {milliseconds:6.2f} ms a batch"
                plan = f"{samples_num:,} samples planned in {planned:.2f} s"
                print(f"{batch_size} × {seq_length}  {title:20}{speed}; {plan}", flush=True)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
