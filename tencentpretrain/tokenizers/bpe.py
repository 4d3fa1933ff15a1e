"""GPT-2's tokenizer: byte-pair encoding over bytes (Radford et al. 2019, section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from tencentpretrain.config.tokenizer import TokenizerConfig
from tencentpretrain.errors import DataError
from tencentpretrain.registry import TOKENIZERS
from tencentpretrain.tokenizers.base import Ids, Lengths, Tokenizer, flatten, required_path, text_starts
from tencentpretrain.tokenizers.vocabulary import (
    read_added_tokens,
    read_merges,
    read_vocabulary,
    write_merges,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Rust


@TOKENIZERS.register("bpe")
class BPETokenizer(Tokenizer):
    """Byte-level BPE; equal to Transformers' GPT2Tokenizer.

    Every text has ids where the vocabulary has all 256 bytes; a byte it lacks becomes the unknown token.
    """

    kind = "bpe"
    file_names = MappingProxyType({"vocab_path": "vocab.json", "merges_path": "merges.txt"})

    def __init__(self, config: TokenizerConfig) -> None:
        from tokenizers import Tokenizer as Rust
        from tokenizers import decoders, models, pre_tokenizers

        path = required_path(config, "vocab_path")
        merges_path = required_path(config, "merges_path")
        super().__init__(config, read_vocabulary(path), {"vocab_path": path, "merges_path": merges_path})
        self.merges = read_merges(merges_path)
        for left, right in self.merges:
            for token in (left, right, left + right):
                if token not in self.ids:
                    raise DataError(
                        f"{path} has no token '{token}', which the merge '{left} {right}' needs; "
                        "vocabulary and merges do not belong together."
                    )
        unknown = None if self.unk_id is None else self.tokens[self.unk_id]
        self._rust = Rust(models.BPE(self.ids, self.merges, unk_token=unknown))
        self._rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._rust.decoder = decoders.ByteLevel()

    def _usual_special_tokens(self) -> tuple[str, ...]:
        return ("<|endoftext|>", *read_added_tokens(self.files["vocab_path"]))

    def _encode_plain(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        encodings = self._rust.encode_batch_fast(list(texts), add_special_tokens=False)
        return flatten([encoding.ids for encoding in encodings])

    def token_starts(self, texts: Sequence[str]) -> Lengths:
        return starts_of(self._rust, texts)

    def decode(self, ids: Sequence[int]) -> str:
        return self._rust.decode(list(ids), skip_special_tokens=False)

    def _write_file(self, option: str, path: Path) -> None:
        if path.name == "tokenizer.json":
            rust = type(self._rust).from_str(
                self._rust.to_str()
            )  # this one is to read special tokens as text
            rust.add_special_tokens([self.tokens[id] for id in sorted(self.special_ids)])
            rust.save(str(path))
        elif option == "merges_path":
            write_merges(path, self.merges)
        else:
            super()._write_file(option, path)

    def _identity(self) -> bytes:
        return "\n".join(map(" ".join, self.merges)).encode("utf-8")

    def _continues(self, token: str) -> bool:
        return continues_in_bytes(token)


def starts_of(rust: Rust, texts: Sequence[str]) -> Lengths:
    """What `Tokenizer.token_starts` gives, from the offsets of the library."""
    found = []
    for begin, encoding in zip(
        text_starts(texts), rust.encode_batch(list(texts), add_special_tokens=False), strict=True
    ):
        starts, ends = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
        # Bytes of a character that has begun belong to the token it began in.
        starts[1:][starts[1:] < ends[:-1]] = 0
        found.append(begin + np.maximum.accumulate(starts))
    return np.concatenate([np.zeros(0, np.int64), *found])


def continues_in_bytes(token: str) -> bool:
    """Whether a token of byte-level BPE goes on with a word: with a letter, a digit, or a byte of a character
    that has begun.

    Bytes to 0xA0 that do not print stand in the vocabulary as U+0100 …, in order; 0xE3 and above begin CJK
    and emoji.
    """
    first = token[0]
    return (first.isascii() and first.isalnum()) or "\xa1" <= first <= "\xe2" or "\u0122" <= first <= "\u0143"
