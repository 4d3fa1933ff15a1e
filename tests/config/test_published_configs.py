"""Every configuration in models/: as published, documented, loadable, and of the size its source says."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from tencentpretrain import load_config
from tencentpretrain.config import (
    DataConfig,
    DeepSpeedConfig,
    InferConfig,
    ModelConfig,
    OptimizationConfig,
    Options,
    PretrainConfig,
    RunConfig,
    TokenizerConfig,
)
from tencentpretrain.sizes import DataSizes
from tencentpretrain.training.count import model_for_counting
from tencentpretrain.training.estimate import parameters_num

ROOT = Path(__file__).parents[2]
CONFIGS = {
    str(path.relative_to(ROOT / "models")).removesuffix("_config.json").removesuffix(".json"): path
    for path in sorted((ROOT / "models").glob("*/*config.json"))
}
# Digests of the values that TencentPretrain publishes under these names.
PUBLISHED = {
    "albert/base": "f3d534c5", "albert/large": "1f08ab03", "albert/xlarge": "898996b3",
    "albert/xxlarge": "8c5f1b74", "bart/base": "2868cb3f", "bart/large": "9c6d09da",
    "bert/base": "92fdf1c7", "bert/large": "4efa5db6", "bert/medium": "a1512122", "bert/mini": "4ae74fed",
    "bert/small": "7cfe6ef7", "bert/tiny": "767b6b79", "bert/xlarge": "093647d8", "bloom/175b": "75ee5fb1",
    "bloom/1b1": "98c19db7", "bloom/7b1": "62141e88", "cnn/gatedcnn_13": "bd60447c",
    "cnn/gatedcnn_9": "bb3c52da", "gpt2/config": "b58f73ab", "gpt2/distil": "eaa32343",
    "gpt2/large": "a1ea82b5", "gpt2/medium": "c8169b50", "gpt2/xlarge": "df5bb912", "llama/13b": "e3e70491",
    "llama/33b": "c207ba69", "llama/65b": "7e7e6c55", "llama/7b": "b9e15594", "llama2/13b": "e3e70491",
    "llama2/70b": "5c677aca", "llama2/7b": "b9e15594", "megatron/bert_3.9B": "f34fcc00",
    "megatron/gpt2_8.3B": "e42a1977", "pegasus/base": "fd660f53", "pegasus/large": "fbfcf6fc",
    "rnn/bilstm": "20b43b43", "rnn/gru": "b3b7fcb0", "rnn/lstm": "e9607066", "rnn/siamese_lstm": "5a08d819",
    "sbert/base": "556b6ac5", "sbert/large": "060bf4f7", "t5-v1_1/base": "9fa5b5e1",
    "t5-v1_1/large": "82418ebe", "t5-v1_1/small": "23251549", "t5-v1_1/xlarge": "30ca244b",
    "t5-v1_1/xxlarge": "c9e5c4e5", "t5/11b": "f400dbd0", "t5/3b": "6450308b", "t5/base": "29fc8346",
    "t5/large": "9fec6f60", "t5/small": "013b073e", "transformer/base": "cf121c5d",
    "transformer/big": "687a8aaf", "xlm-roberta/base": "ba5d486f", "xlm-roberta/large": "53cb7520",
}  # fmt: skip
# Millions of parameters that papers and model cards give: with that vocabulary, and with what differs there.
TIED: dict[str, Any] = {"tie_weights": True}
SHARED: dict[str, Any] = {"share_embedding": True}
LITERATURE: dict[str, tuple[int, float, dict[str, Any]]] = {
    "bert/tiny": (30522, 4.4, {}), "bert/mini": (30522, 11.3, {}), "bert/small": (30522, 29.1, {}),
    "bert/medium": (30522, 41.7, {}), "bert/base": (30522, 110, {}), "bert/large": (30522, 336, {}),
    "albert/base": (30000, 12, TIED), "albert/large": (30000, 18, TIED), "albert/xlarge": (30000, 60, TIED),
    "albert/xxlarge": (30000, 223, TIED), "roberta/base": (50265, 125, {}), "roberta/large": (50265, 355, {}),
    "xlm-roberta/base": (250002, 278, TIED), "xlm-roberta/large": (250002, 560, TIED),
    "gpt2/config": (50257, 124, {}), "gpt2/distil": (50257, 82, {}), "gpt2/medium": (50257, 355, {}),
    "gpt2/large": (50257, 774, {}), "gpt2/xlarge": (50257, 1558, {}),
    "t5/small": (32128, 60.5, {}), "t5/base": (32128, 223, {}), "t5/large": (32128, 738, {}),
    "t5/3b": (32128, 2852, {}), "t5/11b": (32128, 11307, {}),
    "t5-v1_1/small": (32128, 77, {}), "t5-v1_1/base": (32128, 248, {}), "t5-v1_1/large": (32128, 783, {}),
    "t5-v1_1/xlarge": (32128, 2850, {}), "t5-v1_1/xxlarge": (32128, 11135, {}),
    "mt5/small": (250112, 300, {}), "mt5/base": (250112, 582, {}),
    "bart/base": (50265, 139, {}), "bart/large": (50265, 406, {}),
    "pegasus/base": (32000, 223, {}), "pegasus/large": (96103, 568, {}),
    "transformer/base": (37000, 65, SHARED), "transformer/big": (37000, 213, SHARED),
    "marian/base": (58101, 74, {}),
    "llama/7b": (32000, 6738, {}), "llama/13b": (32000, 13016, {}), "llama/33b": (32000, 32529, {}),
    "llama/65b": (32000, 65286, {}), "llama2/7b": (32000, 6738, {}), "llama2/13b": (32000, 13016, {}),
    "llama2/70b": (32000, 68977, {}), "llama3/8b": (128256, 8030, {}), "llama3/70b": (128256, 70554, {}),
    "mistral/7b": (32000, 7242, {}), "qwen2/0.5b": (151936, 494, {}), "qwen2/7b": (152064, 7616, {}),
    "qwen3/0.6b": (151936, 596, {}), "qwen3/8b": (151936, 8191, {}),
    "bloom/1b1": (250880, 1065, {}), "bloom/7b1": (250880, 7069, {}), "bloom/175b": (250880, 176247, {}),
    "megatron/bert_3.9B": (30522, 3900, TIED), "megatron/gpt2_8.3B": (50257, 8300, {}),
    "fnet/base": (32000, 83, {}),
}  # fmt: skip


def values_of(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(CONFIGS[name].read_text(encoding="utf-8"))
    return values


def parameters_of(name: str, vocab_size: int, **changes: Any) -> int:
    config = load_config(CONFIGS[name], **changes)
    with torch.device("meta"):
        return parameters_num(model_for_counting(config, DataSizes(vocab_size, labels_num=3)))


KEYS = ["source", "command", "cost", "result"]


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_loads_and_says_where_it_is_from(name: str) -> None:
    load_config(CONFIGS[name])
    about = values_of(name)["about"]
    assert list(about) in (KEYS, [*KEYS, "conversion"])
    assert all(isinstance(text, str) and text for text in about.values())
    assert str(CONFIGS[name].relative_to(ROOT)) in about["command"]


def test_published_values_are_unchanged() -> None:
    found = {}
    for name in PUBLISHED:
        values = values_of(name)
        del values["about"]
        found[name] = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
    assert found == PUBLISHED


@pytest.mark.parametrize("name", CONFIGS)
def test_options_of_the_command_exist(name: str) -> None:
    python, program, *arguments = shlex.split(values_of(name)["about"]["command"])
    common = (ModelConfig, TokenizerConfig, OptimizationConfig, RunConfig)
    concerns = {
        "pretrain.py": (*common, DataConfig, PretrainConfig, DeepSpeedConfig),
        "scripts/extract_features.py": (InferConfig, ModelConfig, TokenizerConfig),
    }[program]
    assert python == "python" and (ROOT / program).is_file()
    Options("", *concerns, arguments=arguments).build(*concerns)


def stated(name: str) -> tuple[int, int]:
    """Parameters and vocabulary that the configuration says."""
    found = re.match(r"([\d,]+) parameters with a vocabulary of ([\d,]+);", values_of(name)["about"]["cost"])
    assert found is not None
    return int(found[1].replace(",", "")), int(found[2].replace(",", ""))


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_that_its_cost_says(name: str) -> None:
    parameters, vocab_size = stated(name)
    assert parameters_of(name, vocab_size) == parameters


@pytest.mark.parametrize("name", LITERATURE)
def test_parameters_are_those_of_the_literature(name: str) -> None:
    vocab_size, millions, changes = LITERATURE[name]
    parameters, stated_vocab_size = stated(name)
    if changes or vocab_size != stated_vocab_size:
        parameters = parameters_of(name, vocab_size, **changes)
    assert parameters / 1e6 == pytest.approx(millions, rel=0.03)
