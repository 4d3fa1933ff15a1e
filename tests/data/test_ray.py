from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from stores import documents_in

from tencentpretrain.config import PreprocessConfig
from tencentpretrain.data.preprocess import preprocess
from tencentpretrain.data.store import TokenStore
from tencentpretrain.tokenizers import Tokenizer

ROOT = Path(__file__).parents[2]


def program(tmp_path: Path, vocab_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    paths = {"corpus_path": tmp_path / "corpus", "vocab_path": vocab_path, "dataset_path": tmp_path / "store"}
    command = [
        sys.executable,
        "scripts/preprocess_ray.py",
        *(f"--{name}={path}" for name, path in paths.items()),
    ]
    return subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_on_a_local_ray(tokenizer: Tokenizer, vocab_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.data")
    (tmp_path / "corpus").mkdir()
    for name in ("a.txt", "b.txt"):
        lines = ["" if number % 3 == 0 else f"{number} 5" for number in range(300)]
        (tmp_path / "corpus" / name).write_text("\n".join(lines), encoding="utf-8")
    config = PreprocessConfig(corpus_path=(str(tmp_path / "corpus"),), dataset_path=str(tmp_path / "whole"))
    preprocess(config, "sentences", tokenizer)
    done = program(tmp_path, vocab_path, "--data_processor", "bert")
    assert done.returncode == 0, done.stderr
    assert "store: 200 documents, 800 tokens." in done.stdout
    whole = TokenStore.open(tmp_path / "whole")
    assert documents_in(TokenStore.open(tmp_path / "store")) == documents_in(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "store", "whole"]
    done = program(tmp_path, vocab_path, "--data_processor", "cls")
    assert done.returncode == 2
    assert "lines cannot be used" in done.stderr or "nothing in these token stores" in done.stderr


def test_what_does_not_go_with_ray(vocab_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.data")
    done = program(tmp_path, vocab_path, "--shard", "1/2")
    assert done.returncode == 2
    assert "--shard and --dedup do not go with Ray" in done.stderr
