"""How text becomes token ids."""

from __future__ import annotations

import dataclasses

from tencentpretrain.config.options import option
from tencentpretrain.registry import TOKENIZERS


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Tokenizer."""

    tokenizer: str = option("bert", "Kind of tokenizer.", choices=lambda: TOKENIZERS)
    vocab_path: str | None = option(None, "Vocabulary: one token a line, or GPT-2's JSON.")
    merges_path: str | None = option(None, "Merges of a byte-level BPE vocabulary.")
    spm_model_path: str | None = option(None, "SentencePiece model; replaces vocab_path.")
    do_lower_case: bool = option(True, "Lower-case the text and strip accents (WordPiece).")
    special_tokens_map_path: str | None = option(
        None,
        "JSON with the names of the special tokens; default: the map beside the vocabulary, else BERT's.",
    )
