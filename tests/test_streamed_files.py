"""Weights written tensor by tensor, and in blocks."""

from __future__ import annotations

import weakref
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch

from tencentpretrain import load_tokenizer
from tencentpretrain.blocks import BlocksConfig, convert_into_blocks
from tencentpretrain.config import ModelConfig, TokenizerConfig
from tencentpretrain.description import read_description, write_description
from tencentpretrain.errors import UserError
from tencentpretrain.files import read_json
from tencentpretrain.state_dict import LazyTensors, read_tensors, save_weights
from tencentpretrain.streaming import stream_tensors
from tencentpretrain.tokenizers import build_tokenizer

TENSORS = {
    "embedding": torch.randn(50, 8), "scalar": torch.tensor(3), "empty": torch.empty(0, 4),
    "half": torch.randn(7).bfloat16(), "mask": torch.tensor([True, False]),
}  # fmt: skip


@pytest.mark.parametrize("name", ["model.bin", "model.safetensors"])
def test_one_tensor_in_memory(tmp_path: Path, name: str) -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    def make(key: str) -> torch.Tensor:
        assert not any(reference() is not None for reference in made)
        tensor = TENSORS[key].clone()
        made.append(weakref.ref(tensor))
        return tensor

    aliases = {key: key for key in TENSORS} | {"tied": "embedding"}
    lazy = LazyTensors({alias: (key, partial(make, key)) for alias, key in aliases.items()})
    like = {alias: TENSORS[key].to("meta") for alias, key in aliases.items()}
    stream_tensors(lazy, like, tmp_path / "temporary", tmp_path / name)
    read = read_tensors(tmp_path / "temporary")
    assert list(read) == list(aliases)
    for alias, key in aliases.items():
        assert read[alias].dtype == TENSORS[key].dtype and torch.equal(read[alias], TENSORS[key])
    if name == "model.bin":
        assert read["tied"].data_ptr() == read["embedding"].data_ptr()
        assert all(tensor.data_ptr() % 64 == 0 for tensor in read.values())  # they are used where they lie
        assert zipfile.ZipFile(tmp_path / "temporary").testzip() is None
        torch.load(tmp_path / "temporary", weights_only=True, mmap=False)


def test_blocks(tmp_path: Path) -> None:
    weights = {f"layer.{number}": torch.randn(100) for number in range(5)}
    weights["tied"] = weights["layer.0"]
    source, target = tmp_path / "model.bin", tmp_path / "elsewhere" / "blocks"
    save_weights(weights, source)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nword\n")
    tokenizer = build_tokenizer(TokenizerConfig(vocab_path=str(tmp_path / "vocab.txt")))
    write_description(source, ModelConfig(hidden_size=8, emb_size=8, heads_num=2), tokenizer)
    options = {"input_model_path": str(source), "output_model_path": str(target)}
    told = convert_into_blocks(BlocksConfig(**options, block_size=900e-9))
    assert told == f"{target}: 3 blocks, 0.00 GB"
    index = read_json(target / "tencentpretrain_model.bin.index.json")
    assert index["metadata"] == {"total_size": 2000}
    assert index["weight_map"]["tied"] == index["weight_map"]["layer.0"] == "tencentpretrain_model-0.bin"
    assert index["weight_map"]["layer.4"] == "tencentpretrain_model-2.bin"
    for output in (source, tmp_path, tmp_path / "elsewhere" / ".."):
        with pytest.raises(UserError, match=r"--output_model_path .* --input_model_path .*; give another"):
            convert_into_blocks(BlocksConfig(str(source), str(output)))
    read = read_tensors(target)
    assert read.keys() == weights.keys() and all(torch.equal(read[name], weights[name]) for name in weights)
    source.unlink()
    assert load_tokenizer(target.with_name("blocks.json")).fingerprint == tokenizer.fingerprint
    description = read_description(target)
    assert description is not None and description["hidden_size"] == 8
