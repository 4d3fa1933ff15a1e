"""Options that several concerns have, declared once: `seed: int = SEED()`."""

from __future__ import annotations

from functools import partial

from tencentpretrain.config.options import option

PLUGINS = partial(option, (), "Modules to import that register components of your own.")
SEED = partial(option, 7, "Seed of every random choice.", minimum=0)
CONFIG_PATH = partial(option, "models/bert/base_config.json", "Model configuration, JSON.")
PRETRAINED_MODEL_PATH = partial(
    option, None, "Weights to start from: a file of ours or of TencentPretrain, or a Hugging Face directory."
)
LOAD_MODEL_PATH = partial(
    option, ..., "Weights to load: a file of ours or of TencentPretrain, or a Hugging Face directory."
)
INPUT_LENGTH = partial(option, 128, "Longest input, in tokens; longer text is cut.", minimum=4)
PRECISION = partial(
    option,
    "auto",
    "Autocast with fp32 weights; auto: bf16 where the device multiplies it natively, else fp32.",
    choices=("auto", "fp32", "bf16", "fp16"),
)
CORPUS_PATH = partial(
    option, ..., "Corpus files, directories or globs (.txt .tsv .jsonl, also .gz .zst, UTF-8; .parquet)."
)
