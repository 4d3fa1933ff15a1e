from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tencentpretrain.errors import DataError
from tencentpretrain.tasks import examples as module
from tencentpretrain.tasks.examples import TextExamples, evaluation_batches, training_batches
from tencentpretrain.tokenizers import Tokenizer, encode

TEXTS = ["w1 w2 w3 good", "", "bad", "w5 " * 40, "[SEP] w1", "w1 unknown 中文"]
PAIRS = ["w7", "w8 " * 30, "", "w9 " * 40, "w1 [CLS]", "good"]


def row(examples: TextExamples, index: int) -> tuple[list[int], list[int]]:
    """Ids and segments of one example without padding."""
    batch = examples.batch(np.array([index]))
    real = batch["segment_ids"][0] > 0
    return batch["input_ids"][0, real].tolist(), batch["segment_ids"][0, real].tolist()


@pytest.mark.parametrize("pairs", [None, PAIRS])
@pytest.mark.parametrize("seq_length", [4, 9, 10, 32])
def test_rows_are_those_of_encode(tokenizer: Tokenizer, pairs: list[str] | None, seq_length: int) -> None:
    plain = [number for number in range(len(TEXTS)) if number != 4]  # written-out special tokens: see below
    texts, seconds = [TEXTS[i] for i in plain], [pairs[i] for i in plain] if pairs else None
    examples = TextExamples(tokenizer, texts, seconds, seq_length)
    expected = encode(tokenizer, texts, seconds, seq_length=seq_length)
    batch = examples.batch(np.arange(len(texts)))
    width = expected["input_ids"].shape[1]
    for name in ("input_ids", "segment_ids"):
        assert torch.equal(batch[name][:, :width], expected[name])
        assert not batch[name][:, width:].any()
    assert examples.lengths.tolist() == (expected["segment_ids"] > 0).sum(1).tolist()


@settings(max_examples=60, deadline=None)
@given(a=st.integers(0, 40), b=st.integers(0, 40), seq_length=st.integers(4, 40))
def test_a_pair_loses_tokens_of_the_longer_text_one_by_one(
    tokenizer: Tokenizer, a: int, b: int, seq_length: int
) -> None:
    left, right = a, b
    while left + right > seq_length - 3:
        left, right = (left - 1, right) if left > right else (left, right - 1)
    examples = TextExamples(tokenizer, ["w1 " * a], ["w2 " * b], seq_length)
    cls, sep, one, two = (tokenizer.ids[token] for token in ("[CLS]", "[SEP]", "w1", "w2"))
    assert row(examples, 0) == (
        [cls, *[one] * left, sep, *[two] * right, sep],
        [1] * (left + 2) + [2] * (right + 1),
    )


def test_special_tokens_written_in_a_text_are_special_as_in_transformers(tokenizer: Tokenizer) -> None:
    ids, _ = row(TextExamples(tokenizer, ["[MASK] w1"], None, 32), 0)
    cls, mask, word, sep = (tokenizer.ids[token] for token in ("[CLS]", "[MASK]", "w1", "[SEP]"))
    assert ids == [cls, mask, word, sep]


def test_rows_do_not_depend_on_the_batch_and_fields_follow_them(tokenizer: Tokenizer) -> None:
    examples = TextExamples(tokenizer, TEXTS, PAIRS, 20, {"numbers": torch.arange(len(TEXTS))})
    order = np.array([3, 0, 5, 3])
    batch = examples.batch(order)
    assert batch["numbers"].tolist() == order.tolist()
    for place, index in enumerate(order):
        real = batch["segment_ids"][place] > 0
        assert batch["input_ids"][place, real].tolist() == row(examples, int(index))[0]
        assert not batch["input_ids"][place, ~real].any()


def test_a_vocabulary_without_what_a_row_needs_is_named(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "sep_id", None)
    with pytest.raises(DataError, match="has no sep token"):
        TextExamples(tokenizer, ["w1"], None, 8)


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 128), min_size=1, max_size=300),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    epoch=st.integers(1, 5),
)
def test_an_epoch_has_every_example_once_in_full_batches(
    lengths: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    array = np.array(lengths)
    for batches in (training_batches(array, batch_size, seed, epoch), evaluation_batches(array, batch_size)):
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
        assert sorted(map(len, batches), reverse=True)[:-1] == [batch_size] * (len(batches) - 1)


def test_training_batches_are_random_and_hardly_padded() -> None:
    lengths = np.random.default_rng(0).integers(2, 128, 8000)
    first, second = (training_batches(lengths, 32, 7, epoch) for epoch in (1, 2))
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in first)
    assert padded < 1.04 * lengths.sum()
    assert {frozenset(batch.tolist()) for batch in first}.isdisjoint(
        frozenset(batch.tolist()) for batch in second
    )
    # Long and short batches alternate at random: the mean length of the first half is that of the whole.
    half = np.concatenate(first[: len(first) // 2])
    assert abs(lengths[half].mean() - lengths.mean()) < 8
    again = training_batches(lengths, 32, 7, 1)
    assert np.array_equal(np.concatenate(first), np.concatenate(again))
    assert len(lengths) > module.WINDOW_BATCHES * 32  # else windows were not tested
    assert not np.array_equal(np.concatenate(first), np.concatenate(training_batches(lengths, 32, 8, 1)))
