"""Marian's tokenizers: pieces of SentencePiece under the ids of a vocabulary."""

from __future__ import annotations

import functools
import itertools
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from tencentpretrain.errors import DataError
from tencentpretrain.registry import TOKENIZERS
from tencentpretrain.tokenizers.base import Ids, Lengths, cores, flatten, text_starts
from tencentpretrain.tokenizers.spm import SPACE, SentencePieceTokenizer
from tencentpretrain.tokenizers.vocabulary import is_json, read_vocabulary

_CODE = re.compile(">>.*?<<", re.DOTALL)  # before a text, which language it is to be translated to


@TOKENIZERS.register("marian")
class MarianTokenizer(SentencePieceTokenizer):
    """One side of a translation model's two, each with its own pieces, mostly under ids of both together
    (Junczys-Dowmunt et al. 2018). A language code that a text begins with (>>fr<<) is a token.

    Equal to Transformers' MarianTokenizer, but for two things: of one vocabulary it decodes both sides by the
    source's pieces (spaces after a special token may differ); of two it has only the source's id of <pad>.

    Raises:
        DataError: a vocabulary without a token for what is unknown.
    """

    kind = "marian"
    file_names = MappingProxyType({"spm_model_path": "tokenizer.model", "vocab_path": "vocab.json"})
    starts_with_cls: ClassVar[bool] = False

    def _token_list(self) -> list[str]:
        path = self.files["vocab_path"]
        tokens = read_vocabulary(path)
        if "<unk>" not in tokens:
            raise DataError(f"{path} has no token '<unk>', which stands for what is unknown.")
        return tokens

    def _usual_names(self, role: str) -> tuple[str, ...]:
        return {"pad": ("<pad>",), "unk": ("<unk>",), "mask": ("<mask>",)}.get(role, ("</s>",))

    def _usual_special_tokens(self) -> tuple[str, ...]:
        return ()

    @functools.cached_property
    def _plain_ids(self) -> dict[str, int]:
        """What a text may have without naming a special token."""
        return {token: id for token, id in self.ids.items() if id not in self.special_ids}

    @functools.cached_property
    def _of_piece(self) -> list[int]:
        return [self._plain_ids.get(piece, self.ids["<unk>"]) for piece in self._pieces]

    def _encode_plain(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        unknown, unknown_piece = self.ids["<unk>"], self._model.unk_id()
        codes, rest = _split(texts)
        rows = []
        for code, text, pieces in zip(
            codes, rest, self._model.encode(rest, out_type=int, num_threads=cores()), strict=True
        ):
            if unknown_piece in pieces:  # to the model, while the vocabulary may have it from the other side
                names = self._model.encode(text, out_type=str)
                row = [self._plain_ids.get(name, unknown) for name in names]
            else:
                row = [self._of_piece[piece] for piece in pieces]
            rows.append([self._plain_ids.get(code, unknown), *row] if code else row)
        return flatten(rows)

    def token_starts(self, texts: Sequence[str]) -> Lengths:
        codes, rest = _split(texts)
        found = self._model.encode(rest, out_type="offset_mapping", num_threads=cores())
        starts, counts = flatten(
            [
                [0] * bool(code) + [len(code) + start for start, _ in text["offsets"]]
                for code, text in zip(codes, found, strict=True)
            ]
        )
        return np.repeat(text_starts(texts), counts) + starts

    def _write_file(self, option: str, path: Path) -> None:
        if is_json(path) == is_json(self.files[option]):
            shutil.copyfile(self.files[option], path)
        else:
            super()._write_file(option, path)

    def decode(self, ids: Sequence[int]) -> str:
        text = ""
        for special, run in itertools.groupby(ids, self.special_ids.__contains__):
            tokens = [self.tokens[id] for id in run]
            text += "".join(f"{token} " for token in tokens) if special else self._model.decode_pieces(tokens)
        return text.replace(SPACE, " ").strip()


def _split(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The language code that each text begins with, or "", and the rest."""
    found = [_CODE.match(text) for text in texts]
    codes = ["" if one is None else one[0] for one in found]
    return codes, [text[len(code) :] for code, text in zip(codes, texts, strict=True)]
