"""Models of an encoder and a decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from reference import Case, Shape, randomised

LONG = Shape(2, 45, 40, True)  # past the last bucket of relative positions
SHAPES = (Shape(4, 12, 9, True), Shape(2, 7, 11, False), LONG)

T5_SIZES = {
    "vocab_size": 61,
    "d_model": 24,
    "d_kv": 10,
    "d_ff": 40,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 12,
    "relative_attention_max_distance": 20,
    "layer_norm_epsilon": 1e-5,
    "decoder_start_token_id": 0,
}
BART_SIZES = {
    "vocab_size": 61,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 64,
    # No text has it: their embeddings do not learn the vector of padding, which ours does as a first token.
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    "attention_dropout": 0.1,
}


def t5(
    kind: str, seed: int = 11, scaled: bool = True, tied: bool = True, **changes: Any
) -> Callable[[], Any]:
    def make() -> Any:
        family = kind.removesuffix("ForConditionalGeneration").removesuffix("EncoderModel")
        config = getattr(transformers, f"{family}Config")(**T5_SIZES | changes)
        if family == "T5":
            config.scale_decoder_outputs = scaled
        model = getattr(transformers, kind)(config)
        if not tied:
            model.lm_head.weight = torch.nn.Parameter(torch.empty(model.shared.weight.shape))
        return randomised(model, seed)

    return make


def bart(kind: str, seed: int = 4, **changes: Any) -> Callable[[], Any]:
    def make() -> Any:
        family = kind.removesuffix("MTModel").removesuffix("ForConditionalGeneration")
        sizes = BART_SIZES | changes
        if family == "Marian":  # what is written without a tokenizer
            sizes |= {"pad_token_id": None, "decoder_start_token_id": 0}
        config = getattr(transformers, f"{family}Config")(**sizes)
        model = getattr(transformers, kind)(config)
        positions = {name: value.clone() for name, value in model.state_dict().items() if "positions" in name}
        randomised(model, seed)
        if family != "Bart":  # they are computed
            model.load_state_dict(positions, strict=False)
        else:  # of no position
            for name in positions:
                model.get_parameter(name).data[:2] = 0
        torch.nn.init.normal_(model.final_logits_bias, 0, 0.1, torch.Generator().manual_seed(2))
        return model

    return make


T5, MT5 = "T5ForConditionalGeneration", "MT5ForConditionalGeneration"
BART, PEGASUS = "BartForConditionalGeneration", "PegasusForConditionalGeneration"
MARIAN = "MarianMTModel"
SINUSOIDS = {"scale_embedding": True, "activation_function": "relu"}
TWO = {"share_encoder_decoder_embeddings": False}
GATED = {"feed_forward_proj": "gated-gelu"}


def case(name: str, family: str, make: Callable[[], Any], **more: Any) -> Case:
    return Case(name, family, make, "seq2seq", shapes=SHAPES, **more)


CASES: list[Case] = [
    case("t5", "t5", t5(T5)),
    case("t5-untied-scaled", "t5", t5(T5, tied=False)),
    case("t5-gelu-unscaled", "t5", t5(T5, scaled=False, feed_forward_proj="gelu")),
    case("t5-v1_1", "t5-v1_1", t5(T5, scaled=False, tied=False, **GATED)),
    case("t5-v1_1-tied", "t5-v1_1", t5(T5, scaled=False, **GATED)),
    case("t5-v1_1-scaled", "t5-v1_1", t5(T5, feed_forward_proj="gated-silu")),
    case("mt5", "mt5", t5(MT5, tied=False)),
    case("mt5-tied", "mt5", t5(MT5)),
    # Small models that normalise at the end and have one matrix for input and output repeat themselves.
    case("bart", "bart", bart(BART), varied=False),
    case("bart-untied", "bart", bart(BART, tie_word_embeddings=False, activation_function="gelu_new")),
    case("pegasus", "pegasus", bart(PEGASUS, seed=5, **SINUSOIDS)),
    case("marian", "marian", bart(MARIAN, **SINUSOIDS), varied=False),
    case("marian-two", "marian", bart(MARIAN, seed=9, **TWO, **SINUSOIDS | {"activation_function": "silu"})),
    case(
        "marian-untied", "marian", bart(MARIAN, **TWO, tie_word_embeddings=False, **SINUSOIDS), varied=False
    ),
]
