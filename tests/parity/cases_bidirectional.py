"""Models of an encoder alone that sees the whole text."""

from __future__ import annotations

from typing import Any

import torch
from cases_seq2seq import t5
from reference import Case, Shape, randomised

from tencentpretrain.state_dict import StateDict

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
PADDING = {"embedding.seg.embedding.weight": [0]}  # theirs has no vector for the segment of padding


def model(kind: str, config: str, **changes: Any) -> Any:
    import transformers

    return randomised(
        getattr(transformers, kind)(getattr(transformers, f"{config}Config")(**{**SIZES, **changes}))
    )


def one_segment(gradients: StateDict) -> None:
    """RoBERTa has one vector for both segments: its gradient is the sum of ours."""
    segments = gradients["embedding.seg.embedding.weight"].clone()
    segments[1:] = segments[1:].sum(0)
    gradients["embedding.seg.embedding.weight"] = segments


def fnet(**changes: Any) -> Any:
    """Of its four segments two are in use; it has no attention, so any implementation will do."""
    made = model("FNetForPreTraining", "FNet", pad_token_id=0, **changes)
    made._supports_sdpa = True
    with torch.no_grad():
        made.fnet.embeddings.token_type_embeddings.weight[2:] = 0
    return made


CASES = [
    Case("bert", "bert", lambda: model("BertForPreTraining", "Bert"), "encoder", PADDING),
    Case(
        "bert-mlm",
        "bert",
        lambda: model(
            "BertForMaskedLM", "Bert", hidden_act="relu", layer_norm_eps=1e-3, tie_word_embeddings=False
        ),
        "encoder",
        PADDING,
    ),
    Case("bert-nsp", "bert", lambda: model("BertForNextSentencePrediction", "Bert"), "encoder", PADDING),
    Case(
        "roberta",
        "roberta",
        lambda: model("RobertaForMaskedLM", "Roberta", type_vocab_size=1, layer_norm_eps=1e-5),
        "encoder",
        PADDING,
        gather=one_segment,
    ),
    Case(
        "roberta-two-segments", "roberta", lambda: model("RobertaForMaskedLM", "Roberta"), "encoder", PADDING
    ),
    Case(
        "xlm-roberta",
        "xlm-roberta",
        lambda: model("XLMRobertaForMaskedLM", "XLMRoberta", type_vocab_size=1, tie_word_embeddings=False),
        "encoder",
        PADDING,
        gather=one_segment,
    ),
    Case(
        "albert",
        "albert",
        lambda: model("AlbertForPreTraining", "Albert", embedding_size=16),
        "encoder",
        PADDING,
    ),
    Case(
        "albert-mlm",
        "albert",
        lambda: model(
            "AlbertForMaskedLM", "Albert", embedding_size=24, hidden_act="relu", num_hidden_layers=3
        ),
        "encoder",
        PADDING,
    ),
    *(
        Case(name, name, t5(kind, **changes), "encoder")
        for name, kind, changes in (
            ("t5-encoder", "T5EncoderModel", {}),
            ("t5-v1_1-encoder", "T5EncoderModel", {"feed_forward_proj": "gated-gelu"}),
            ("mt5-encoder", "MT5EncoderModel", {}),
        )
    ),
    # Theirs mixes padding in, which ours does where it is a segment: see tests/model/test_convolution.py.
    *(
        Case(
            name,
            "fnet",
            lambda values=values: fnet(**values),
            "encoder",
            PADDING,
            shapes=(Shape(2, 7, 0, False), Shape(3, 12, 0, False)),
        )
        for name, values in (
            ("fnet", {}),
            ("fnet-untied", {"tie_word_embeddings": False, "hidden_act": "relu", "layer_norm_eps": 1e-3}),
        )
    ),
]
