"""Which tokens go on with a word where the vocabulary cannot show it: Chinese has no spaces."""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tencentpretrain.errors import ConfigError, DataError
from tencentpretrain.files import json_text
from tencentpretrain.tokenizers.base import is_cjk
from tencentpretrain.tokenizers.vocabulary import read_lines

if TYPE_CHECKING:
    from tencentpretrain.tokenizers.base import Ids, Lengths, Tokenizer

Bools = npt.NDArray[np.bool_]

ENTRY = re.compile(r"(\S+)(?: +(\d+))?(?: +([a-z]+))?")  # word, frequency, tag
RUN = re.compile(r"[\u4e00-\u9fd5a-zA-Z0-9+#&._%-]+")  # what jieba looks at as one; it cuts at all else
IDEOGRAPH = re.compile(r"[\u4e00-\u9fd5]")
CHINESE, SAMPLE = 0.05, 5000  # share of tokens with ideographs: in English BERT 0.016, in Chinese BERT 0.69


def is_chinese(tokenizer: Tokenizer) -> bool:
    """Whether a vocabulary is for Chinese too: one in 20 tokens, judged by a sample, has an ideograph."""
    ids = range(0, tokenizer.vocab_size, max(tokenizer.vocab_size // SAMPLE, 1))
    return sum(any(map(is_cjk, tokenizer.decode([id]))) for id in ids) > CHINESE * len(ids)


class Segmenter:
    """Words as jieba finds them in whatever has ideographs (Cui et al. 2021, "Pre-Training with Whole Word
    Masking for Chinese BERT", who take LTP); elsewhere the vocabulary says what a word is.

    Args:
        user_dict_path: further words, as jieba takes them: each line is `word [frequency] [tag]`.

    Raises:
        ConfigError: jieba is not installed.
        DataError: a line of the dictionary is something else.
    """

    def __init__(self, user_dict_path: str | None = None) -> None:
        try:
            import jieba
        except ImportError:
            raise ConfigError(
                "--whole_word_masking finds Chinese words with jieba, which is not installed; "
                "pip install jieba."
            ) from None
        words = [] if user_dict_path is None else _read_words(Path(user_dict_path))
        self._jieba = jieba.Tokenizer()
        # jieba's own way to start trusts and writes a file in the directory for temporary files of everyone.
        self._jieba.FREQ, self._jieba.total = self._jieba.gen_pfdict(self._jieba.get_dict_file())
        self._jieba.initialized = True
        for word, frequency in words:
            self._jieba.add_word(word, frequency)
        # What meta.json says: stores of equal words can be joined.
        self.description: dict[str, Any] = {
            "kind": f"jieba {importlib.metadata.version('jieba')}",
            "fingerprint": hashlib.blake2b(json_text(words).encode("utf-8"), digest_size=16).hexdigest(),
        }

    def continues(self, texts: Sequence[str], tokenizer: Tokenizer, ids: Ids, lengths: Lengths) -> Bools:
        """Whether each token goes on with the word of the token before it, in its text.

        A token that starts in a run with ideographs goes on with a word unless a word starts where it does;
        where the tokenizer does not know where its tokens start, its vocabulary decides everywhere.

        Args:
            ids, lengths: what `tokenizer.encode_batch(texts, special_tokens=False)` gives.
        """
        found = tokenizer.continues_word[ids]
        starts = tokenizer.token_starts(texts)
        if starts is not None:
            inside, begins = self._words("\n".join(texts))
            found = np.where(inside[starts], ~begins[starts], found)
            found |= np.diff(starts, prepend=-1) == 0  # inside a character, or a word that is not Chinese
        ends = np.cumsum(lengths)
        found[(ends - lengths)[lengths > 0]] = False
        return found

    def _words(self, text: str) -> tuple[Bools, Bools]:
        """Which characters are in runs with ideographs, and at which of these a word begins."""
        inside, begins = np.zeros((2, len(text) + 1), bool)
        starts: list[int] = []
        for run in RUN.finditer(text):
            if IDEOGRAPH.search(run[0]):
                inside[run.start() : run.end()] = True
                starts += itertools.accumulate(map(len, self._jieba.cut(run[0])), initial=run.start())
        begins[starts] = True  # also behind each run, which does not matter
        return inside, begins


def _read_words(path: Path) -> list[tuple[str, int | None]]:
    words = []
    for number, line in enumerate(read_lines(path, "a dictionary (a word a line)"), start=1):
        entry = ENTRY.fullmatch(line.strip())
        if entry is None and line.strip():
            raise DataError(
                f"{path}, line {number}: expected 'word [frequency] [tag]', with a tag of letters a to z, "
                f"but is '{line}' instead."
            )
        if entry is not None:
            words.append((entry[1], None if entry[2] is None else int(entry[2])))
    if cut := [word for word, _ in words if not RUN.fullmatch(word)]:
        print(
            f"{path}: {len(cut):,} of {len(words):,} words are never found: jieba cuts at some of their "
            f"characters: {', '.join(cut[:5])}{' …' if len(cut) > 5 else ''}",
            file=sys.stderr,
        )
    return words
