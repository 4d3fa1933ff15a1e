"""Comparing vocabularies, and giving a model another one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from tencentpretrain.config.options import option
from tencentpretrain.config.tokenizer import TokenizerConfig
from tencentpretrain.errors import WeightsError
from tencentpretrain.files import check_not_input
from tencentpretrain.tokenizers.spm import SentencePieceTokenizer
from tencentpretrain.tokenizers.vocabulary import read_vocabulary

if TYPE_CHECKING:
    from torch import Tensor

SEED = 7
# Parameters that have a row for each token, after the name of the embedding or target they belong to.
EMBEDDINGS = ("word.embedding.weight", "language_embedding.embedding.weight")
OUTPUTS = ("linear_2.weight", "linear_2.bias", "output_layer.weight", "output_layer.bias")


@dataclasses.dataclass(frozen=True)
class DiffVocabConfig:
    """Comparing two vocabularies."""

    vocab_1: str = option(..., "A vocabulary: a token a line, JSON, or a SentencePiece model (.model).")
    vocab_2: str = option(..., "Another one.")


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Giving a model another vocabulary."""

    old_model_path: str = option(..., "Weights of the model.")
    old_vocab_path: str = option(
        ..., "Its vocabulary: a token a line, JSON, or a SentencePiece model (.model)."
    )
    new_vocab_path: str = option(..., "The vocabulary it gets.")
    new_model_path: str = option(..., "Where the new weights go.")


def tokens_of(path: str) -> list[str]:
    """The tokens of a vocabulary file, by id."""
    if path.endswith(".model"):
        return list(SentencePieceTokenizer(TokenizerConfig(spm_model_path=path)).tokens)
    return read_vocabulary(Path(path))


def diff_vocab(config: DiffVocabConfig) -> str:
    """How many tokens two vocabularies have, alone and in common, and what is in one only."""
    one, other = (dict.fromkeys(tokens_of(path)) for path in (config.vocab_1, config.vocab_2))
    lines = [f"vocab_1: {config.vocab_1}, size: {len(one)}", f"vocab_2: {config.vocab_2}, size: {len(other)}"]
    for words, first, second in (("vocab_1 - vocab_2", one, other), ("vocab_2 - vocab_1", other, one)):
        only = [token for token in first if token not in second]
        lines.append(f"{words} = {len(only)}" + (f": {' '.join(only)}" if only else ""))
    lines.append(f"vocab_1 & vocab_2 = {len(one.keys() & other.keys())}")
    return "\n".join(lines)


def adapt_vocab(config: AdapterConfig) -> str:
    """Write a model's weights for another vocabulary.

    In embeddings and output layers, tokens of both vocabularies keep their rows. Those of new tokens are
    drawn, column by column, with the mean and the standard deviation of the old rows.

    Raises:
        WeightsError: no embedding has as many rows as the old vocabulary has tokens.
        UserError: the new weights would replace what is read.
    """
    from tencentpretrain.weights import publish_undescribed, read_state_dict

    inputs = {
        "old_model_path": config.old_model_path,
        "old_vocab_path": config.old_vocab_path,
        "new_vocab_path": config.new_vocab_path,
    }
    check_not_input(Path(config.new_model_path), "--new_model_path", inputs)
    ids = {token: id for id, token in enumerate(tokens_of(config.old_vocab_path))}
    tokens = tokens_of(config.new_vocab_path)
    kept = [ids.get(token, -1) for token in tokens]
    tensors = dict(read_state_dict(config.old_model_path))
    names = [
        name
        for name, tensor in tensors.items()
        if name.endswith(EMBEDDINGS + OUTPUTS) and len(tensor) == len(ids)
    ]
    if not any(name.endswith(EMBEDDINGS) for name in names):
        found = {name: len(tensor) for name, tensor in tensors.items() if name.endswith(EMBEDDINGS)}
        raise WeightsError(
            f"{config.old_model_path} does not belong to {config.old_vocab_path}: the vocabulary has "
            f"{len(ids)} tokens, the model's embeddings have "
            f"{', '.join(f'{rows} rows ({name})' for name, rows in found.items()) or 'none'}."
        )
    for name in names:
        tensors[name] = _with_rows(tensors[name], kept)
    removed = publish_undescribed(tensors, config.new_model_path)
    new = kept.count(-1)
    said = (
        f"{config.new_model_path}: {len(tokens):,} tokens, {len(tokens) - new:,} with their old rows, "
        f"{new:,} new; changed {', '.join(names)}."
    )
    return "\n".join([said, *removed])


def _with_rows(old: Tensor, rows: list[int]) -> Tensor:
    """[V', …] of [V, …]: the rows given, new ones where they are -1; the same for equal parameters."""
    import torch

    wanted = torch.tensor(rows)
    std, mean = torch.std_mean(old.float(), dim=0)
    noise = torch.randn(len(rows), *old.shape[1:], generator=torch.Generator().manual_seed(SEED))
    found = (mean + std * noise).to(old.dtype)
    found[wanted >= 0] = old[wanted[wanted >= 0]]
    return found
