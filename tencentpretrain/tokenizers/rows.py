"""Texts as rows for a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tencentpretrain.batch import Batch
from tencentpretrain.errors import ConfigError
from tencentpretrain.tokenizers.base import Tokenizer


def encode(
    tokenizer: Tokenizer, texts: Sequence[str], text_pairs: Sequence[str] | None = None, seq_length: int = 512
) -> Batch:
    """Rows `[CLS] text [SEP]` or `[CLS] text [SEP] pair [SEP]`, cut to `seq_length`, padded to the longest.

    What does not fit is cut from the end of the longer of text and pair, token by token.

    Returns:
        `input_ids` and `segment_ids` [B S], as in `tencentpretrain.batch`.

    Raises:
        ConfigError: texts and pairs differ in number, or `seq_length` leaves no room.
        DataError: the vocabulary has no token to begin, end or pad with.
    """
    import torch  # here, because preprocess.py needs the tokenizers only

    if text_pairs is not None and len(text_pairs) != len(texts):
        raise ConfigError(f"{len(texts)} texts, but {len(text_pairs)} pairs; each text needs one.")
    begin, end, pad = tokenizer.require("cls"), tokenizer.require("sep"), tokenizer.require("pad")
    room = seq_length - (2 if text_pairs is None else 3)
    if room < 1:
        raise ConfigError(f"`seq_length` ({seq_length}) leaves no room for text beside the special tokens.")
    input_rows, segment_rows = [], []
    for first, second in zip(_rows(tokenizer, texts), _rows(tokenizer, text_pairs, len(texts)), strict=True):
        # Half the room is the pair's, and what either leaves free is the other's; the text has the odd token.
        pair_room = max(room // 2, room - len(first))
        second = second[:pair_room]
        first = first[: room - len(second)]
        tail = [] if text_pairs is None else [*second, end]
        input_rows.append(torch.tensor([begin, *first, end, *tail]))
        segment_rows.append(torch.tensor([1] * (len(first) + 2) + [2] * len(tail)))
    if not input_rows:
        empty = torch.zeros(0, 0, dtype=torch.int64)
        return {"input_ids": empty, "segment_ids": empty}
    pad_rows = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad_rows(input_rows, batch_first=True, padding_value=pad),
        "segment_ids": pad_rows(segment_rows, batch_first=True),
    }


def _rows(tokenizer: Tokenizer, texts: Sequence[str] | None, empty: int = 0) -> list[list[int]]:
    if texts is None:
        return [[]] * empty
    ids, lengths = tokenizer.encode_batch(texts)
    return [row.tolist() for row in np.split(ids, np.cumsum(lengths)[:-1])] if len(texts) else []
