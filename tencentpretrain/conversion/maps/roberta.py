"""RoBERTa (Liu et al. 2019) and XLM-RoBERTa (Conneau et al. 2020): `…ForMaskedLM`, `…Model`."""

from __future__ import annotations

import dataclasses

from tencentpretrain.conversion.family import Family, Rule, Setting, Shared
from tencentpretrain.conversion.maps.bert import SIZES, SPELLINGS, heads, layers, linear, norm
from tencentpretrain.conversion.steps import OneSegment, RollRows

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
        *layers("roberta"),
        # Not trained, as there is no sentence prediction, and not in every file.
        *(
            Rule(f"roberta.pooler.dense.{kind}", f"target.sp.linear_1.{kind}", optional=True)
            for kind in ("weight", "bias")
        ),
        *linear("lm_head.dense", "target.mlm.linear_1", part="mlm"),
        *norm("lm_head.layer_norm", "target.mlm.layer_norm", part="mlm"),
        *linear("lm_head.decoder", "target.mlm.linear_2", part="mlm"),
    ),
    shared=(
        Shared("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
        Shared("lm_head.decoder.bias", "lm_head.bias"),
    ),
    spellings=SPELLINGS,
    ignored=(r"roberta\.embeddings\.(position|token_type)_ids",),
    # Their mlm head always has this one.
    settings=(*SIZES, Setting("hidden_act", "hidden_act", "gelu", {"gelu": "gelu"})),
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
