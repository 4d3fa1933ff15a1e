"""BERT and ALBERT as their authors published them, in TensorFlow: the same families under other names.

`google-research/bert` (Devlin et al. 2019) and `google-research/albert` (Lan et al. 2020); not among
FAMILIES, as these are no files of Transformers.
"""

from __future__ import annotations

import dataclasses

from tencentpretrain.conversion.family import Family, Rule, Setting, Shared
from tencentpretrain.conversion.maps.albert import ALBERT
from tencentpretrain.conversion.maps.bert import BERT
from tencentpretrain.conversion.steps import PadRows, Transpose


def _dense(theirs: str, ours: str, part: str | None = None) -> tuple[Rule, ...]:
    """TensorFlow multiplies from the left, so matrices lie transposed."""
    return (
        Rule(f"{theirs}/kernel", f"{ours}.weight", (Transpose(),), part),
        Rule(f"{theirs}/bias", f"{ours}.bias", part=part),
    )


def _norm(theirs: str, ours: str, part: str | None = None) -> tuple[Rule, ...]:
    return tuple(Rule(f"{theirs}/{name}", f"{ours}.{name}", part=part) for name in ("gamma", "beta"))


def _family(family: Family, *layers: Rule) -> Family:
    """A family under its original names: embeddings and heads, which both have, and layers."""
    return dataclasses.replace(
        family,
        rules=(
            Rule("bert/embeddings/word_embeddings", "embedding.word.embedding.weight"),
            Rule("bert/embeddings/position_embeddings", "embedding.pos.embedding.weight"),
            # Segment 0 is padding at ours, which they have no vector for.
            Rule(
                "bert/embeddings/token_type_embeddings",
                "embedding.seg.embedding.weight",
                (PadRows(front=1),),
            ),
            *_norm("bert/embeddings/LayerNorm", "embedding.layer_norm"),
            *layers,
            *_dense("cls/predictions/transform/dense", "target.mlm.linear_1", part="mlm"),
            *_norm("cls/predictions/transform/LayerNorm", "target.mlm.layer_norm", part="mlm"),
            Rule("cls/predictions/output_weights", "target.mlm.linear_2.weight", part="mlm"),
            Rule("cls/predictions/output_bias", "target.mlm.linear_2.bias", part="mlm"),
            *_dense("bert/pooler/dense", "target.sp.linear_1", part="sp"),
            # The one matrix that is multiplied transposed there too.
            Rule("cls/seq_relationship/output_weights", "target.sp.linear_2.weight", part="sp"),
            Rule("cls/seq_relationship/output_bias", "target.sp.linear_2.bias", part="sp"),
        ),
        prefix="",
        # No file has the first name: the vocabulary layer is the word embedding.
        shared=(Shared("cls/predictions/output_weights", "bert/embeddings/word_embeddings"),),
        spellings=(),
        ignored=(r"global_step", r".*/(adam|lamb)_[mv]", r"output_(weights|bias)"),
        heads=(),
        sizes={},
    )


def _layer(theirs: str, ours: str, *parts: str) -> tuple[Rule, ...]:
    """A transformer layer.

    Args:
        parts: their names of attention, its normalisation, both feed-forward layers and their normalisation.
    """
    attention, attention_norm, inner, outer, last_norm = (f"{theirs}/{part}" for part in parts)
    return (
        *_dense(f"{attention}/self/query", f"{ours}.self_attn.linear_layers.0"),
        *_dense(f"{attention}/self/key", f"{ours}.self_attn.linear_layers.1"),
        *_dense(f"{attention}/self/value", f"{ours}.self_attn.linear_layers.2"),
        *_dense(f"{attention}/output/dense", f"{ours}.self_attn.final_linear"),
        *_norm(attention_norm, f"{ours}.layer_norm_1"),
        *_dense(inner, f"{ours}.feed_forward.linear_1"),
        *_dense(outer, f"{ours}.feed_forward.linear_2"),
        *_norm(last_norm, f"{ours}.layer_norm_2"),
    )


ORIGINAL_BERT = _family(
    BERT,
    *_layer(
        "bert/encoder/layer_{}",
        "encoder.transformer.{}",
        "attention",
        "attention/output/LayerNorm",
        "intermediate/dense",
        "output/dense",
        "output/LayerNorm",
    ),
)
ORIGINAL_ALBERT = _family(
    # Their "gelu" is the approximation by a hyperbolic tangent (modeling.py).
    dataclasses.replace(
        ALBERT,
        settings=tuple(
            Setting("hidden_act", "hidden_act", "gelu", {"gelu": "gelu_fast", "relu": "relu"})
            if setting.theirs == "hidden_act"
            else setting
            for setting in ALBERT.settings
        ),
    ),
    *_dense("bert/encoder/embedding_hidden_mapping_in", "encoder.linear"),
    *_layer(
        "bert/encoder/transformer/group_0/inner_group_0",
        "encoder.transformer",
        "attention_1",
        "LayerNorm",
        "ffn_1/intermediate/dense",
        "ffn_1/intermediate/output/dense",
        "LayerNorm_1",
    ),
)
