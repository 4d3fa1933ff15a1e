"""T5 (Raffel et al. 2020), T5 v1.1 (gated feed-forward layers) and mT5 (Xue et al. 2021):
`T5ForConditionalGeneration`, `T5Model` and theirs of mT5."""

from __future__ import annotations

import dataclasses

from tencentpretrain.conversion.family import Family, Rule, Setting, Shared
from tencentpretrain.conversion.maps.bert import ACTIVATIONS

_BIAS = "relative_attention_bias.weight"


def _attention(theirs: str, ours: str) -> tuple[Rule, ...]:
    names = {**{part: f"linear_layers.{number}" for number, part in enumerate("qkv")}, "o": "final_linear"}
    return tuple(Rule(f"{theirs}.{one}.weight", f"{ours}.{other}.weight") for one, other in names.items())


def _rules(feed_forward: dict[str, str]) -> tuple[Rule, ...]:
    """Of both stacks, which differ in the attention between. `feed_forward`: their matrices to ours."""
    rules = [
        Rule("encoder.embed_tokens.weight", "embedding.word.embedding.weight"),
        Rule("decoder.embed_tokens.weight", "tgt_embedding.word.embedding.weight"),
        Rule("lm_head.weight", "target.lm.output_layer.weight", part="lm"),
    ]
    for side, stack, positions in (
        ("encoder", "transformer", "relative_pos_emb"),
        ("decoder", "transformer_decoder", "self_pos_emb"),
    ):
        layer, ours = f"{side}.block.{{}}.layer", f"{side}.{stack}.{{}}"
        # They keep the biases of all layers in the first one.
        rules.append(Rule(f"{side}.block.0.layer.0.SelfAttention.{_BIAS}", f"{side}.{positions}.{_BIAS}"))
        rules.append(Rule(f"{side}.final_layer_norm.weight", f"{side}.layer_norm.weight"))
        rules += _attention(f"{layer}.0.SelfAttention", f"{ours}.self_attn")
        if side == "decoder":
            rules += _attention(f"{layer}.1.EncDecAttention", f"{ours}.context_attn")
        last = 2 if side == "decoder" else 1
        rules += [
            Rule(f"{layer}.{number}.layer_norm.weight", f"{ours}.layer_norm_{number + 1}.weight")
            for number in range(last + 1)
        ]
        rules += [
            Rule(f"{layer}.{last}.DenseReluDense.{one}.weight", f"{ours}.feed_forward.{other}.weight")
            for one, other in feed_forward.items()
        ]
    return tuple(rules)


_SHARED_SETTINGS = (
    Setting(("hidden_size", "emb_size"), "d_model", 512),
    Setting("attention_head_size", "d_kv", 64, write=lambda config: config.head_size),
    Setting("feedforward_size", "d_ff", 2048),
    Setting("relative_attention_buckets_num", "relative_attention_num_buckets", 32),
    Setting("relative_attention_max_distance", "relative_attention_max_distance", 128),
    Setting("dropout", "dropout_rate", 0.1),
    Setting("layernorm_eps", "layer_norm_epsilon", 1e-6),
    Setting("tie_weights", None),  # what they write is whether states are scaled; the tensors say
)


def _depths(default: int, heads: int) -> tuple[Setting, ...]:
    return (
        Setting("layers_num", "num_layers", default),
        Setting(
            "decoder_layers_num",
            "num_decoder_layers",
            lambda theirs: theirs.get("num_layers", default),
            write=lambda config: config.decoder_depth,
        ),
        Setting("heads_num", "num_heads", heads),
    )


# Tied states are divided, unless the configuration once said that nothing is tied (v1.1).
_SCALED = (
    Setting(
        "scale_tied_output",
        "scale_decoder_outputs",
        lambda theirs: theirs.get("tie_word_embeddings") is not False,
    ),
    Setting("scale_tied_output", "tie_word_embeddings", True),
)
_DENSE = Setting("hidden_act", "feed_forward_proj", "relu", ACTIVATIONS)
# Theirs is the approximation where "gelu" alone is meant for gates.
_GATED_ACTIVATIONS = {
    f"gated-{name}": "gelu_fast" if name == "gelu" else act for name, act in ACTIVATIONS.items()
}

T5 = Family(
    name="t5",
    rules=_rules({"wi": "linear_1", "wo": "linear_2"}),
    shared=(
        Shared("encoder.embed_tokens.weight", "shared.weight", always=True),
        Shared("decoder.embed_tokens.weight", "shared.weight", always=True),
        Shared("lm_head.weight", "decoder.embed_tokens.weight"),
    ),
    copies=(
        Shared(f"encoder.transformer.{{}}.relative_pos_emb.{_BIAS}", f"encoder.relative_pos_emb.{_BIAS}"),
    ),
    spellings=((r"^transformer\.", ""),),  # where there is a head for classes
    ignored=(rf"decoder\.block\.0\.layer\.1\.EncDecAttention\.{_BIAS}",),  # of old files, never used
    settings=(*_depths(6, 8), *_SHARED_SETTINGS, _DENSE, *_SCALED),
    fixed_ours={
        "embedding": ("word",),
        "tgt_embedding": ("word",),
        "decoder": "transformer",
        "share_embedding": True,
        "relative_position_embedding": True,
        "layernorm": "t5",
        "layernorm_positioning": "pre",
        "remove_embedding_layernorm": True,
        "remove_transformer_bias": True,
        "remove_attention_scale": True,
    },
    fixed_theirs={"is_encoder_decoder": True},
    types={"t5": ("lm",)},
    architectures={("lm",): "T5ForConditionalGeneration", (): "T5Model"},
    tokenizer_class="T5Tokenizer",
    tokenizer_files={"spm_model_path": "spiece.model"},
    token_ids={"pad_token_id": "pad", "eos_token_id": "sep", "decoder_start_token_id": "pad"},
)

T5_V1_1 = dataclasses.replace(
    T5,
    name="t5-v1_1",
    model_types=("t5",),
    rules=_rules({"wi_0": "linear_gate", "wi_1": "linear_1", "wo": "linear_2"}),
    settings=(
        *_depths(6, 8),
        *_SHARED_SETTINGS,
        Setting("hidden_act", "feed_forward_proj", "relu", _GATED_ACTIVATIONS),
        *_SCALED,
    ),
    fixed_ours={**T5.fixed_ours, "feed_forward": "gated"},
    types={"t5-v1_1": ("lm",)},
)

MT5 = dataclasses.replace(
    T5_V1_1,
    name="mt5",
    model_types=(),
    settings=(
        *_depths(8, 6),
        *_SHARED_SETTINGS,
        Setting("hidden_act", "feed_forward_proj", "gated-gelu", _GATED_ACTIVATIONS),
        # States are never scaled, whatever a file says of tying; old ones say that nothing is tied.
        Setting("scale_tied_output", "tie_word_embeddings", False, {False: False, True: False}),
    ),
    types={"mt5": ("lm",)},
    architectures={("lm",): "MT5ForConditionalGeneration", (): "MT5Model"},
)


def _encoder_of(family: Family, architecture: str) -> Family:
    """The family's models that are their encoder alone."""
    of_both = {"tgt_embedding", "decoder", "share_embedding"}
    of_decoder = {"decoder_layers_num", "scale_tied_output"}
    name = f"{family.name}-encoder"
    return dataclasses.replace(
        family,
        name=name,
        model_types=family.known_as,
        rules=tuple(
            rule for rule in family.rules if rule.names(True)[0].startswith(("embedding", "encoder"))
        ),
        shared=(Shared("encoder.embed_tokens.weight", "shared.weight"),),
        settings=tuple(one for one in family.settings if not of_decoder.intersection(one.options)),
        fixed_ours={name: value for name, value in family.fixed_ours.items() if name not in of_both},
        fixed_theirs={"is_encoder_decoder": False},
        types={name: ("mlm",)},  # what such a model can be trained with here; they have no head
        architectures={(): architecture},
    )


T5_ENCODER = _encoder_of(T5, "T5EncoderModel")
T5_V1_1_ENCODER = _encoder_of(T5_V1_1, "T5EncoderModel")
MT5_ENCODER = _encoder_of(MT5, "MT5EncoderModel")
