"""SentencePiece models as they are, and with the ids of fairseq (XLM-RoBERTa)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import MappingProxyType

import numpy as np

from tencentpretrain.config.tokenizer import TokenizerConfig
from tencentpretrain.errors import DataError
from tencentpretrain.registry import TOKENIZERS
from tencentpretrain.tokenizers.base import (
    Ids,
    Lengths,
    Tokenizer,
    cores,
    flatten,
    is_cjk,
    required_path,
    text_starts,
)
from tencentpretrain.tokenizers.vocabulary import read_bytes

SPACE = "▁"  # U+2581, which SentencePiece writes for a space
LONG_TEXT = 128  # characters from which an array costs less than a list of Python's integers


@TOKENIZERS.register("sentencepiece")
class SentencePieceTokenizer(Tokenizer):
    """Any SentencePiece model, with its own ids (Kudo and Richardson 2018)."""

    kind = "sentencepiece"
    file_names = MappingProxyType({"spm_model_path": "tokenizer.model"})

    def __init__(self, config: TokenizerConfig) -> None:
        import sentencepiece

        self.files = {option: required_path(config, option) for option in self.file_names}
        path = self.files["spm_model_path"]
        self._content = read_bytes(path, "a SentencePiece model")
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=self._content)
        except RuntimeError:
            raise DataError(f"{path} is damaged or no SentencePiece model.") from None
        self._pieces = [self._model.id_to_piece(id) for id in range(self._model.vocab_size())]
        super().__init__(config, self._token_list(), self.files)

    def _token_list(self) -> list[str]:
        return self._pieces

    def _usual_names(self, role: str) -> tuple[str, ...]:
        # The model knows its own names; only where it has none the usual ones are tried.
        own = {"pad": "pad_id", "unk": "unk_id", "cls": "bos_id", "sep": "eos_id"}.get(role)
        id = getattr(self._model, own)() if own else -1
        return ((self._pieces[id],) if id >= 0 else ()) + super()._usual_names(role)

    def _usual_special_tokens(self) -> tuple[str, ...]:
        return tuple(piece for id, piece in enumerate(self._pieces) if self._model.is_control(id))

    def _identity(self) -> bytes:
        return self._content

    def _continues(self, token: str) -> bool:
        return token[0].isalnum() and not is_cjk(token[0])

    def _encode_plain(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        if sum(map(len, texts)) < LONG_TEXT * len(texts):
            return flatten(self._model.encode(list(texts), out_type=int, num_threads=cores()))
        ids = self._model.encode(list(texts), out_type="numpy", num_threads=cores())
        return np.concatenate([np.empty(0, np.int32), *ids]), np.array([*map(len, ids)], np.int64)

    def token_starts(self, texts: Sequence[str]) -> Lengths:
        found = self._model.encode(list(texts), out_type="offset_mapping", num_threads=cores())
        starts, counts = flatten([[start for start, _ in text["offsets"]] for text in found])
        return np.repeat(text_starts(texts), counts) + starts

    def decode(self, ids: Sequence[int]) -> str:
        text = ""
        for special, run in itertools.groupby(ids, self.special_ids.__contains__):
            tokens = [self.tokens[id] for id in run]
            if special:
                text += "".join(tokens)
            else:
                text += " " * bool(text and tokens[0].startswith(SPACE)) + self._model.decode_pieces(tokens)
        return text


@TOKENIZERS.register("xlmroberta")
class XLMRobertaTokenizer(SentencePieceTokenizer):
    """A SentencePiece model under fairseq's ids: <s> <pad> </s> <unk>, the pieces from the fourth on, <mask>.

    Equal to Transformers' XLMRobertaTokenizer.
    """

    kind = "xlmroberta"
    _first = ("<s>", "<pad>", "</s>", "<unk>")

    def _token_list(self) -> list[str]:
        return [*self._first, *self._pieces[3:], "<mask>"]

    def _usual_names(self, role: str) -> tuple[str, ...]:
        return {"pad": ("<pad>",), "unk": ("<unk>",), "cls": ("<s>",), "sep": ("</s>",), "mask": ("<mask>",)}[
            role
        ]

    def _usual_special_tokens(self) -> tuple[str, ...]:
        return self._first

    def _encode_plain(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        ids, lengths = super()._encode_plain(texts)
        unknown = ids == self._model.unk_id()
        ids += 1
        ids[unknown] = 3
        return ids, lengths
