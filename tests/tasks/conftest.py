"""A toy language, whose rows are easy to classify, and a model of a few thousand parameters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from toys import SPECIAL, WORDS, toy_rows, write_table

from tencentpretrain.config import TokenizerConfig
from tencentpretrain.tokenizers import Tokenizer, build_tokenizer


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with vocab.txt, config.json, train.tsv and dev.tsv."""
    directory = tmp_path_factory.mktemp("toy")
    (directory / "vocab.txt").write_text(
        "\n".join([*SPECIAL, "good", "bad", *WORDS]) + "\n", encoding="utf-8"
    )
    config = {
        "emb_size": 16, "feedforward_size": 32, "hidden_size": 16, "heads_num": 2, "layers_num": 1,
        "max_seq_length": 32, "dropout": 0.1, "embedding": ["word", "pos", "seg"], "encoder": "transformer",
        "mask": "fully_visible", "target": ["mlm"],
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_table(directory / "train.tsv", ["label", "text_a"], toy_rows(256, seed=0))
    write_table(directory / "dev.tsv", ["label", "text_a"], toy_rows(64, seed=1))
    return directory


@pytest.fixture(scope="session")
def tokenizer(toy: Path) -> Tokenizer:
    return build_tokenizer(TokenizerConfig(vocab_path=str(toy / "vocab.txt")))


@pytest.fixture
def arguments(toy: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The command line of a run that learns the toy task; keywords change it, None leaves an option out."""

    def make(**changes: object) -> list[str]:
        options: dict[str, object] = {
            "train_path": toy / "train.tsv", "dev_path": toy / "dev.tsv", "vocab_path": toy / "vocab.txt",
            "config_path": toy / "config.json", "output_model_path": tmp_path / "model.bin", "seq_length": 32,
            "learning_rate": 1e-2, "epochs_num": 4, "batch_size": 16, "report_steps": 5, "precision": "fp32",
            "pooling": "mean",
        } | changes  # fmt: skip
        return [f"--{name}={value}" for name, value in options.items() if value is not None]

    return make
