"""RoBERTa (Liu et al. 2019) and XLM-RoBERTa (Conneau et al. 2020): `…ForMaskedLM`, `…Model`."""

from __future__ import annotations

import dataclasses

from tencentpretrain.conversion.engine import Family, Rule, Setting, Shared
from tencentpretrain.conversion.maps.bert import heads, linear, norm
from tencentpretrain.conversion.steps import OneSegment, RollRows

_LAYER = "roberta.encoder.layer.{}"
_OURS = "encoder.transformer.{}"

ROBERTA = Family(
    name="roberta",
    prefix="roberta.",
    rules=(
        Rule("roberta.embeddings.word_embeddings.weight", "embedding.word.embedding.weight"),
        # Positions begin at 2 at theirs; the two rows that no text uses are the last of ours.
        Rule(
            "roberta.embeddings.position_embeddings.weight", "embedding.pos.embedding.weight", (RollRows(2),)
        ),
        Rule(
            "roberta.embeddings.token_type_embeddings.weight",
            "embedding.seg.embedding.weight",
            (OneSegment(),),
        ),
        *norm("roberta.embeddings.LayerNorm", "embedding.layer_norm"),
        *linear(f"{_LAYER}.attention.self.query", f"{_OURS}.self_attn.linear_layers.0"),
        *linear(f"{_LAYER}.attention.self.key", f"{_OURS}.self_attn.linear_layers.1"),
        *linear(f"{_LAYER}.attention.self.value", f"{_OURS}.self_attn.linear_layers.2"),
        *linear(f"{_LAYER}.attention.output.dense", f"{_OURS}.self_attn.final_linear"),
        *norm(f"{_LAYER}.attention.output.LayerNorm", f"{_OURS}.layer_norm_1"),
        *linear(f"{_LAYER}.intermediate.dense", f"{_OURS}.feed_forward.linear_1"),
        *linear(f"{_LAYER}.output.dense", f"{_OURS}.feed_forward.linear_2"),
        *norm(f"{_LAYER}.output.LayerNorm", f"{_OURS}.layer_norm_2"),
        *linear("lm_head.dense", "target.mlm.linear_1", part="mlm"),
        *norm("lm_head.layer_norm", "target.mlm.layer_norm", part="mlm"),
        *linear("lm_head.decoder", "target.mlm.linear_2", part="mlm"),
    ),
    shared=(
        Shared("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
        Shared("lm_head.decoder.bias", "lm_head.bias"),
    ),
    spellings=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    ignored=(
        r"roberta\.embeddings\.(position|token_type)_ids",
        r"roberta\.pooler\.dense\.(weight|bias)",  # not trained: there is no sentence prediction
        r"(classifier(\.dense|\.out_proj)?|qa_outputs)\.(weight|bias)",
    ),
    settings=(
        Setting(("hidden_size", "emb_size"), "hidden_size", 768),
        Setting("layers_num", "num_hidden_layers", 12),
        Setting("heads_num", "num_attention_heads", 12),
        Setting("feedforward_size", "intermediate_size", 3072),
        Setting("hidden_act", "hidden_act", "gelu", {"gelu": "gelu"}),  # that of their mlm head, always
        Setting("max_seq_length", "max_position_embeddings", 512),
        Setting("dropout", "hidden_dropout_prob", 0.1),
        Setting("dropout", "attention_probs_dropout_prob", 0.1),
        Setting("layernorm_eps", "layer_norm_eps", 1e-12),
        Setting("tie_weights", "tie_word_embeddings", True),
    ),
    fixed_ours={"embedding": ("word", "pos", "seg")},
    fixed_theirs={
        "pad_token_id": 1,  # positions are counted from it
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    },
    sizes={"type_vocab_size": "roberta.embeddings.token_type_embeddings.weight"},
    unused_positions=2,
    types={"mlm": ("mlm",)},
    architectures={("mlm",): "RobertaForMaskedLM", (): "RobertaModel"},
    tokenizer_class="RobertaTokenizer",
    tokenizer_files={"vocab_path": "vocab.json", "merges_path": "merges.txt"},
    token_ids={"pad_token_id": "pad", "bos_token_id": "cls", "eos_token_id": "sep"},
    heads=heads("Roberta", "classifier.dense", "classifier.out_proj"),
)

XLM_ROBERTA = dataclasses.replace(
    ROBERTA,
    name="xlm-roberta",
    architectures={("mlm",): "XLMRobertaForMaskedLM", (): "XLMRobertaModel"},
    heads=heads("XLMRoberta", "classifier.dense", "classifier.out_proj"),
    tokenizer_class="XLMRobertaTokenizer",
    tokenizer_files={"spm_model_path": "sentencepiece.bpe.model"},
)
