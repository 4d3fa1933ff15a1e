"""LLaMA 1 to 3 (Touvron et al. 2023; Meta 2024) and what was built like it: Mistral, Qwen2, Qwen3."""

from __future__ import annotations

import dataclasses
from typing import Any

from tencentpretrain.conversion.family import Family, Rule, Setting, Shared
from tencentpretrain.conversion.maps.bert import ACTIVATIONS
from tencentpretrain.conversion.steps import RotaryPairs, Values
from tencentpretrain.errors import WeightsError

_LAYER = "model.layers.{}"
_OURS = "encoder.transformer.{}"
_ATTENTION = ("q_proj", "k_proj", "v_proj")


def _rope(theirs: Values) -> dict[str, Any]:
    """Rotation as Transformers 5 keeps it in one object; before, the base was beside `rope_scaling`."""
    rope: dict[str, Any] = {"rope_theta": theirs.get("rope_theta") or 10000.0}
    for place in ("rope_scaling", "rope_parameters"):
        given = theirs.get(place) or {}
        if not isinstance(given, dict):
            raise WeightsError(f"`{place}` is {given!r}, expected an object")
        rope |= {name: value for name, value in given.items() if value is not None}
    rope.setdefault("rope_type", rope.pop("type", "default"))
    return rope


def _rope_theta(theirs: Values) -> Any:
    return _rope(theirs)["rope_theta"]


def _rope_scaling(theirs: Values) -> dict[str, Any]:
    scaling = _rope(theirs)
    del scaling["rope_theta"]
    if scaling.pop("partial_rotary_factor", 1) != 1:
        raise WeightsError("`partial_rotary_factor` is not 1, but all components are rotated here")
    kind, longest = scaling["rope_type"], theirs.get("max_position_embeddings")
    if kind == "default":
        return {}
    scaling.pop("finetuned", None)  # a note of the authors of YaRN, which nothing reads
    if kind in ("linear", "dynamic"):  # the latter counts from `max_position_embeddings` in any case
        scaling.pop("original_max_position_embeddings", None)
    elif longest is not None:
        trained = theirs.get("original_max_position_embeddings")
        if trained is not None:
            scaling["original_max_position_embeddings"] = trained
        scaling.setdefault("original_max_position_embeddings", longest)
        scaling.setdefault("factor", longest / scaling["original_max_position_embeddings"])
    return scaling


def _window_of_all(theirs: Values) -> Any:
    """The window of models that may have one in some layers only, which ours cannot."""
    used, full = theirs.get("use_sliding_window", False), theirs.get("max_window_layers", 28)
    if not isinstance(used, bool):
        raise WeightsError(f"`use_sliding_window` is {used!r}, expected true or false")
    if type(full) is not int:
        raise WeightsError(f"`max_window_layers` is {full!r}, expected a whole number")
    window, layers = theirs.get("sliding_window", 4096), theirs.get("num_hidden_layers", 32)
    if not used or window is None:
        return None
    kinds = theirs.get("layer_types") or [
        *["full_attention"] * (full > 0), *["sliding_attention"] * (layers > full)
    ]  # fmt: skip
    if not {*kinds} <= {"full_attention", "sliding_attention"}:
        raise WeightsError(
            f"`layer_types` is {kinds!r}, expected full_attention or sliding_attention of each"
        )
    if len({*kinds}) > 1:
        raise WeightsError("`sliding_window` holds in some layers only, which is not possible here")
    return window if kinds[0] == "sliding_attention" else None


def _kv_heads(absent: int | None) -> Setting:
    """`absent` is meant where their file has no such line; null means as many as queries."""
    return Setting(
        "local_kv_heads_num",
        "num_key_value_heads",
        read=lambda theirs: theirs.get("num_key_value_heads", absent),
        write=lambda config: config.kv_heads_num,
    )


def _head_size(default: int | None) -> Setting:
    return Setting("attention_head_size", "head_dim", default, write=lambda config: config.head_size)


_ROPE = (
    Setting("rope_theta", "rope_theta", read=_rope_theta),
    # Transformers 5 reads both into `rope_parameters`; older versions know these only.
    Setting(
        "rope_scaling",
        "rope_scaling",
        read=_rope_scaling,
        write=lambda config: dict(config.rope_scaling) or None,
    ),
)

LLAMA = Family(
    name="llama",
    prefix="model.",
    rules=(
        Rule("model.embed_tokens.weight", "embedding.word.embedding.weight"),
        Rule(f"{_LAYER}.input_layernorm.weight", f"{_OURS}.layer_norm_1.weight"),
        *(
            Rule(
                f"{_LAYER}.self_attn.{name}.weight",
                f"{_OURS}.self_attn.linear_layers.{number}.weight",
                () if name == "v_proj" else (RotaryPairs(),),
            )
            for number, name in enumerate(_ATTENTION)
        ),
        Rule(f"{_LAYER}.self_attn.o_proj.weight", f"{_OURS}.self_attn.final_linear.weight"),
        Rule(f"{_LAYER}.post_attention_layernorm.weight", f"{_OURS}.layer_norm_2.weight"),
        Rule(f"{_LAYER}.mlp.gate_proj.weight", f"{_OURS}.feed_forward.linear_gate.weight"),
        Rule(f"{_LAYER}.mlp.up_proj.weight", f"{_OURS}.feed_forward.linear_1.weight"),
        Rule(f"{_LAYER}.mlp.down_proj.weight", f"{_OURS}.feed_forward.linear_2.weight"),
        Rule("model.norm.weight", "encoder.layer_norm.weight"),
        Rule("lm_head.weight", "target.lm.output_layer.weight", part="lm"),
    ),
    shared=(Shared("lm_head.weight", "model.embed_tokens.weight"),),
    spellings=((r"^transformer\.", "model."),),
    ignored=(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",),
    settings=(
        Setting(("hidden_size", "emb_size"), "hidden_size", 4096),
        Setting("layers_num", "num_hidden_layers", 32),
        Setting("heads_num", "num_attention_heads", 32),
        _kv_heads(None),
        _head_size(None),
        Setting("feedforward_size", "intermediate_size", 11008),
        Setting("hidden_act", "hidden_act", "silu", ACTIVATIONS),
        Setting("max_seq_length", "max_position_embeddings", 2048),
        Setting("dropout", "attention_dropout", 0.0),
        Setting("layernorm_eps", "rms_norm_eps", 1e-6),
        Setting("tie_weights", "tie_word_embeddings", False),
        *_ROPE,
    ),
    fixed_ours={
        "embedding": ("word",),
        "mask": "causal",
        "layernorm": "rms",
        "layernorm_positioning": "pre",
        "feed_forward": "gated",
        "remove_embedding_layernorm": True,
        "remove_transformer_bias": True,
        "rotary_position_embedding": True,
    },
    fixed_theirs={"attention_bias": False, "mlp_bias": False},
    types={"lm": ("lm",)},
    architectures={("lm",): "LlamaForCausalLM", (): "LlamaModel"},
    tokenizer_class="LlamaTokenizer",
    tokenizer_files={"spm_model_path": "tokenizer.model"},
    tokenizer_options={"legacy": True},  # what follows a special token in a text begins with a space
    token_ids={"pad_token_id": "pad", "bos_token_id": "cls", "eos_token_id": "sep"},
)


def _with(settings: tuple[Setting, ...], *changed: Setting) -> tuple[Setting, ...]:
    """Settings with some in place of those for the same options, or more."""
    options = {setting.options for setting in changed}
    return (*(setting for setting in settings if setting.options not in options), *changed)


MISTRAL = dataclasses.replace(
    LLAMA,
    name="mistral",
    settings=_with(
        LLAMA.settings,
        _kv_heads(8),
        Setting("feedforward_size", "intermediate_size", 14336),
        Setting("max_seq_length", "max_position_embeddings", 4096 * 32),
        # Absent it is 4096, but null is none.
        Setting("sliding_window", "sliding_window", read=lambda theirs: theirs.get("sliding_window", 4096)),
    ),
    fixed_theirs={},
    architectures={("lm",): "MistralForCausalLM", (): "MistralModel"},
)

_QWEN = _with(
    LLAMA.settings,
    _kv_heads(32),
    Setting("feedforward_size", "intermediate_size", 22016),
    Setting("max_seq_length", "max_position_embeddings", 32768),
    Setting("sliding_window", "sliding_window", read=_window_of_all),
    Setting((), "use_sliding_window", write=lambda config: config.sliding_window is not None),
    Setting((), "max_window_layers", write=lambda config: 0 if config.sliding_window else config.layers_num),
)

QWEN2 = dataclasses.replace(
    LLAMA,
    name="qwen2",
    rules=(
        *LLAMA.rules,
        *(
            Rule(
                f"{_LAYER}.self_attn.{name}.bias",
                f"{_OURS}.self_attn.linear_layers.{number}.bias",
                () if name == "v_proj" else (RotaryPairs(),),
            )
            for number, name in enumerate(_ATTENTION)
        ),
    ),
    settings=_QWEN,
    fixed_ours={**LLAMA.fixed_ours, "has_qkv_bias": True},
    fixed_theirs={},
    architectures={("lm",): "Qwen2ForCausalLM", (): "Qwen2Model"},
    tokenizer_files={},  # theirs cuts texts in another way than any of ours
    fixed_tokenizer="Qwen2Tokenizer",
)

QWEN3 = dataclasses.replace(
    LLAMA,
    name="qwen3",
    rules=(
        *LLAMA.rules,
        # The norm's weights are turned with the components they belong to.
        *(
            Rule(
                f"{_LAYER}.self_attn.{name[0]}_norm.weight",
                f"{_OURS}.self_attn.{name}_norm.weight",
                (RotaryPairs(),),
            )
            for name in ("query", "key")
        ),
    ),
    settings=_with(_QWEN, _head_size(128)),
    fixed_ours={**LLAMA.fixed_ours, "has_qk_norm": True},
    fixed_theirs={"attention_bias": False},
    architectures={("lm",): "Qwen3ForCausalLM", (): "Qwen3Model"},
    tokenizer_files={},  # theirs cuts texts in another way than any of ours
)
