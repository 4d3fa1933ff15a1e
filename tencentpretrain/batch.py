"""The vocabulary of the project: the names, shapes and meanings of everything that flows through a model.

Letters: B rows, S sequence, T target sequence, N predicted positions of the whole batch. A plug-in may add
its fields to FIELDS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

# Models of two streams take a batch {"stream_0": Batch, "stream_1": Batch}.
Batch: TypeAlias = "dict[str, Tensor]"  # preprocess.py reads this file and needs no torch

IGNORED = -100  # the label of a position where nothing is predicted


class Field(NamedTuple):
    shape: str
    dtype: str
    meaning: str


FIELDS: dict[str, Field] = {
    "input_ids": Field("B S", "int64", "token ids, padded on the right"),
    "segment_ids": Field(
        "B S", "int64", "0 padding, 1 first segment, 2 second; absent: one segment, no padding"
    ),
    "position_ids": Field("B S", "int64", "positions; absent: 0, 1, 2 … in every row"),
    "decoder_input_ids": Field("B T", "int64", "what a decoder reads, padded on the right"),
    "decoder_segment_ids": Field("B T", "int64", "0 padding, 1 text; absent: no padding"),
    "decoder_position_ids": Field("B T", "int64", "positions; absent: 0, 1, 2 … in every row"),
    "document_ids": Field("B S", "int64", "packed rows: 0 padding, 1 the first document, 2 the second …"),
    "document_starts": Field(
        "N",
        "int64",
        "packed rows: flat positions in [B·S] where samples begin; fields of [B] are of [N] then",
    ),
    "mlm_labels": Field("B S", "int64", "the original token where one was hidden, else -100"),
    "lm_labels": Field(
        "B S", "int64", "the next token, -100 where nothing follows; [B T] where there is a decoder: its own"
    ),
    "bilm_labels": Field("B S 2", "int64", "the next and the previous token, -100 where there is none"),
    "mlm_positions": Field(
        "N", "int64", "flat positions in [B·S] of the labels that are not -100; saves a search"
    ),
    "lm_positions": Field("N", "int64", "the same for lm_labels"),
    "bilm_positions": Field("N", "int64", "the same for bilm_labels, in [B·S·2]"),
    "sp_labels": Field(
        "B", "int64", "0: the second segment follows the first, 1: it does not, -100: there is none"
    ),
    "cls_labels": Field("B", "int64", "class of the row"),
    "pooled_positions": Field(
        "B S", "int64", "1 where states are pooled into a vector; absent: all that is not padding"
    ),
    "soft_labels": Field("B C", "float32", "logits of a teacher, one per class"),
}


# What a module reads, to what it is called on the decoder's side.
DECODER_SIDE = {name: f"decoder_{name}" for name in ("input_ids", "segment_ids", "position_ids")}


def second_segment_only(labels: Tensor, segment_ids: Tensor) -> Tensor:
    """Labels [B, S] of next tokens, -100 where the next token is not of the second segment."""
    second = segment_ids == 2
    return labels.masked_fill(~(second | second.roll(-1, 1)), IGNORED)  # the last of the first segment counts


def labels_of(target: str) -> str:
    """Name of the batch field that holds a target's labels."""
    return f"{target}_labels"


def positions_of(target: str) -> str:
    """Name of the batch field that holds the flat positions of a target's labels."""
    return f"{target}_positions"
