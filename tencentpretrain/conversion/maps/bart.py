"""BART (Lewis et al. 2020) and Pegasus (Zhang et al. 2020): `…ForConditionalGeneration`, `…Model`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tencentpretrain.config import ModelConfig
from tencentpretrain.conversion.family import Family, Rule, Setting, Shared
from tencentpretrain.conversion.maps.bert import ACTIVATIONS, linear, norm
from tencentpretrain.conversion.steps import Flatten, PadRows, Values
from tencentpretrain.errors import WeightsError

_OURS = {"encoder": "encoder.transformer.{}", "decoder": "decoder.transformer_decoder.{}"}
EMBEDDINGS = {"encoder": "embedding", "decoder": "tgt_embedding"}
POSITIONS = "model.{}.embed_positions.weight"
BIAS = "final_logits_bias"


def _attention(theirs: str, ours: str) -> tuple[Rule, ...]:
    projections = ((f"{part}_proj", f"linear_layers.{number}") for number, part in enumerate("qkv"))
    return (
        *(rule for one, other in projections for rule in linear(f"{theirs}.{one}", f"{ours}.{other}")),
        *linear(f"{theirs}.out_proj", f"{ours}.final_linear"),
    )


def stacks() -> tuple[Rule, ...]:
    """Word embeddings, layers and vocabulary layer: what all of the relatives have."""
    rules = [
        Rule("lm_head.weight", "target.lm.output_layer.weight", part="lm"),
        Rule(BIAS, "target.lm.output_layer.bias", (Flatten(),), part="lm", optional=True),
    ]
    for side, ours in _OURS.items():
        layer = f"model.{side}.layers.{{}}"
        rules.append(Rule(f"model.{side}.embed_tokens.weight", f"{EMBEDDINGS[side]}.word.embedding.weight"))
        rules += _attention(f"{layer}.self_attn", f"{ours}.self_attn")
        norms = ["self_attn_layer_norm", "final_layer_norm"]
        if side == "decoder":
            rules += _attention(f"{layer}.encoder_attn", f"{ours}.context_attn")
            norms.insert(1, "encoder_attn_layer_norm")
        for number, name in enumerate(norms, 1):
            rules += norm(f"{layer}.{name}", f"{ours}.layer_norm_{number}")
        for number in (1, 2):
            rules += linear(f"{layer}.fc{number}", f"{ours}.feed_forward.linear_{number}")
    return tuple(rules)


SHARED = (
    Shared("model.encoder.embed_tokens.weight", "model.shared.weight", always=True),
    Shared("model.decoder.embed_tokens.weight", "model.shared.weight", always=True),
    Shared("lm_head.weight", "model.decoder.embed_tokens.weight"),
)


Makers = dict[str, Callable[[], Tensor]]


def zero_bias(theirs: Mapping[str, Tensor], config: Values) -> Makers:
    """The vocabulary layer's bias, which a file may leave out where it is zero."""

    def make() -> Tensor:
        layer = theirs["lm_head.weight"]
        return layer.new_zeros(1, len(layer))

    return {BIAS: make} if "lm_head.weight" in theirs else {}


def shared_embedding(theirs: Mapping[str, Tensor], config: Values) -> Makers:
    """The bias, and the embedding of both sides, which a model that ties nothing has besides, unused."""

    def make() -> Tensor:
        return theirs["model.encoder.embed_tokens.weight"].clone()

    return zero_bias(theirs, config) | {"model.shared.weight": make}


def sinusoids(theirs: Mapping[str, Tensor], config: Values) -> Makers:
    """And the positions, which are computed at ours and stored at theirs: [max_seq_length, D].

    As many as the configuration says; 1024 where there is none.
    """

    def make() -> Tensor:
        word = theirs["model.encoder.embed_tokens.weight"]
        return sinusoidal_table(config.get("max_seq_length", 1024), word.shape[1]).to(word.dtype)

    return zero_bias(theirs, config) | {POSITIONS.format(side): make for side in EMBEDDINGS}


def shared_and_sinusoids(theirs: Mapping[str, Tensor], config: Values) -> Makers:
    return shared_embedding(theirs, config) | sinusoids(theirs, config)


def says_shared(theirs: Values) -> bool | None:
    """Where nothing is tied the embeddings of both sides may be two, or one: only the tensors say."""
    return None if theirs.get("tie_word_embeddings") is False else True


def _write_shared(config: ModelConfig) -> None:
    if config.tie_weights and not config.share_embedding:
        raise WeightsError("`tie_weights` is true and `share_embedding` false, which they cannot be together")


_SHARING = Setting("share_embedding", None, read=says_shared, write=_write_shared)


def sinusoidal_table(length: int, size: int) -> Tensor:
    """Sines, then cosines, of positions 0, 1, 2 …: [length, size]."""
    speeds = 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * speeds
    return torch.cat((angles.sin(), angles.cos()), 1).float()


def _of_both(name: str, default: int) -> Callable[[Values], Any]:
    """A size that encoder and decoder have each at theirs, and have together at ours."""

    def read(theirs: Values) -> Any:
        one, other = (theirs.get(f"{side}_{name}", default) for side in EMBEDDINGS)
        if one != other:
            raise WeightsError(f"`encoder_{name}` is {one} and `decoder_{name}` {other}, they must be equal")
        return one

    return read


def sizes() -> tuple[Setting, ...]:
    """What their configuration files share."""
    both = (("heads_num", "attention_heads", 16), ("feedforward_size", "ffn_dim", 4096))
    return (
        Setting(("hidden_size", "emb_size"), "d_model", 1024),
        Setting("layers_num", "encoder_layers", 12),
        Setting("decoder_layers_num", "decoder_layers", 12, write=lambda config: config.decoder_depth),
        *(
            Setting(ours, f"{side}_{theirs}", read=_of_both(theirs, default))
            for ours, theirs, default in both
            for side in EMBEDDINGS
        ),
        Setting("hidden_act", "activation_function", "gelu", ACTIVATIONS),
        Setting("max_seq_length", "max_position_embeddings", 1024),
        Setting("dropout", "dropout", 0.1),
        Setting("dropout", "attention_dropout", 0.0),
        # Theirs cannot be set. A published configuration's 1e-6 changes the sixth digit of a state.
        Setting("layernorm_eps", None, 1e-5, fixed=True),
        Setting("tie_weights", "tie_word_embeddings", True),
        Setting("has_lmtarget_bias", None, True, write=lambda config: None),
    )


IGNORED = (r"model\.(en|de)coder\.version",)
SEQUENCE_TO_SEQUENCE = {"is_encoder_decoder": True, "is_decoder": False}
SCALED = {True: ("word", "sinusoidalpos")}  # beside sinusoids our word embeddings are scaled

BART = Family(
    name="bart",
    prefix="model.",
    rules=(
        *stacks(),
        # Their first two rows are of no position.
        *(
            Rule(POSITIONS.format(side), f"{ours}.pos.embedding.weight", (PadRows(front=-2),))
            for side, ours in EMBEDDINGS.items()
        ),
        *(
            rule
            for side, ours in EMBEDDINGS.items()
            for rule in norm(f"model.{side}.layernorm_embedding", f"{ours}.layer_norm")
        ),
    ),
    shared=SHARED,
    implied=shared_embedding,
    ignored=IGNORED,
    settings=(*sizes(), _SHARING),
    fixed_ours={
        "embedding": ("word", "pos"),
        "tgt_embedding": ("word", "pos"),
        "decoder": "transformer",
    },
    fixed_theirs={**SEQUENCE_TO_SEQUENCE, "scale_embedding": False},
    types={"bart": ("lm",)},
    architectures={("lm",): "BartForConditionalGeneration", (): "BartModel"},
    tokenizer_class="BartTokenizer",
    tokenizer_files={"vocab_path": "vocab.json", "merges_path": "merges.txt"},
    token_ids={
        "pad_token_id": "pad",
        "bos_token_id": "cls",
        "eos_token_id": "sep",
        "forced_eos_token_id": "sep",
        "decoder_start_token_id": "sep",
    },
)

PEGASUS = Family(
    name="pegasus",
    prefix="model.",
    rules=(
        *stacks(),
        *(rule for side in EMBEDDINGS for rule in norm(f"model.{side}.layer_norm", f"{side}.layer_norm")),
    ),
    shared=SHARED,
    implied=shared_and_sinusoids,
    ignored=(*IGNORED, POSITIONS.format("(en|de)coder").replace(".", r"\.")),
    settings=(*sizes(), _SHARING, Setting(("embedding", "tgt_embedding"), "scale_embedding", False, SCALED)),
    fixed_ours={
        "decoder": "transformer",
        "layernorm_positioning": "pre",
        "remove_embedding_layernorm": True,
        "sinusoidal_variant": "marian",
    },
    fixed_theirs=SEQUENCE_TO_SEQUENCE,
    types={"pegasus": ("lm",)},
    architectures={("lm",): "PegasusForConditionalGeneration", (): "PegasusModel"},
    tokenizer_class="PegasusTokenizer",
    tokenizer_files={"spm_model_path": "spiece.model"},
    token_ids={
        "pad_token_id": "pad",
        "eos_token_id": "sep",
        "forced_eos_token_id": "sep",
        "decoder_start_token_id": "pad",
    },
)
