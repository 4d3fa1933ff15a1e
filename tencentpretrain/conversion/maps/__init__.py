"""Families of Hugging Face Transformers, one table each."""

from __future__ import annotations

from collections.abc import Iterable

from tencentpretrain.conversion.family import Family
from tencentpretrain.conversion.maps.albert import ALBERT
from tencentpretrain.conversion.maps.bart import BART, PEGASUS
from tencentpretrain.conversion.maps.bert import BERT
from tencentpretrain.conversion.maps.bloom import BLOOM
from tencentpretrain.conversion.maps.fnet import FNET
from tencentpretrain.conversion.maps.gpt2 import GPT2
from tencentpretrain.conversion.maps.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from tencentpretrain.conversion.maps.marian import MARIAN
from tencentpretrain.conversion.maps.roberta import ROBERTA, XLM_ROBERTA
from tencentpretrain.conversion.maps.t5 import MT5, MT5_ENCODER, T5, T5_ENCODER, T5_V1_1, T5_V1_1_ENCODER

FAMILIES: tuple[Family, ...] = (
    BERT,
    ROBERTA,
    XLM_ROBERTA,
    ALBERT,
    FNET,
    GPT2,
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    BLOOM,
    T5,
    T5_V1_1,
    MT5,
    T5_ENCODER,
    T5_V1_1_ENCODER,
    MT5_ENCODER,
    BART,
    PEGASUS,
    MARIAN,
)

# By model_type: relatives that look convertible, with what our modules lack.
REFUSED = {
    "umt5": "every layer has relative positions of its own, which are shared by all layers here",
}


def families_of(names: Iterable[str], model_type: str | None = None) -> list[Family]:
    """The families that a model of theirs may be of.

    Args:
        names: of its parameters. Families in which all have a place; those of the model type where there are
            no names, or where none has a place for all (converting then says which have none).
        model_type: what their configuration file says, where there is one.
    """
    names = list(names)
    known = [family for family in FAMILIES if model_type is None or model_type in family.known_as]
    fitting = [family for family in known if names and not family.has_stranger(names)]
    return fitting or ([] if model_type is None else known)
