"""Families of Hugging Face Transformers, one table each."""

from __future__ import annotations

from collections.abc import Iterable

from tencentpretrain.conversion.engine import Family
from tencentpretrain.conversion.maps.bert import BERT
from tencentpretrain.conversion.maps.gpt2 import GPT2

FAMILIES: tuple[Family, ...] = (BERT, GPT2)


def family_of(names: Iterable[str], model_type: str | None = None) -> Family | None:
    """The family in which every one of their parameter names has a place; None: there is none.

    Args:
        model_type: what their configuration file says, where there is one.
    """
    names = list(names)
    for family in FAMILIES:
        if model_type in (None, family.name) and names and not family.strangers(names):
            return family
    return None
