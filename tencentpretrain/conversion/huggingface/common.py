"""What reading and writing models of Transformers have in common."""

from __future__ import annotations

from collections.abc import Mapping
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

# Options that shape no network a family has: of training, of targets, of two streams.
NEUTRAL = TRAINING_ONLY | {
    "target", "max_seq_length", "stream_0", "stream_1", "remove_stream_layernorm",
}  # fmt: skip
# Options that shape the network only with one of these parts.
CONDITIONAL = {
    "has_lmtarget_bias": {"lm"}, "scale_tied_output": {"lm"}, "pooling": {"sp", "classification"},
}  # fmt: skip

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
