"""FNet (Lee-Thorp et al. 2022): `FNetForPreTraining`, `FNetForMaskedLM`, `FNetModel`."""

from __future__ import annotations

from tencentpretrain.conversion.family import Family, Rule, Setting, Shared
from tencentpretrain.conversion.maps.bert import ACTIVATIONS, linear, norm
from tencentpretrain.conversion.steps import PadRows

_LAYER = "fnet.encoder.layer.{}"
_OURS = "encoder.transformer.{}"

FNET = Family(
    name="fnet",
    prefix="fnet.",
    rules=(
        Rule("fnet.embeddings.word_embeddings.weight", "embedding.word.embedding.weight"),
        Rule("fnet.embeddings.position_embeddings.weight", "embedding.pos.embedding.weight"),
        # Segment 0 is padding at ours, which they have no vector for; they have four segments, and use two.
        Rule(
            "fnet.embeddings.token_type_embeddings.weight",
            "embedding.seg.embedding.weight",
            (PadRows(front=1, back=-2),),
        ),
        *norm("fnet.embeddings.LayerNorm", "embedding.layer_norm"),
        *linear("fnet.embeddings.projection", "encoder.linear"),
        *norm(f"{_LAYER}.fourier.output.LayerNorm", f"{_OURS}.layer_norm_1"),
        *linear(f"{_LAYER}.intermediate.dense", f"{_OURS}.feed_forward.linear_1"),
        *linear(f"{_LAYER}.output.dense", f"{_OURS}.feed_forward.linear_2"),
        *norm(f"{_LAYER}.output.LayerNorm", f"{_OURS}.layer_norm_2"),
        *linear("cls.predictions.transform.dense", "target.mlm.linear_1", part="mlm"),
        *norm("cls.predictions.transform.LayerNorm", "target.mlm.layer_norm", part="mlm"),
        *linear("cls.predictions.decoder", "target.mlm.linear_2", part="mlm"),
        *linear("fnet.pooler.dense", "target.sp.linear_1", part="sp"),
        *linear("cls.seq_relationship", "target.sp.linear_2", part="sp"),
    ),
    shared=(
        Shared("cls.predictions.decoder.weight", "fnet.embeddings.word_embeddings.weight"),
        Shared("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    ignored=(r"fnet\.embeddings\.(position|token_type)_ids",),
    settings=(
        Setting(("hidden_size", "emb_size"), "hidden_size", 768),
        Setting("layers_num", "num_hidden_layers", 12),
        Setting("feedforward_size", "intermediate_size", 3072),
        Setting("hidden_act", "hidden_act", "gelu_new", ACTIVATIONS),
        Setting("max_seq_length", "max_position_embeddings", 512),
        Setting("dropout", "hidden_dropout_prob", 0.1),
        Setting("layernorm_eps", "layer_norm_eps", 1e-12),
        Setting("tie_weights", "tie_word_embeddings", True),
    ),
    fixed_ours={
        "embedding": ("word", "pos", "seg"),
        "encoder": "fnet",
        "factorized_embedding_parameterization": True,
    },
    fixed_theirs={"type_vocab_size": 4},
    types={"fnet": ("mlm", "sp"), "mlm": ("mlm",)},
    architectures={
        ("mlm", "sp"): "FNetForPreTraining",
        ("mlm",): "FNetForMaskedLM",
        ("sp",): "FNetForNextSentencePrediction",
        (): "FNetModel",
    },
    tokenizer_class="FNetTokenizer",
    tokenizer_files={"spm_model_path": "spiece.model"},
    tokenizer_options={"do_lower_case": False, "keep_accents": True},
    token_ids={"pad_token_id": "pad"},
)
