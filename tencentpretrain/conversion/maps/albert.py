"""ALBERT (Lan et al. 2020): `AlbertForPreTraining`, `AlbertForMaskedLM`, `AlbertModel`."""

from __future__ import annotations

from tencentpretrain.conversion.family import Family, Rule, Setting, Shared
from tencentpretrain.conversion.maps.bert import ACTIVATIONS, heads, linear, norm
from tencentpretrain.conversion.steps import PadRows

_LAYER = "albert.encoder.albert_layer_groups.0.albert_layers.0"  # the only one, which all layers share
_OURS = "encoder.transformer"

ALBERT = Family(
    name="albert",
    prefix="albert.",
    rules=(
        Rule("albert.embeddings.word_embeddings.weight", "embedding.word.embedding.weight"),
        Rule("albert.embeddings.position_embeddings.weight", "embedding.pos.embedding.weight"),
        # Segment 0 is padding at ours, which they have no vector for.
        Rule(
            "albert.embeddings.token_type_embeddings.weight",
            "embedding.seg.embedding.weight",
            (PadRows(front=1),),
        ),
        *norm("albert.embeddings.LayerNorm", "embedding.layer_norm"),
        *linear("albert.encoder.embedding_hidden_mapping_in", "encoder.linear"),
        *linear(f"{_LAYER}.attention.query", f"{_OURS}.self_attn.linear_layers.0"),
        *linear(f"{_LAYER}.attention.key", f"{_OURS}.self_attn.linear_layers.1"),
        *linear(f"{_LAYER}.attention.value", f"{_OURS}.self_attn.linear_layers.2"),
        *linear(f"{_LAYER}.attention.dense", f"{_OURS}.self_attn.final_linear"),
        *norm(f"{_LAYER}.attention.LayerNorm", f"{_OURS}.layer_norm_1"),
        *linear(f"{_LAYER}.ffn", f"{_OURS}.feed_forward.linear_1"),
        *linear(f"{_LAYER}.ffn_output", f"{_OURS}.feed_forward.linear_2"),
        *norm(f"{_LAYER}.full_layer_layer_norm", f"{_OURS}.layer_norm_2"),
        *linear("predictions.dense", "target.mlm.linear_1", part="mlm"),
        *norm("predictions.LayerNorm", "target.mlm.layer_norm", part="mlm"),
        *linear("predictions.decoder", "target.mlm.linear_2", part="mlm"),
        *linear("albert.pooler", "target.sp.linear_1", part="sp"),
        *linear("sop_classifier.classifier", "target.sp.linear_2", part="sp"),
    ),
    shared=(
        Shared("predictions.decoder.weight", "albert.embeddings.word_embeddings.weight"),
        Shared("predictions.decoder.bias", "predictions.bias"),
    ),
    ignored=(r"albert\.embeddings\.(position|token_type)_ids",),
    settings=(
        Setting("emb_size", "embedding_size", 128),
        Setting("hidden_size", "hidden_size", 4096),
        Setting("layers_num", "num_hidden_layers", 12),
        Setting("heads_num", "num_attention_heads", 64),
        Setting("feedforward_size", "intermediate_size", 16384),
        Setting("hidden_act", "hidden_act", "gelu_new", ACTIVATIONS),
        Setting("max_seq_length", "max_position_embeddings", 512),
        Setting("dropout", "hidden_dropout_prob", 0.0),
        Setting("dropout", "attention_probs_dropout_prob", 0.0),
        Setting("layernorm_eps", "layer_norm_eps", 1e-12),
        Setting("tie_weights", "tie_word_embeddings", True),
    ),
    fixed_ours={
        "embedding": ("word", "pos", "seg"),
        "parameter_sharing": True,
        "factorized_embedding_parameterization": True,
    },
    fixed_theirs={
        "num_hidden_groups": 1,
        "inner_group_num": 1,
        "type_vocab_size": 2,
        "position_embedding_type": "absolute",
    },
    types={"albert": ("mlm", "sp"), "mlm": ("mlm",)},
    architectures={
        ("mlm", "sp"): "AlbertForPreTraining",
        ("mlm",): "AlbertForMaskedLM",
        (): "AlbertModel",
    },
    tokenizer_class="AlbertTokenizer",
    tokenizer_files={"spm_model_path": "spiece.model"},
    tokenizer_options={"do_lower_case": False, "keep_accents": True},
    token_ids={"pad_token_id": "pad", "bos_token_id": "cls", "eos_token_id": "sep"},
    heads=heads("Albert", "albert.pooler", "classifier"),
)
