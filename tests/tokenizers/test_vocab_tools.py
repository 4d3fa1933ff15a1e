from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tencentpretrain.errors import UserError, WeightsError
from tencentpretrain.tokenizers.build_vocab import BuildVocabConfig, build_vocab
from tencentpretrain.tokenizers.vocab_tools import (
    AdapterConfig,
    DiffVocabConfig,
    adapt_vocab,
    diff_vocab,
    tokens_of,
)

ROOT = Path(__file__).parents[2]
OLD, NEW = ["[PAD]", "[UNK]", "a", "b", "c"], ["[PAD]", "d", "c", "a", "e", "[UNK]"]


def vocabularies(tmp_path: Path) -> tuple[str, str]:
    paths = []
    for name, tokens in (("old.txt", OLD), ("new.txt", NEW)):
        (tmp_path / name).write_text("\n".join(tokens) + "\n", encoding="utf-8")
        paths.append(str(tmp_path / name))
    return paths[0], paths[1]


def test_diff(tmp_path: Path) -> None:
    one, other = vocabularies(tmp_path)
    assert diff_vocab(DiffVocabConfig(one, other)).split("\n") == [
        f"vocab_1: {one}, size: 5",
        f"vocab_2: {other}, size: 6",
        "vocab_1 - vocab_2 = 1: b",
        "vocab_2 - vocab_1 = 2: d e",
        "vocab_1 & vocab_2 = 4",
    ]
    command = [sys.executable, "scripts/diff_vocab.py", "--vocab_1", one, "--vocab_2", one]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "vocab_1 - vocab_2 = 0\n" in done.stdout


def test_sentencepiece(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("some words and others\n" * 50, encoding="utf-8")
    path = str(tmp_path / "spm.model")
    build_vocab(BuildVocabConfig((str(tmp_path / "corpus.txt"),), path, type="unigram", vocab_size=30))
    tokens = tokens_of(path)
    assert tokens[0] == "[PAD]"
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    assert "vocab_1 - vocab_2 = 0" in diff_vocab(DiffVocabConfig(path, str(tmp_path / "vocab.txt")))


def test_rows_follow_their_tokens(tmp_path: Path) -> None:
    old, new = vocabularies(tmp_path)
    torch.manual_seed(0)
    tensors = {
        "embedding.word.embedding.weight": torch.randn(5, 4),
        "embedding.pos.embedding.weight": torch.randn(5, 4),
        "target.mlm.linear_2.bias": torch.randn(5),
        "target.lm.output_layer.weight": torch.randn(5, 4),
        "tgt_embedding.word.embedding.weight": torch.randn(9, 4),
    }
    tensors["target.mlm.linear_2.weight"] = tensors["embedding.word.embedding.weight"].clone()
    torch.save(tensors, tmp_path / "old.bin")
    config = AdapterConfig(str(tmp_path / "old.bin"), old, new, str(tmp_path / "new.bin"))
    assert "6 tokens, 4 with their old rows, 2 new" in adapt_vocab(config)
    found = torch.load(tmp_path / "new.bin", weights_only=True)
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        if "pos" in name or "tgt" in name:
            assert torch.equal(found[name], tensor)
            continue
        assert found[name].shape == (6, *tensor.shape[1:])
        for row, token in enumerate(NEW):
            if token in OLD:
                assert torch.equal(found[name][row], tensor[OLD.index(token)])
            else:
                assert not (found[name][row] == tensor).any()
    assert torch.equal(found["target.mlm.linear_2.weight"], found["embedding.word.embedding.weight"])  # tied


def test_a_vocabulary_of_another_model(tmp_path: Path) -> None:
    old, new = vocabularies(tmp_path)
    torch.save({"embedding.word.embedding.weight": torch.zeros(7, 4)}, tmp_path / "old.bin")
    with pytest.raises(WeightsError, match=r"the vocabulary has 5 tokens.* 7 rows \(embedding.word"):
        adapt_vocab(AdapterConfig(str(tmp_path / "old.bin"), old, new, str(tmp_path / "new.bin")))
    for option in ("old_model_path", "old_vocab_path", "new_vocab_path"):
        paths = {"old_model_path": str(tmp_path / "old.bin"), "old_vocab_path": old, "new_vocab_path": new}
        with pytest.raises(UserError, match=f"--new_model_path .* is what --{option} names too"):
            adapt_vocab(AdapterConfig(**paths, new_model_path=paths[option]))
