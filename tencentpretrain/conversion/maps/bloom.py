"""BLOOM (BigScience 2022): `BloomForCausalLM`, `BloomModel`."""

from __future__ import annotations

from typing import Any

from tencentpretrain.config import ModelConfig
from tencentpretrain.conversion.family import Family, Rule, Setting, Shared
from tencentpretrain.conversion.maps.bert import linear, norm
from tencentpretrain.conversion.steps import SplitHeads, Values
from tencentpretrain.errors import WeightsError

_LAYER = "transformer.h.{}"
_OURS = "encoder.transformer.{}"


def _width(theirs: Values) -> Any:
    return theirs.get("hidden_size") or theirs.get("n_embed") or 64


def _check_inner(config: ModelConfig) -> None:
    """Theirs is always four times as wide, and says so nowhere."""
    if config.feedforward_size != 4 * config.hidden_size:
        raise WeightsError(
            f"`feedforward_size` is {config.feedforward_size}, only four times `hidden_size` "
            f"({4 * config.hidden_size}) is possible"
        )


BLOOM = Family(
    name="bloom",
    prefix="transformer.",
    rules=(
        Rule("transformer.word_embeddings.weight", "embedding.word.embedding.weight"),
        *norm("transformer.word_embeddings_layernorm", "embedding.layer_norm"),
        *norm(f"{_LAYER}.input_layernorm", f"{_OURS}.layer_norm_1"),
        *(
            Rule(
                f"{_LAYER}.self_attention.query_key_value.{kind}",
                tuple(f"{_OURS}.self_attn.linear_layers.{number}.{kind}" for number in range(3)),
                (SplitHeads(),),
            )
            for kind in ("weight", "bias")
        ),
        *linear(f"{_LAYER}.self_attention.dense", f"{_OURS}.self_attn.final_linear"),
        *norm(f"{_LAYER}.post_attention_layernorm", f"{_OURS}.layer_norm_2"),
        *linear(f"{_LAYER}.mlp.dense_h_to_4h", f"{_OURS}.feed_forward.linear_1"),
        *linear(f"{_LAYER}.mlp.dense_4h_to_h", f"{_OURS}.feed_forward.linear_2"),
        *norm("transformer.ln_f", "encoder.layer_norm"),
        Rule("lm_head.weight", "target.lm.output_layer.weight", part="lm"),
    ),
    shared=(Shared("lm_head.weight", "transformer.word_embeddings.weight"),),
    settings=(
        Setting(("hidden_size", "emb_size"), "hidden_size", _width),
        Setting("feedforward_size", None, read=lambda theirs: 4 * _width(theirs), write=_check_inner),
        Setting("layers_num", "n_layer", lambda theirs: theirs.get("num_hidden_layers", 2)),
        Setting("heads_num", "n_head", lambda theirs: theirs.get("num_attention_heads", 8)),
        Setting("max_seq_length", "seq_length", 2048),
        Setting("dropout", "hidden_dropout", 0.0),
        Setting("dropout", "attention_dropout", 0.0),
        Setting("layernorm_eps", "layer_norm_epsilon", 1e-5),
        Setting("tie_weights", "tie_word_embeddings", True),
    ),
    fixed_ours={
        "embedding": ("word",),
        "mask": "causal",
        "layernorm_positioning": "pre",
        "hidden_act": "gelu_fast",
        "alibi_position_embedding": True,
    },
    fixed_theirs={"apply_residual_connection_post_layernorm": False},
    types={"lm": ("lm",)},
    architectures={("lm",): "BloomForCausalLM", (): "BloomModel"},
    tokenizer_class="BloomTokenizerFast",
    tokenizer_files={},
    token_ids={"pad_token_id": "pad", "bos_token_id": "cls", "eos_token_id": "sep"},
)
