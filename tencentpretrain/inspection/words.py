"""Vectors of words: rows of the embedding, their neighbours, and neighbours in the context of a sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tencentpretrain.batch import Batch
from tencentpretrain.config import (
    ContextConfig,
    ModelConfig,
    NeighboursConfig,
    Options,
    RunConfig,
    TokenizerConfig,
    WordEmbeddingsConfig,
)
from tencentpretrain.errors import DataError, WeightsError
from tencentpretrain.files import check_not_input, complete_file
from tencentpretrain.inspection.features import Extractor, start_features
from tencentpretrain.tasks.examples import Examples, Rows
from tencentpretrain.tasks.start import check_writable
from tencentpretrain.tokenizers import Tokenizer, build_tokenizer, load_tokenizer
from tencentpretrain.tokenizers.vocabulary import parse_line, read_lines, read_vocabulary
from tencentpretrain.training.engines import choose_device
from tencentpretrain.training.report import start_logging
from tencentpretrain.weights import read_state_dict

_WORD_EMBEDDING = re.compile(r"embedding\.(dual\.)?(embedding_0\.)?word\.embedding\.weight")


def nearest(vector: Tensor, others: Tensor) -> list[tuple[int, float]]:
    """Rows of `others` [n, D] by their cosine with `vector` [D], largest first, and these cosines."""
    cosines, rows = F.cosine_similarity(vector, others).sort(descending=True, stable=True)
    return list(zip(rows.tolist(), cosines.tolist(), strict=True))


def word_vectors(path: Path, config: TokenizerConfig) -> tuple[list[str], Tensor]:
    """Tokens of the vocabulary, by id, and the rows of the word embedding [V, D] in fp32.

    Args:
        config: names the vocabulary, where it is not the one beside the weights.

    Raises:
        DataError: there is no vocabulary, or one of more tokens than the embedding has rows.
        WeightsError: there is no word embedding.
    """
    tensors = read_state_dict(path)
    name = next(filter(_WORD_EMBEDDING.fullmatch, tensors), None)
    if name is None:
        raise WeightsError(f"{path} has no word embedding (embedding.word.embedding.weight).")
    if config.spm_model_path is not None:
        tokens = build_tokenizer(config).tokens
    elif config.vocab_path is not None:
        tokens = read_vocabulary(Path(config.vocab_path))
    else:
        try:
            tokens = load_tokenizer(path).tokens
        except DataError as error:
            raise DataError(f"{error} Or name the vocabulary with --vocab_path.") from None
    vectors = tensors[name].float()
    if len(tokens) > len(vectors):
        raise DataError(
            f"the vocabulary has {len(tokens)} tokens, but {path} has vectors for {len(vectors)}; give the "
            "vocabulary the weights were made with."
        )
    return tokens, vectors[: len(tokens)]


def print_neighbours(ranked: Sequence[tuple[str, float]], topn: int) -> None:
    print(*(f"{word}\t{cosine}" for word, cosine in ranked[:topn]), sep="\n", end="\n\n")


def topn_words_indep(arguments: Sequence[str] | None = None) -> None:
    """The program that prints the tokens whose rows of the embedding are most like those of given tokens.

    Args:
        arguments: the command line without the program's name; default: the process's.

    Raises:
        UserError: options, weights or words are wrong.
    """
    concerns = (NeighboursConfig, TokenizerConfig)
    config, tokenizer_config = Options(
        "Print the nearest neighbours of words in the word embedding.", *concerns, arguments=arguments
    ).build(*concerns)
    words = [line.split()[0] for line in read_lines(Path(config.test_path), "words") if line.strip()]
    tokens, vectors = word_vectors(Path(config.load_model_path), tokenizer_config)
    ids = {token: id for id, token in enumerate(tokens)}
    vectors = vectors.to(choose_device(())[0])
    for word in words:
        print(f"Target word: {word}")
        if word not in ids:
            print("The target word is not in the vocabulary.\n")
            continue
        ranked = nearest(vectors[ids[word]], vectors)
        print_neighbours([(tokens[row], cosine) for row, cosine in ranked if row != ids[word]], config.topn)


def extract_embeddings(arguments: Sequence[str] | None = None) -> None:
    """The program that writes the word embedding as word2vec does: a line a token, its numbers behind.

    Args:
        arguments: the command line without the program's name; default: the process's.

    Raises:
        UserError: options or weights are wrong.
    """
    concerns = (WordEmbeddingsConfig, TokenizerConfig)
    options = Options("Write the word embedding of a model as text.", *concerns, arguments=arguments)
    config, tokenizer_config = options.build(*concerns)
    output = Path(config.word_embedding_path)
    check_not_input(output, "--word_embedding_path", options.paths_read("word_embedding_path"))
    check_writable(output, "--word_embedding_path")
    tokens, vectors = word_vectors(Path(config.load_model_path), tokenizer_config)
    # A blank token would end the line before its numbers; a vocabulary has them where an id is not used.
    rows = [(token, row) for token, row in zip(tokens, vectors.numpy(), strict=True) if token.strip()]
    with complete_file(output) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(f"{len(rows)} {vectors.shape[1]}\n")
        for token, row in rows:
            file.write(f"{token} {' '.join(map(str, row))}\n")


class WordsInContext(Examples):
    """A sentence with each of several words in one place; what is pooled of a row is its word.

    Args:
        words: [n], the ids of each.
        before, after: ids of the sentence, special tokens included.
    """

    def __init__(
        self, words: Sequence[Sequence[int]], before: Sequence[int], after: Sequence[int], pad_id: int
    ) -> None:
        self.lengths = np.array([len(before) + len(word) + len(after) for word in words])
        self._words, self._before, self._after, self._pad_id = words, before, after, pad_id

    def batch(self, rows: Rows) -> Batch:
        columns = np.arange(self.lengths[rows].max())
        ids = np.full((len(rows), len(columns)), self._pad_id)
        ends = np.array([len(self._before) + len(self._words[row]) for row in rows])[:, None]
        for ids_row, row in zip(ids, rows, strict=True):
            ids_row[: self.lengths[row]] = [*self._before, *self._words[row], *self._after]
        masks = {
            "segment_ids": columns < self.lengths[rows][:, None],
            "pooled_positions": (columns >= len(self._before)) & (columns < ends),
        }
        return {
            "input_ids": torch.from_numpy(ids),
            **{name: torch.from_numpy(mask.astype(np.int64)) for name, mask in masks.items()},
        }


def candidates(tokenizer: Tokenizer, path: Path | None) -> dict[str, list[int]]:
    """Words with their ids: those of a file, or of the vocabulary; special tokens are none.

    Words that the tokenizer does not know are left out.

    Raises:
        DataError: the file cannot be read, or has no word that is known.
    """
    words = tokenizer.tokens if path is None else map(parse_line, read_lines(path, "words, one a line"))
    found = {word: word_ids(tokenizer, word) for word in words if word.strip()}
    known = {word: ids for word, ids in found.items() if ids and tokenizer.special_ids.isdisjoint(ids)}
    if not known:
        raise DataError(f"--cand_vocab_path {path}: the tokenizer of the model knows none of its words.")
    return known


def word_ids(tokenizer: Tokenizer, word: str) -> list[int]:
    """The token of the vocabulary that a word is as it stands (`##ing`), else its tokens."""
    return [tokenizer.ids[word]] if word in tokenizer.ids else tokenizer.encode(word)


def find(part: Sequence[int], whole: Sequence[int]) -> int | None:
    """Where a sequence first begins in another."""
    starts = range(len(whole) - len(part) + 1)
    return next((start for start in starts if whole[start : start + len(part)] == part), None)


def topn_words_dep(arguments: Sequence[str] | None = None) -> None:
    """The program that prints what else could stand in a word's place: by the cosine of the states there.

    The sentence is read with each candidate in the place of the word; a word of several tokens has the mean
    of their states.

    Args:
        arguments: the command line without the program's name; default: the process's.

    Raises:
        UserError: options, weights or words are wrong.
    """
    concerns = (ModelConfig, TokenizerConfig, NeighboursConfig, ContextConfig)
    options = Options(
        "Print the nearest neighbours of words in the context of a sentence.", *concerns, arguments=arguments
    )
    start = start_features(options)
    model_config, tokenizer_config, config, context = options.build(*concerns)
    start_logging(RunConfig())
    tokenizer = start.tokenizer(tokenizer_config)
    path = Path(config.test_path)
    lines = [line.split("\t") for line in read_lines(path, "words, each with TAB and a sentence")]
    for number, line in enumerate(lines, start=1):
        if len(line) != 2 or not all(map(str.strip, line)):
            raise DataError(f"{path}, line {number}: expected a word, TAB and a sentence.")
    known = candidates(tokenizer, None if context.cand_vocab_path is None else Path(context.cand_vocab_path))
    extractor = Extractor(start, model_config, tokenizer, context.seq_length, context.precision, "mean")
    cls_id, sep_id = tokenizer.require("cls"), tokenizer.require("sep")
    for word, sentence in lines:
        print(f"Original sentence: {sentence}\nTarget word: {word}")
        target, ids = word_ids(tokenizer, word.strip()), tokenizer.encode(sentence)
        room = context.seq_length - 2 - max(len(target), *map(len, known.values()))
        place = find(target, ids)
        if place is None or place > room:
            cut = "" if place is None else f" as far as it is read (--seq_length {context.seq_length})"
            print(f"The target word is not in the sentence{cut}.\n")
            continue
        after = ids[place + len(target) :][: room - place]
        others = {other: tokens for other, tokens in known.items() if tokens != target}
        examples = WordsInContext(
            [target, *others.values()], [cls_id, *ids[:place]], [*after, sep_id], tokenizer.pad_id or 0
        )
        vectors = extractor.vectors(examples, context.batch_size)
        names = list(others)
        print_neighbours(
            [(names[row], cosine) for row, cosine in nearest(vectors[0], vectors[1:])], config.topn
        )
