"""What a configuration costs, found without data and without memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tencentpretrain import ConfigError
from tencentpretrain.config import ModelConfig
from tencentpretrain.training.count import CountConfig, describe_count

ROOT = Path(__file__).parents[2]
TINY = {
    "hidden_size": 8, "emb_size": 8, "feedforward_size": 16, "heads_num": 2, "layers_num": 2,
    "max_seq_length": 16, "dropout": 0.1,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "mlm and sp": {"embedding": ("word", "pos", "seg"), "target": ("mlm", "sp")},
    "prefix": {"mask": "causal_with_prefix", "target": ("lm",), "prefix_lm_loss": True},
    "decoder": {"decoder": "transformer", "target": ("lm",), "relative_position_embedding": True},
    "bilm": {"encoder": "bilstm", "target": ("bilm",)},
    "two ways": {"encoder": "gru", "bidirectional": True, "target": ("cls",), "pooling": "max"},
    "convolution": {"encoder": "gatedcnn", "target": ("lm",)},
    "Fourier": {"encoder": "fnet", "target": ("mlm",)},
    "streams": {"embedding": ("dual",), "encoder": "dual", "tie_weights": True}
    | {f"stream_{number}": {"embedding": ["word"], "encoder": "transformer"} for number in range(2)},
}
# Runs a program and prints the most memory it had, in MB.
PEAK = """
import resource, runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000)
"""


def run(*arguments: object) -> tuple[str, int]:
    """What a program prints, and its peak memory in MB."""
    result = subprocess.run(
        [sys.executable, "-c", PEAK, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    output, _, peak = result.stdout.rpartition("peak ")
    return output, int(peak)


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found is not None, text
    return float(found[1].replace(",", ""))


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_every_kind_are_counted(kind: str) -> None:
    text = describe_count(ModelConfig(**{**TINY, **KINDS[kind]}), CountConfig(vocab_size=30, seq_length=6))
    assert number(r"([\d,]+) parameters", text) > 240
    assert number(r"([\d.]+) GFLOP a token", text) >= 0
    assert ("adamw" in text) and ("activations of 1 × 6 tokens" in text)


def test_the_numbers_are_those_of_the_matrices() -> None:
    hidden, inner, layers, vocabulary, length = 64, 256, 2, 1000, 128
    config = ModelConfig(
        hidden_size=hidden, emb_size=hidden, feedforward_size=inner, heads_num=2, layers_num=layers,
        remove_transformer_bias=True, layernorm="rms", mask="causal", target=("lm",), dropout=0.0,
    )  # fmt: skip
    text = describe_count(config, CountConfig(vocab_size=vocabulary, seq_length=length, batch_size=3))
    matrices = layers * (4 * hidden**2 + 2 * hidden * inner) + vocabulary * hidden
    parameters = matrices + vocabulary * hidden + (2 * layers + 1) * hidden
    assert number(r"([\d,]+) parameters", text) == parameters
    attention = layers * 2 * length * hidden
    assert number(r"([\d.]+) GFLOP a token", text) == pytest.approx(
        6 * (matrices + attention) / 1e9, abs=6e-4
    )
    assert number(r"training: ([\d.]+) GB with adamw", text) == round(16 * parameters / 1e9, 2)


def test_a_length_that_the_positions_do_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_seq_length"):
        describe_count(ModelConfig(embedding=("word", "pos"), max_seq_length=16), CountConfig(seq_length=17))


def test_counting_seven_billion_parameters_allocates_none() -> None:
    text, peak = run(
        "scripts/count_parameters.py", "--config_path", "models/llama/7b_config.json", "--seq_length", 2048
    )
    assert "6,738,415,616 parameters with a vocabulary of 32,000" in text
    assert number(r"training: ([\d.]+) GB with adamw", text) == 107.81
    # Six operations a parameter but those looked up, and attention.
    assert number(r"([\d.]+) GFLOP a token", text) == pytest.approx(
        6 * (6.607 + 32 * 2 * 2048 * 4096 / 1e9), rel=0.001
    )
    assert peak < 1500


def test_a_dry_run_of_seven_billion_parameters_allocates_none(tmp_path: Path) -> None:
    words = [f"w{word}" for word in range(40)]
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n"
    )
    (tmp_path / "corpus.txt").write_text(
        "".join(" ".join(words[start : start + 9]) + "\n" for start in range(30))
    )
    run(
        "preprocess.py", "--corpus_path", tmp_path / "corpus.txt", "--vocab_path", tmp_path / "vocab.txt",
        "--dataset_path", tmp_path / "dataset", "--data_processor", "lm", "--seq_length", 16,
    )  # fmt: skip
    text, peak = run(
        "pretrain.py", "--config_path", "models/llama/7b_config.json", "--dataset_path", tmp_path / "dataset",
        "--output_model_path", tmp_path / "model.bin", "--dry_run",
    )  # fmt: skip
    assert number(r"([\d,]+) parameters", text) == 6_738_415_616 - 2 * (32000 - 45) * 4096
    assert peak < 1500 and not list(tmp_path.glob("model*"))
