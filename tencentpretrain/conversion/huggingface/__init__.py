"""Models of Hugging Face Transformers as files: config.json, weights and tokenizer, read and written."""

from __future__ import annotations

from tencentpretrain.conversion.huggingface.common import CONFIG, LAYERS
from tencentpretrain.conversion.huggingface.reading import (
    TheirModel,
    describe,
    is_model_directory,
    our_values,
    read,
)
from tencentpretrain.conversion.huggingface.tokenizers import has_tokenizer
from tencentpretrain.conversion.huggingface.writing import (
    OurModel,
    as_theirs,
    check_replaceable,
    departures,
    is_file_name,
    their_config,
    write,
)

__all__ = [
    "CONFIG",
    "LAYERS",
    "OurModel",
    "TheirModel",
    "as_theirs",
    "check_replaceable",
    "departures",
    "describe",
    "has_tokenizer",
    "is_file_name",
    "is_model_directory",
    "our_values",
    "read",
    "their_config",
    "write",
]
