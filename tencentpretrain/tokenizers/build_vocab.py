"""Vocabularies from a corpus: counted, or trained as WordPiece, byte-level BPE or a unigram model."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import itertools
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tencentpretrain.config.options import option
from tencentpretrain.config.shared import CORPUS_PATH
from tencentpretrain.data.corpora import Block, CorpusFile, blocks, corpus_files, progress_bar
from tencentpretrain.data.lines import CONVERT, read_texts
from tencentpretrain.errors import ConfigError, DataError
from tencentpretrain.files import check_not_input, complete_file
from tencentpretrain.tokenizers.vocabulary import parse_line, write_merges, write_vocabulary
from tencentpretrain.tokenizers.words import WordTable

if TYPE_CHECKING:
    import tokenizers

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORD_LENGTH_MAX = 100  # characters; WordPiece takes a longer word for unknown
PIECE_LENGTH = 4096  # characters that SentencePiece is given at a time

Words = collections.Counter[str]


@dataclasses.dataclass(frozen=True)
class BuildVocabConfig:
    """Vocabulary."""

    corpus_path: tuple[str, ...] = CORPUS_PATH()
    output_path: str = option(
        ..., "The vocabulary: a token a line, JSON if named .json, or (unigram) a SentencePiece model."
    )
    type: str = option(
        "count", "Count tokens, or train a vocabulary.", choices=("count", "wordpiece", "bpe", "unigram")
    )
    delimiter: str | None = option(
        None, "count: tokens are characters, or words between spaces.", choices=("char", "space")
    )
    vocab_size: int | None = option(
        None,
        "Tokens at most, special ones included; default: 32000 when trained, no limit when counted.",
        minimum=6,
    )
    min_count: int = option(
        1, "Tokens and characters that occur less often are left out (not for unigram).", minimum=1
    )
    do_lower_case: bool = option(True, "wordpiece: lower-case the text and strip accents.")
    merges_path: str | None = option(
        None, "bpe: where the merges go; default: merges.txt beside output_path."
    )
    workers_num: int = option(
        1,
        "Processes that count, threads that train; only a unigram model depends on it, in its last digits.",
        minimum=1,
    )

    def __post_init__(self) -> None:
        problems = []
        if self.type == "count" and self.delimiter is None:
            problems.append("--delimiter is required to count: char or space.")
        if self.type != "count" and self.delimiter is not None:
            problems.append(f"--delimiter has no meaning with --type {self.type}; leave it out.")
        if self.type != "bpe" and self.merges_path is not None:
            problems.append(f"--merges_path has no meaning with --type {self.type}; leave it out.")
        if self.type == "unigram" and self.min_count > 1:
            problems.append("--min_count has no meaning with --type unigram; leave it out.")
        if problems:
            raise ConfigError(problems)

    @property
    def size(self) -> int:
        if self.vocab_size is not None:
            return self.vocab_size
        return sys.maxsize if self.type == "count" else 32000

    @property
    def merges(self) -> Path:
        """Where bpe writes its merges."""
        return Path(self.merges_path or Path(self.output_path).with_name("merges.txt"))


class Corpus:
    """Lines of corpus files; those that cannot be used are left out and counted in `bad_lines_num`."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        self.paths = paths
        self.files: list[CorpusFile] = corpus_files(paths, json_format=False)
        self.bad_lines_num = 0

    def _blocks(self) -> Iterator[Block]:
        return itertools.chain.from_iterable(map(blocks, self.files))

    def lines(self) -> Iterator[str]:
        """All lines that are text; DataError where there is none."""
        lines = self._lines()
        first = next(lines, None)
        if first is None:
            raise self._unusable()
        return itertools.chain([first], lines)

    def _lines(self) -> Iterator[str]:
        with progress_bar(self.files, "build_vocab") as progress:
            for block in self._blocks():
                found = read_texts(block, "documents")
                self.bad_lines_num += len(found.bad_lines)
                yield from found.texts
                progress.update(block.progress)

    def count(self, splitter: Splitter, workers_num: int) -> Words:
        """Words of all lines, in the same order for any number of workers; DataError where there is none."""
        words: Words = collections.Counter()
        with _mapper(workers_num) as run, progress_bar(self.files, "build_vocab") as progress:
            every = self._blocks()
            # A few at a time: blocks of compressed files carry their text.
            while window := list(itertools.islice(every, 4 * workers_num)):
                results = run(_Counting(splitter), window)
                for block, (counted, bad_lines_num) in zip(window, results, strict=True):
                    words.update(counted)
                    self.bad_lines_num += bad_lines_num
                    progress.update(block.progress)
        if not words:
            raise self._unusable()
        return words

    def _unusable(self) -> DataError:
        why = "it is empty"
        if self.bad_lines_num:
            why = f"{self.bad_lines_num:,} lines are no UTF-8 text; {CONVERT}"
        return DataError(f"{' '.join(self.paths)}: nothing in this corpus can be used: {why}.")


Splitter = Callable[[list[str]], Words]


@dataclasses.dataclass(frozen=True)
class _Counting:
    splitter: Splitter

    def __call__(self, block: Block) -> tuple[Words, int]:
        found = read_texts(block, "documents")
        return self.splitter(found.texts), len(found.bad_lines)


@contextlib.contextmanager
def _mapper(workers_num: int) -> Iterator[Callable[..., Iterator[tuple[Words, int]]]]:
    if workers_num == 1:
        yield map
        return
    with multiprocessing.get_context("fork").Pool(workers_num, _start_worker) as pool:
        yield pool.imap


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process answers, and ends the pool
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def characters(texts: list[str]) -> Words:
    return collections.Counter("".join(text.strip() for text in texts))


def spaced_words(texts: list[str]) -> Words:
    return collections.Counter(word for text in texts for word in text.strip().split(" ") if word)


def build_vocab(config: BuildVocabConfig) -> str:
    """Make the vocabulary that the options describe, and write it.

    Returns:
        What was written, in a line.

    Raises:
        DataError: nothing usable in the corpus.
        ConfigError: the corpus cannot give a vocabulary of that size.
        UserError: an output would replace a file of the corpus, or the other output.
    """
    # Read by the Rust library when its threads start.
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if config.workers_num > 1 else "false"
    os.environ["RAYON_NUM_THREADS"] = str(config.workers_num)
    corpus = Corpus(config.corpus_path)
    path = Path(config.output_path)
    if config.type == "bpe":
        check_not_input(path, "--output_path", {"merges_path": str(config.merges)})
    for file in corpus.files:
        check_not_input(path, "--output_path", {"corpus_path": str(file.path)})
        if config.type == "bpe":
            check_not_input(config.merges, "--merges_path", {"corpus_path": str(file.path)})
    tokens_num = {"count": _count, "wordpiece": _wordpiece, "bpe": _bpe, "unigram": _unigram}[config.type](
        config, corpus, path
    )
    report = f"{path}: {tokens_num:,} tokens"
    if config.vocab_size is not None and tokens_num < config.vocab_size:
        report += f", fewer than --vocab_size {config.vocab_size:,}: this corpus gives no more"
    if corpus.bad_lines_num:
        report += f" ({corpus.bad_lines_num:,} lines could not be used)"
    return f"{report}."


def _count(config: BuildVocabConfig, corpus: Corpus, path: Path) -> int:
    words = corpus.count(characters if config.delimiter == "char" else spaced_words, config.workers_num)
    tokens = [*SPECIAL_TOKENS]
    for word, number in words.most_common():  # of equal ones, the first in the corpus first
        if number < config.min_count or len(tokens) == config.size:
            break
        # What a line of a vocabulary cannot hold (a tab inside a word, a carriage return) is no token.
        if word not in SPECIAL_TOKENS and parse_line(word) == word:
            tokens.append(word)
    write_vocabulary(path, tokens)
    return len(tokens)


def _wordpiece(config: BuildVocabConfig, corpus: Corpus, path: Path) -> int:
    from tokenizers import Tokenizer as Rust
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    rust = Rust(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    normalizer = normalizers.BertNormalizer(lowercase=config.do_lower_case)
    splitter = pre_tokenizers.BertPreTokenizer()
    rust.normalizer, rust.pre_tokenizer = normalizer, splitter
    words: Words = collections.Counter()
    for text, number in corpus.count(WordTable(rust).count, config.workers_num).items():
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)):
            if len(word) <= WORD_LENGTH_MAX:
                words[word] += number

    alphabet = _alphabet(words, config.size - len(SPECIAL_TOKENS), config.min_count)
    known = set("".join(alphabet))
    # The library numbers characters in the order of a hash table, another in every run, and merges depend on
    # the numbers. Given as special tokens, characters have ours; the limit keeps it from adding any itself.
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.size,
        min_frequency=config.min_count,
        special_tokens=[*SPECIAL_TOKENS, *alphabet],
        limit_alphabet=0,
        show_progress=False,
    )
    trained = Rust(models.WordPiece(unk_token="[UNK]"))
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trained.train_from_iterator(
        (" ".join([word] * number) for word, number in words.items() if known.issuperset(word)), trainer
    )
    tokens = _by_id(trained)
    write_vocabulary(path, tokens)
    return len(tokens)


def _by_id(rust: tokenizers.Tokenizer) -> list[str]:
    ids = rust.get_vocab()
    return sorted(ids, key=ids.__getitem__)


def _alphabet(words: Words, room: int, min_count: int) -> list[str]:
    """The most frequent characters that there is room for, each also as '##x' where words go on with it."""
    counts: Words = collections.Counter()
    inside: set[str] = set()
    for word, number in words.items():
        for char in word:
            counts[char] += number
        inside.update(word[1:])
    alphabet: list[str] = []
    for char, number in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        forms = [char, f"##{char}"] if char in inside else [char]
        if number < min_count or len(alphabet) + len(forms) > room:
            break
        alphabet += forms
    return alphabet


def _bpe(config: BuildVocabConfig, corpus: Corpus, path: Path) -> int:
    from tokenizers import Tokenizer as Rust
    from tokenizers import models, pre_tokenizers, trainers

    letters = pre_tokenizers.ByteLevel.alphabet()
    least = len(letters) + len(SPECIAL_TOKENS)
    if config.size < least:
        raise ConfigError(f"--vocab_size must be at least {least} with --type bpe (every byte is a token).")
    rust = Rust(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=config.size,
        min_frequency=config.min_count,
        special_tokens=[*SPECIAL_TOKENS],
        initial_alphabet=letters,
        show_progress=False,
    )
    rust.train_from_iterator(corpus.lines(), trainer)
    tokens = _by_id(rust)
    merges = json.loads(rust.to_str())["model"]["merges"]
    write_merges(config.merges, [(left, right) for left, right in merges])
    write_vocabulary(path, tokens)
    return len(tokens)


def _unigram(config: BuildVocabConfig, corpus: Corpus, path: Path) -> int:
    import sentencepiece

    lines = corpus.lines()
    model = io.BytesIO()
    pad, unk, cls, sep, mask = SPECIAL_TOKENS
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(
                line[at : at + PIECE_LENGTH] for line in lines for at in range(0, len(line), PIECE_LENGTH)
            ),
            model_writer=model,
            model_type="unigram",
            vocab_size=config.size,
            hard_vocab_limit=False,
            pad_id=0, unk_id=1, bos_id=2, eos_id=3,
            pad_piece=pad, unk_piece=unk, bos_piece=cls, eos_piece=sep,
            control_symbols=mask,
            max_sentence_length=4 * PIECE_LENGTH,
            num_threads=config.workers_num,
            minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        raise ConfigError(
            f"SentencePiece cannot train {config.size} pieces on this corpus: {error}"
        ) from None
    with complete_file(path) as temporary:
        temporary.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).vocab_size()
