"""What reading and writing models of Transformers have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from tencentpretrain.config import ModelConfig, options_of
from tencentpretrain.conversion.engine import is_tied
from tencentpretrain.conversion.family import Family
from tencentpretrain.description import TRAINING_ONLY
from tencentpretrain.state_dict import renamed

CONFIG = "config.json"
LAYERS = {"encoder.transformer": "layers_num", "decoder.transformer_decoder": "decoder_layers_num"}
OPTIONS = options_of(ModelConfig)

# Options that shape no network a family has: of training, of targets, of encoders other than the transformer.
NEUTRAL = TRAINING_ONLY | {
    "target", "max_seq_length", "bidirectional", "kernel_size", "block_size", "stream_0", "stream_1",
    "remove_stream_layernorm",
}  # fmt: skip

# Options that shape the network only if, given our configuration and the parts that are converted.
CONDITIONAL: dict[str, Callable[[ModelConfig, Sequence[str]], bool]] = {
    "tgt_embedding": lambda config, parts: config.decoder is not None,
    "share_embedding": lambda config, parts: config.decoder is not None,
    "decoder_layers_num": lambda config, parts: config.decoder is not None,
    "relative_attention_buckets_num": lambda config, parts: config.relative_position_embedding,
    "relative_attention_max_distance": lambda config, parts: config.relative_position_embedding,
    "rope_theta": lambda config, parts: config.rotary_position_embedding,
    "rope_scaling": lambda config, parts: config.rotary_position_embedding,
    "sinusoidal_variant": lambda config, parts: "sinusoidalpos" in (*config.embedding, *config.tgt_embedding),
    "has_lmtarget_bias": lambda config, parts: "lm" in parts,
    "scale_tied_output": lambda config, parts: "lm" in parts,
    "pooling": lambda config, parts: "sp" in parts or "classification" in parts,
}

HEADS_WITH_LABELS = ("classification", "token_classification")


def fixed_options(family: Family) -> dict[str, Any]:
    """What our options must be that no setting names and that shape every network."""
    mapped = {name for setting in family.settings for name in setting.options}
    return {
        name: option.default
        for name, option in OPTIONS.items()
        if name not in mapped and name not in NEUTRAL and name not in CONDITIONAL
    } | dict(family.fixed_ours)


def unnamed(count: int) -> list[str]:
    """What classes without names are called at theirs."""
    return [f"LABEL_{number}" for number in range(count)]


def what_is_shared(family: Family, theirs: Mapping[str, Tensor], values: Mapping[str, Any]) -> dict[str, Any]:
    """Our options that say so, from the tensors; what the configuration calls untied is so even if equal."""
    full = renamed(theirs, {family.canonical(name): name for name in theirs})
    shared = {"tie_weights": is_tied(family, full) and values.get("tie_weights") is not False}
    if any(pair.always for pair in family.shared):
        shared["share_embedding"] = is_tied(family, full, always=True)
    return shared
