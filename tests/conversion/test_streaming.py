"""Sharded directories: one file at a time, on the way in and on the way out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_bert

from tencentpretrain import build_model, load_weights
from tencentpretrain.config import ModelConfig
from tencentpretrain.conversion import huggingface
from tencentpretrain.conversion.huggingface import OurModel
from tencentpretrain.conversion.maps import BERT
from tencentpretrain.errors import WeightsError
from tencentpretrain.state_dict import LazyTensors, origin, read_tensors, renamed, save_weights, write_tensors
from tencentpretrain.weights import described_config, read_description, read_state_dict

# What a process takes while it loads weights into a model: how much more than before, at the highest. A
# process for each directory, forked after the imports, which take seconds.
LOADING = """
import os, sys, torch
import safetensors.torch
from tencentpretrain import build_model, load_weights
from tencentpretrain.weights import described_config, read_description

def memory(name):
    lines = open("/proc/self/status", encoding="utf-8").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def measure(path):
    description = read_description(path)
    model = build_model(described_config(path, description), description["vocab_size"])
    torch.ones(1).aminmax()
    before = memory("VmRSS")
    with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
        file.write("5")
    report = load_weights(model, path)
    assert not report.missing
    print(memory("VmHWM") - before, flush=True)

for path in sys.argv[1:]:
    child = os.fork()
    if not child:
        measure(path)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, path
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured as on Linux")
def test_loading_takes_the_model_and_one_file(tmp_path: Path) -> None:
    """Also through a conversion that makes new tensors (GPT-2 stores its matrices transposed)."""
    import transformers

    sizes = {"vocab_size": 8000, "n_embd": 512, "n_layer": 10, "n_head": 4, "n_positions": 32}
    with torch.device("meta"):
        theirs = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(**sizes, architectures=["GPT2LMHeadModel"])
        )
    tensors = {
        name: torch.full(tensor.shape, 0.02)
        for name, tensor in theirs.state_dict().items()
        if name != "lm_head.weight"
    }
    total = sum(tensor.nbytes for tensor in tensors.values())
    parts: dict[int, dict[str, torch.Tensor]] = {}
    filled = 0
    for name, tensor in tensors.items():
        parts.setdefault(min(4 * filled // total, 3), {})[name] = tensor
        filled += tensor.nbytes
    largest = max(sum(tensor.nbytes for tensor in part.values()) for part in parts.values())
    assert len(parts) == 4 and total > 120e6
    directories = [tmp_path / suffix for suffix in ("safetensors", "bin")]
    for directory in directories:
        theirs.config.save_pretrained(directory)
        for number, part in parts.items():
            save_weights(part, directory / f"part-{number}.{directory.name}")
        index = {"weight_map": {name: f"part-{n}.{directory.name}" for n in parts for name in parts[n]}}
        (directory / f"model.{directory.name}.index.json").write_text(json.dumps(index), encoding="utf-8")

    # Large blocks go back at once; else how tightly small ones lie would be measured too.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "100000", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LOADING, *map(str, directories)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for directory, taken in zip(directories, map(int, done.stdout.split()), strict=True):
        said = f"{directory.name}: {taken / 1e6:.0f} MB, a file has {largest / 1e6:.0f}"
        assert taken < 1.5 * largest, said


def test_written_in_files_and_read_again(tmp_path: Path) -> None:
    import transformers

    theirs = tiny_bert().to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "theirs")
    description = read_description(tmp_path / "theirs")
    assert description is not None
    config = described_config(tmp_path, description)
    model = huggingface.read(tmp_path / "theirs")
    target = tmp_path / "written"
    huggingface.write(target, BERT, OurModel(model.tensors, config), model.parts, max_shard_size=12000)
    files = sorted(target.glob("*.safetensors"))
    assert len(files) >= 3 and all(file.stat().st_size < 12000 + 5000 for file in files)
    index = json.loads((target / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in read_tensors(target).values())

    loaded, info = transformers.BertForPreTraining.from_pretrained(target, output_loading_info=True)
    assert not any(info.values()), info
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor) and tensor.dtype == torch.bfloat16, name
    ours, again = read_state_dict(tmp_path / "theirs"), read_state_dict(target)
    assert ours.keys() == again.keys() and all(torch.equal(again[name], ours[name]) for name in ours)
    assert all(tensor.dtype == torch.bfloat16 for tensor in again.values())
    fresh = build_model(config, description["vocab_size"])
    assert load_weights(fresh, target).missing == []


def test_only_one_file_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tencentpretrain import state_dict

    for number in range(3):
        part = {f"{number}.{name}": torch.full((2,), float(number)) for name in "ab"}
        save_weights(part, tmp_path / f"part-{number}.bin")
    opened: list[str] = []
    read = state_dict._read_torch
    monkeypatch.setattr(state_dict, "_read_torch", lambda path: opened.append(path.name) or read(path))
    tensors = read_tensors(tmp_path)
    assert opened == ["part-0.bin", "part-1.bin", "part-2.bin"]
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        f"{number}.{name}": [float(number)] * 2 for number in range(3) for name in "ab"
    }
    assert opened[3:] == opened[:3]


def test_one_tensor_under_two_names_is_stored_once(tmp_path: Path) -> None:
    made = []

    def make() -> torch.Tensor:
        made.append(torch.arange(1000.0))
        return made[-1].clone()

    tensors = LazyTensors({"a": ("one", make), "b": ("one", make), "c": ("two", make)})
    both = renamed(tensors, {"x": "a", "y": "b", "z": "c"})
    assert origin(both, "x") == origin(both, "y") != origin(both, "z")
    write_tensors(both, tmp_path / "model.bin", tmp_path / "model.bin")
    loaded = torch.load(tmp_path / "model.bin", weights_only=True)
    assert loaded["x"].data_ptr() == loaded["y"].data_ptr() != loaded["z"].data_ptr() and len(made) == 2


def test_what_cannot_be_converted_is_found_before_the_model_changes(tmp_path: Path) -> None:
    import transformers

    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8)
    )
    theirs.save_pretrained(tmp_path)
    tensors = dict(theirs.state_dict())
    tensors["transformer.h.0.attn.c_attn.weight"] = torch.zeros(8, 25)  # not three equal parts
    save_weights(tensors, tmp_path / "model.safetensors")
    sizes = {"hidden_size": 8, "emb_size": 8, "layers_num": 1, "heads_num": 2, "feedforward_size": 32}
    config = ModelConfig(
        **sizes, embedding=("word", "pos"), mask="causal", layernorm_positioning="pre", max_seq_length=8,
        remove_embedding_layernorm=True, target=("lm",), tie_weights=True, hidden_act="gelu_fast",
    )  # fmt: skip
    model = build_model(config, 20)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match=r"c_attn\.weight: .*cannot be split") as caught:
        load_weights(model, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
