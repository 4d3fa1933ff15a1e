"""Tokenizers in directories of Transformers: which of theirs is like ours, and its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tencentpretrain.config import ModelConfig
from tencentpretrain.conversion.engine import Family
from tencentpretrain.files import write_json

if TYPE_CHECKING:
    from tencentpretrain.tokenizers import Tokenizer

# Tokenizers that are the same at every family of theirs: Chinese models of all families have BERT's.
_TOKENIZERS: dict[str, tuple[str, Mapping[str, str]]] = {
    "bert": ("BertTokenizer", {"vocab_path": "vocab.txt"}),
    "xlmroberta": ("XLMRobertaTokenizer", {"spm_model_path": "sentencepiece.bpe.model"}),
    "hfpretrained": ("PreTrainedTokenizerFast", {"vocab_path": "tokenizer.json"}),
}

_TOKENIZER_FILES = (
    "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "tokenizer.json",
)  # fmt: skip


def has_tokenizer(directory: Path) -> bool:
    return any((directory / name).is_file() for name in _TOKENIZER_FILES)


def their_tokenizer(family: Family, tokenizer: Tokenizer) -> tuple[str, Mapping[str, str]] | None:
    """Their class that gives the same ids, and what its files are called, by our option; None: no such."""
    if tokenizer.kind in _TOKENIZERS:
        return _TOKENIZERS[tokenizer.kind]
    usual = family.tokenizer_class, family.tokenizer_files
    if usual[1].keys() == tokenizer.files.keys() and usual not in _TOKENIZERS.values():
        return usual
    # Of a family whose own class splits texts in another way: what a file describes is read as it is.
    return _TOKENIZERS["hfpretrained"] if tokenizer.kind == "bpe" else None


def write_tokenizer(
    directory: Path,
    family: Family,
    config: ModelConfig,
    tokenizer: Tokenizer,
    tokenizer_class: str,
    names: Mapping[str, str],
) -> None:
    tokenizer.write_files(directory, names)
    special = {f"{role}_token": token for role, token in tokenizer.special_tokens.items()}
    for name, role in family.token_ids.items():
        if name in ("bos_token_id", "eos_token_id") and role in tokenizer.special_tokens:
            special[name.removesuffix("_id")] = tokenizer.special_tokens[role]
    write_json(directory / "special_tokens_map.json", special)
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": tokenizer_class,
            "model_max_length": config.max_seq_length - family.unused_positions,
        }
        | (dict(family.tokenizer_options) if tokenizer_class == family.tokenizer_class else {})
        | tokenizer.options
        | special,
    )
