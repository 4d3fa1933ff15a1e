"""Characters, and words between spaces: a table and no model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tencentpretrain.config.tokenizer import TokenizerConfig
from tencentpretrain.registry import TOKENIZERS
from tencentpretrain.tokenizers.base import Ids, Lengths, Tokenizer, flatten, required_path, text_starts
from tencentpretrain.tokenizers.vocabulary import read_vocabulary


@TOKENIZERS.register("char")
class CharTokenizer(Tokenizer):
    """A token is a character (code point), spaces included; space at either end of the text is left out."""

    kind = "char"

    def __init__(self, config: TokenizerConfig) -> None:
        path = required_path(config, "vocab_path")
        super().__init__(config, read_vocabulary(path), {"vocab_path": path})
        self._id_of = np.full(0x110000, self.require("unk"), np.int32)
        for token, id in self.ids.items():
            if len(token) == 1:
                self._id_of[ord(token)] = id

    def _encode_plain(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        texts = [text.strip() for text in texts]
        points = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
        return self._id_of[points], np.fromiter(map(len, texts), np.int64, len(texts))

    def token_starts(self, texts: Sequence[str]) -> Lengths:
        left = np.fromiter((len(text) - len(text.lstrip()) for text in texts), np.int64, len(texts))
        counts = np.fromiter((len(text.strip()) for text in texts), np.int64, len(texts))
        before = np.cumsum(counts) - counts
        return np.repeat(text_starts(texts) + left - before, counts) + np.arange(counts.sum())

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.tokens[id] for id in ids)


@TOKENIZERS.register("space")
class SpaceTokenizer(Tokenizer):
    """A token is what stands between spaces (U+0020). Special tokens are words like any other."""

    kind = "space"

    def __init__(self, config: TokenizerConfig) -> None:
        path = required_path(config, "vocab_path")
        super().__init__(config, read_vocabulary(path), {"vocab_path": path})
        self._unknown = self.require("unk")

    def _encode_batch(self, texts: Sequence[str], special_tokens: bool) -> tuple[Ids, Lengths]:
        get, unknown = self.ids.get, self._unknown
        return flatten([[get(word, unknown) for word in text.strip().split(" ") if word] for text in texts])

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.tokens[id] for id in ids)
