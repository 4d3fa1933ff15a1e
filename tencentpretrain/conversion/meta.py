"""LLaMA as Meta publishes it: consolidated.*.pth, each with its part of every matrix, and params.json."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tencentpretrain.conversion.engine import to_ours
from tencentpretrain.conversion.family import Rule, Setting, Shared
from tencentpretrain.conversion.huggingface import TheirModel, our_values
from tencentpretrain.conversion.maps.llama import LLAMA
from tencentpretrain.conversion.steps import Values
from tencentpretrain.errors import WeightsError, weights_of
from tencentpretrain.files import read_object
from tencentpretrain.state_dict import LazyTensors, read_tensors

PARAMS = "params.json"
_FILES = "consolidated.*.pth"
_LAYER = "layers.{}"
_OURS = "encoder.transformer.{}"

# Dimension along which the files have a part of it each (Shoeybi et al. 2019); norms are whole in each. Token
# embeddings are split by width, since Llama 3 by rows.
_SPLIT = {"wq": 0, "wk": 0, "wv": 0, "wo": 1, "w1": 0, "w2": 1, "w3": 0, "output": 0}

# How Llama 3.1 was stretched; params.json just says so.
_STRETCHED = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _rope_scaling(theirs: Values) -> dict[str, Any]:
    if not theirs.get("use_scaled_rope", False):
        return {}
    given = {"factor": "rope_scaling_factor", "high_freq_factor": "high_freq_factor"}
    return _STRETCHED | {ours: theirs[name] for ours, name in given.items() if theirs.get(name) is not None}


META = dataclasses.replace(
    LLAMA,
    name="llama of Meta",
    prefix="",
    rules=(
        Rule("tok_embeddings.weight", "embedding.word.embedding.weight"),
        Rule(f"{_LAYER}.attention_norm.weight", f"{_OURS}.layer_norm_1.weight"),
        *(
            Rule(f"{_LAYER}.attention.{name}.weight", f"{_OURS}.self_attn.linear_layers.{number}.weight")
            for number, name in enumerate(("wq", "wk", "wv"))
        ),
        Rule(f"{_LAYER}.attention.wo.weight", f"{_OURS}.self_attn.final_linear.weight"),
        Rule(f"{_LAYER}.ffn_norm.weight", f"{_OURS}.layer_norm_2.weight"),
        Rule(f"{_LAYER}.feed_forward.w1.weight", f"{_OURS}.feed_forward.linear_gate.weight"),
        Rule(f"{_LAYER}.feed_forward.w3.weight", f"{_OURS}.feed_forward.linear_1.weight"),
        Rule(f"{_LAYER}.feed_forward.w2.weight", f"{_OURS}.feed_forward.linear_2.weight"),
        Rule("norm.weight", "encoder.layer_norm.weight"),
        Rule("output.weight", "target.lm.output_layer.weight", part="lm"),
    ),
    shared=(Shared("output.weight", "tok_embeddings.weight"),),
    ignored=(r"rope\.freqs", r"layers\.\d+\.attention\.inner_attention\.rope\.freqs"),
    settings=(
        Setting(("hidden_size", "emb_size"), "dim", 4096),
        Setting("layers_num", "n_layers", 32),
        Setting("heads_num", "n_heads", 32),
        Setting("local_kv_heads_num", "n_kv_heads", None),
        Setting("layernorm_eps", "norm_eps", 1e-5),
        Setting("rope_theta", "rope_theta", 10000.0),
        Setting("rope_scaling", None, read=_rope_scaling),
        Setting("max_seq_length", None, 2048),
        Setting("hidden_act", None, "silu"),
        Setting("dropout", None, 0.0),
    ),
    fixed_theirs={},
)


def read(path: Path) -> TheirModel:
    """A directory of Meta's, or a file of it: one that is named as there brings the others with it.

    Raises:
        WeightsError: no such files, not LLaMA, parts that do not fit together.
    """
    home = path if path.is_dir() else path.parent
    files = [path]
    if path.is_dir() or path.match(_FILES):
        files = sorted(home.glob(_FILES))
    if not files:
        raise WeightsError(f"{path} is a directory without {_FILES}; give the one that Meta's download made.")
    theirs = _joined(path, [read_tensors(file) for file in files])
    has_params = (home / PARAMS).is_file()
    values = our_values(META, read_object(home / PARAMS), home / PARAMS) if has_params else {}
    with weights_of(path):
        done = to_ours(META, theirs, values)
    values["feedforward_size"] = theirs["layers.0.feed_forward.w1.weight"].shape[0]
    values["tie_weights"] = "output.weight" not in theirs
    return TheirModel(META, done.tensors, values, done.parts, done.ignored, done.notes, has_params)


def _joined(path: Path, shards: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """Whole tensors, each made when it is asked for."""
    different = [name for shard in shards for name in shard.keys() ^ shards[0].keys()]
    if different:
        raise WeightsError(f"{path}: '{different[0]}' is not in every one of the {len(shards)} files.")
    if len(shards) == 1:
        return shards[0]
    width = len(shards[0].get("norm.weight", ()))

    def join(name: str) -> Tensor:
        parts = [shard[name] for shard in shards]
        dimension = _SPLIT.get(name.split(".")[-2])
        if name == "tok_embeddings.weight":
            dimension = 1 if parts[0].shape[1] < width else 0
        return parts[0] if dimension is None else torch.cat(parts, dimension)

    return LazyTensors({name: ((name,), functools.partial(join, name)) for name in shards[0]})
