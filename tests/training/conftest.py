"""A small corpus, its token store, and runs over it."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tencentpretrain.config import PreprocessConfig, TokenizerConfig
from tencentpretrain.data.preprocess import preprocess
from tencentpretrain.tokenizers import build_tokenizer
from tencentpretrain.training.pretraining import make_trainer
from tencentpretrain.training.settings import read_settings
from tencentpretrain.training.trainer import Trainer

WORDS = [f"w{number}" for number in range(60)]
MODEL = {
    "emb_size": 16, "hidden_size": 16, "feedforward_size": 32, "heads_num": 2, "layers_num": 2,
    "max_seq_length": 32, "embedding": ["word", "pos", "seg"], "encoder": "transformer",
    "target": ["mlm", "sp"], "dropout": 0.1, "data_processor": "bert",
}  # fmt: skip


@pytest.fixture(autouse=True)
def as_in_a_new_process() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_corpus(path: Path, seed: int, documents: int) -> None:
    generator = random.Random(seed)
    texts = []
    for _ in range(documents):
        lines = [
            " ".join(generator.choices(WORDS, k=generator.randint(3, 9)))
            for _ in range(generator.randint(2, 6))
        ]
        texts.append("\n".join(lines) + "\n")
    path.write_text("\n".join(texts), encoding="utf-8")


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with train/ and dev/ stores, vocab.txt and config.json."""
    root = tmp_path_factory.mktemp("pretraining")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (root / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    (root / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
    tokenizer = build_tokenizer(TokenizerConfig(vocab_path=str(root / "vocab.txt")))
    for number, (name, documents) in enumerate((("train", 40), ("dev", 8))):
        write_corpus(root / f"{name}.txt", number, documents)
        config = PreprocessConfig(corpus_path=(str(root / f"{name}.txt"),), dataset_path=str(root / name))
        preprocess(config, "sentences", tokenizer, {"seq_length": 24})
    return root


Run = Callable[..., Trainer]


@pytest.fixture
def arguments(workplace: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Command line of a small run; keywords replace or add options, None removes one."""

    def make(output: str = "model.bin", **options: object) -> list[str]:
        values: dict[str, object] = {
            "dataset_path": workplace / "train", "config_path": workplace / "config.json",
            "output_model_path": tmp_path / output, "total_steps": 12, "report_steps": 4, "batch_size": 4,
            "save_checkpoint_steps": 100, "learning_rate": 1e-3,
        }  # fmt: skip
        values |= options
        return [f"--{name}={value}" for name, value in values.items() if value is not None]

    return make


@pytest.fixture
def run(arguments: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Train in this process. stop=(step, signal): it arrives in that step; draw: curves too (slow)."""

    def start(
        output: str = "model.bin", stop: tuple[int, int] | None = None, draw: bool = False, **options: object
    ) -> Trainer:
        if not draw:
            monkeypatch.setattr("tencentpretrain.training.report.draw_curves", lambda records, path: None)
        trainer = make_trainer(read_settings(arguments(output, **options)))
        if stop is not None:
            step, number = stop
            stepped = trainer.report.stepped

            def stepped_and_signalled() -> None:
                stepped()
                if trainer.step == step:
                    os.kill(os.getpid(), number)

            trainer.report.stepped = stepped_and_signalled  # type: ignore[method-assign]
        try:
            trainer.train()
        finally:
            trainer.report.close()
        return trainer

    return start


@pytest.fixture(scope="module")
def outcomes(place: Path) -> Callable[[str], list[str]]:
    """How runs ended, on each of the two ranks of a module that has a `place`."""
    ranks = [json.loads((place / f"outcomes-{rank}.json").read_text()) for rank in range(2)]
    return lambda name: [rank[name] for rank in ranks]
