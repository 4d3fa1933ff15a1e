"""Tokenizers in directories of Transformers: which of theirs is like ours, and its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tencentpretrain.config import ModelConfig
from tencentpretrain.conversion.family import Family
from tencentpretrain.files import write_json
from tencentpretrain.tokenizers import Tokenizer, load_tokenizer

# Tokenizers that are the same at every family of theirs: Chinese models of all families have BERT's.
_TOKENIZERS: dict[str, tuple[str, Mapping[str, str]]] = {
    "bert": ("BertTokenizer", {"vocab_path": "vocab.txt"}),
    "xlmroberta": ("XLMRobertaTokenizer", {"spm_model_path": "sentencepiece.bpe.model"}),
    "hfpretrained": ("PreTrainedTokenizerFast", {"vocab_path": "tokenizer.json"}),
}

_TOKENIZER_FILES = (
    "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "tokenizer.json",
    "source.spm", "target.spm",
)  # fmt: skip


def has_tokenizer(directory: Path) -> bool:
    return any((directory / name).is_file() for name in _TOKENIZER_FILES)


class Tokenizers(NamedTuple):
    """Of both sides of a model; None: there is none, or the decoder's side has no other."""

    source: Tokenizer | None = None
    target: Tokenizer | None = None

    def surplus(self, tensors: Mapping[str, Tensor]) -> str | None:
        """What is wrong where ids have no row of a word embedding; more rows than ids are padding."""
        for side, tokenizer in (("", self.source), ("tgt_", self.target)):
            name = f"{side}embedding.word.embedding.weight"
            if name not in tensors:
                name = "embedding.word.embedding.weight"
            if tokenizer is not None and tokenizer.vocab_size > (rows := len(tensors[name])):
                return f"the tokenizer has {tokenizer.vocab_size} tokens, but the word embedding {rows} rows"
        return None

    def one_sided(self, tensors: Mapping[str, Tensor]) -> str | None:
        """What is wrong where the only tokenizer cannot be the decoder's too, of another vocabulary."""
        of_decoder = "tgt_embedding.word.embedding.weight"
        if self.source is None or self.target is not None or of_decoder not in tensors:
            return None
        rows, tgt_rows = len(tensors["embedding.word.embedding.weight"]), len(tensors[of_decoder])
        if rows == tgt_rows:
            return None
        return (
            f"no tokenizer is written: one is for the encoder's {rows} tokens only, the decoder has "
            f"{tgt_rows}, and the description beside the weights names none for those (tgt_tokenizer_path)"
        )


def load_tokenizers(path: Path, two: bool) -> Tokenizers:
    """Those of a directory of theirs, or beside weights of ours.

    Args:
        two: whether there is one for the decoder's side.

    Raises:
        DataError: as `load_tokenizer`.
    """
    target = load_tokenizer(path, "tgt") if two else None
    return Tokenizers(load_tokenizer(path), target)


def their_tokenizer(
    family: Family, tokenizer: Tokenizer, tgt_tokenizer: Tokenizer | None = None
) -> tuple[str, Mapping[str, str]] | None:
    """Their class that gives the same ids, and what its files are called, by our option; None: no such."""
    if tokenizer.kind in _TOKENIZERS:
        return _TOKENIZERS[tokenizer.kind]
    usual = family.tokenizer_class, family.tokenizer_files
    of_both = tgt_tokenizer if family.tgt_tokenizer_files and tgt_tokenizer is not None else tokenizer
    alike = all(one.files.keys() == usual[1].keys() for one in (tokenizer, of_both))
    if alike and usual not in _TOKENIZERS.values():
        return usual
    # Of a family whose own class splits texts in another way: what a file describes is read as it is.
    return _TOKENIZERS["hfpretrained"] if tokenizer.kind == "bpe" else None


def has_both_sides(family: Family, tokenizer_class: str) -> bool:
    """Whether a tokenizer of theirs consists of two, one for the decoder's side."""
    return bool(family.tgt_tokenizer_files) and tokenizer_class == family.tokenizer_class


def tokenizer_notes(family: Family, tokenizers: Tokenizers) -> Iterator[str]:
    """What a user should know about the tokenizer of a directory that is written, a line each."""
    source, target = tokenizers
    if source is None:
        yield "no tokenizer is written: none lies beside the weights (--vocab_path gives one)"
        return
    named = their_tokenizer(family, source, target)
    if named is None:
        kinds = dict.fromkeys(f"'{one.kind}'" for one in tokenizers if one is not None)
        yield f"no tokenizer is written: none of theirs for {family.name} is like {' with '.join(kinds)}"
        return
    if source.kind == "bpe" and family.fixed_tokenizer is not None:
        yield (
            f"AutoTokenizer takes {family.fixed_tokenizer} for {family.name}, which splits texts in another "
            "way; PreTrainedTokenizerFast loads the tokenizer that is written"
        )
    if target is None and has_both_sides(family, named[0]):
        yield "one tokenizer is written for both sides: the description names no other for the decoder's"
    if target is not None and not has_both_sides(family, named[0]):
        yield f"the tokenizer of the decoder's side is not written: a {named[0]} is one for both sides"


def write_tokenizer(
    directory: Path,
    family: Family,
    config: ModelConfig,
    tokenizer: Tokenizer,
    tokenizer_class: str,
    names: Mapping[str, str],
    tgt_tokenizer: Tokenizer | None,
) -> None:
    """Write the files of a tokenizer, or of two in one where they have such.

    Args:
        tgt_tokenizer: of the decoder's side, where it is another one.
    """
    tokenizer.write_files(directory, names)
    special: dict[str, Any] = {f"{role}_token": token for role, token in tokenizer.special_tokens.items()}
    for name, role in family.token_ids.items():
        if name in ("bos_token_id", "eos_token_id") and role in tokenizer.special_tokens:
            special[name.removesuffix("_id")] = tokenizer.special_tokens[role]
    write_json(directory / "special_tokens_map.json", special)
    if has_both_sides(family, tokenizer_class):
        target = tgt_tokenizer or tokenizer
        separate = special["separate_vocabs"] = target.tokens != tokenizer.tokens
        vocabulary = (family.tgt_tokenizer_files if separate else names)["vocab_path"]
        target.write_files(directory, {**family.tgt_tokenizer_files, "vocab_path": vocabulary})
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
