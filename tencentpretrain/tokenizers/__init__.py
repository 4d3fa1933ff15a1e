"""Tokenizers by name, and the functions that make one."""

from __future__ import annotations

from tencentpretrain.tokenizers import (  # noqa: F401  (they register themselves)
    bpe,
    marian,
    pretrained,
    simple,
    spm,
    wordpiece,
)
from tencentpretrain.tokenizers.base import Tokenizer
from tencentpretrain.tokenizers.load import build_tokenizer, load_tokenizer
from tencentpretrain.tokenizers.rows import encode

__all__ = ["Tokenizer", "build_tokenizer", "encode", "load_tokenizer"]
