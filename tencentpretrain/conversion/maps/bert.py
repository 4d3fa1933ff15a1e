"""BERT (Devlin et al. 2019): `BertForPreTraining`, `BertForMaskedLM`, `BertModel` and fine-tuned ones."""

from __future__ import annotations

from tencentpretrain.conversion.family import Family, Head, Rule, Setting, Shared
from tencentpretrain.conversion.steps import PadRows

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_fast",
    "gelu_pytorch_tanh": "gelu_fast",
    "gelu_fast": "gelu_fast",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "linear": "linear",
}


def linear(theirs: str, ours: str, part: str | None = None) -> tuple[Rule, ...]:
    return tuple(Rule(f"{theirs}.{kind}", f"{ours}.{kind}", part=part) for kind in ("weight", "bias"))


def norm(theirs: str, ours: str, part: str | None = None) -> tuple[Rule, ...]:
    return (
        Rule(f"{theirs}.weight", f"{ours}.gamma", part=part),
        Rule(f"{theirs}.bias", f"{ours}.beta", part=part),
    )


def heads(name: str, pooler: str, classifier: str) -> tuple[Head, ...]:
    """Of the classes `<name>For…`.

    Args:
        pooler, classifier: what their sequence classification calls its two layers.
    """
    one, two, three = "classification", "token_classification", "question_answering"
    return (
        Head(
            one,
            f"{name}ForSequenceClassification",
            linear(pooler, "output_layer_1", part=one) + linear(classifier, "output_layer_2", part=one),
        ),
        Head(two, f"{name}ForTokenClassification", linear("classifier", "output_layer", part=two)),
        Head(three, f"{name}ForQuestionAnswering", linear("qa_outputs", "output_layer", part=three)),
    )


def layers(name: str) -> tuple[Rule, ...]:
    """The transformer layers of BERT and RoBERTa."""
    theirs, ours = f"{name}.encoder.layer.{{}}", "encoder.transformer.{}"
    return (
        *linear(f"{theirs}.attention.self.query", f"{ours}.self_attn.linear_layers.0"),
        *linear(f"{theirs}.attention.self.key", f"{ours}.self_attn.linear_layers.1"),
        *linear(f"{theirs}.attention.self.value", f"{ours}.self_attn.linear_layers.2"),
        *linear(f"{theirs}.attention.output.dense", f"{ours}.self_attn.final_linear"),
        *norm(f"{theirs}.attention.output.LayerNorm", f"{ours}.layer_norm_1"),
        *linear(f"{theirs}.intermediate.dense", f"{ours}.feed_forward.linear_1"),
        *linear(f"{theirs}.output.dense", f"{ours}.feed_forward.linear_2"),
        *norm(f"{theirs}.output.LayerNorm", f"{ours}.layer_norm_2"),
    )


# Of the same two, beside the activation.
SIZES = (
    Setting(("hidden_size", "emb_size"), "hidden_size", 768),
    Setting("layers_num", "num_hidden_layers", 12),
    Setting("heads_num", "num_attention_heads", 12),
    Setting("feedforward_size", "intermediate_size", 3072),
    Setting("max_seq_length", "max_position_embeddings", 512),
    Setting("dropout", "hidden_dropout_prob", 0.1),
    Setting("dropout", "attention_probs_dropout_prob", 0.1),
    Setting("layernorm_eps", "layer_norm_eps", 1e-12),
    Setting("tie_weights", "tie_word_embeddings", True),
)
SPELLINGS = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))

BERT = Family(
    name="bert",
    prefix="bert.",
    rules=(
        Rule("bert.embeddings.word_embeddings.weight", "embedding.word.embedding.weight"),
        Rule("bert.embeddings.position_embeddings.weight", "embedding.pos.embedding.weight"),
        # Segment 0 is padding at ours, which they have no vector for.
        Rule(
            "bert.embeddings.token_type_embeddings.weight",
            "embedding.seg.embedding.weight",
            (PadRows(front=1),),
        ),
        *norm("bert.embeddings.LayerNorm", "embedding.layer_norm"),
        *layers("bert"),
        *linear("cls.predictions.transform.dense", "target.mlm.linear_1", part="mlm"),
        *norm("cls.predictions.transform.LayerNorm", "target.mlm.layer_norm", part="mlm"),
        *linear("cls.predictions.decoder", "target.mlm.linear_2", part="mlm"),
        *linear("bert.pooler.dense", "target.sp.linear_1", part="sp"),
        *linear("cls.seq_relationship", "target.sp.linear_2", part="sp"),
    ),
    shared=(
        Shared("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        Shared("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    spellings=SPELLINGS,
    ignored=(r"bert\.embeddings\.(position|token_type)_ids",),
    settings=(*SIZES, Setting("hidden_act", "hidden_act", "gelu", ACTIVATIONS)),
    fixed_ours={"embedding": ("word", "pos", "seg")},
    fixed_theirs={
        "type_vocab_size": 2,
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    },
    types={"bert": ("mlm", "sp"), "mlm": ("mlm",)},
    architectures={
        ("mlm", "sp"): "BertForPreTraining",
        ("mlm",): "BertForMaskedLM",
        ("sp",): "BertForNextSentencePrediction",
        (): "BertModel",
    },
    tokenizer_class="BertTokenizer",
    tokenizer_files={"vocab_path": "vocab.txt"},
    token_ids={"pad_token_id": "pad"},
    heads=heads("Bert", "bert.pooler.dense", "classifier"),
)
