"""Generation against the plain way: the whole text of one row through the model again for every token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tencentpretrain import ConfigError, DataError, build_model
from tencentpretrain.batch import Batch
from tencentpretrain.config import ModelConfig
from tencentpretrain.decoders.transformer import TransformerDecoder
from tencentpretrain.encoders.transformer import TransformerEncoder
from tencentpretrain.generation import Continuation, generate, greedy
from tencentpretrain.layers.position import Rotary, Rotation
from tencentpretrain.model import Model
from tencentpretrain.targets.lm import LmTarget

VOCABULARY = 53
START = 3
SMALL = {
    "hidden_size": 32, "emb_size": 32, "feedforward_size": 48, "heads_num": 4, "layers_num": 3,
    "max_seq_length": 64, "target": ("lm",), "dropout": 0.1,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "none": {},
    "learned": {"embedding": ("word", "pos", "seg"), "tgt_embedding": ("word", "pos", "seg")},
    "sinusoidal": {"embedding": ("word", "sinusoidalpos"), "tgt_embedding": ("word", "sinusoidalpos")},
    "rotary": {"rotary_position_embedding": True},
    "rotary_yarn": {
        "rotary_position_embedding": True,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
        "max_seq_length": 16,
    },
    "t5": {"relative_position_embedding": True, "relative_attention_buckets_num": 8},
    "grouped_query": {"rotary_position_embedding": True, "local_kv_heads_num": 2, "has_qk_norm": True},
    "pre_norm": {"layernorm_positioning": "pre", "embedding": ("word", "pos")},
}
CAUSAL: dict[str, dict[str, Any]] = {
    **{
        kind: {name: value for name, value in values.items() if name != "tgt_embedding"}
        for kind, values in KINDS.items()
    },
    "alibi": {"alibi_position_embedding": True, "heads_num": 2},
    "window": {"rotary_position_embedding": True, "sliding_window": 3},
    "prefix": {"mask": "causal_with_prefix", "embedding": ("word", "pos", "seg")},
    "prefix_t5": {"mask": "causal_with_prefix", "relative_position_embedding": True},
    "residual": {"has_residual_attention": True, "embedding": ("word", "pos")},
    "residual_pre_norm": {
        "has_residual_attention": True,
        "relative_position_embedding": True,
        "layernorm_positioning": "pre",
    },
    "shared_layers": {"parameter_sharing": True, "embedding": ("word", "pos")},
    "factorized": {
        "factorized_embedding_parameterization": True,
        "emb_size": 16,
        "embedding": ("word", "pos"),
    },
}


def make_model(**values: Any) -> Model:
    """Random weights that are large enough for texts that do not repeat a token for ever."""
    torch.manual_seed(0)
    decoder = {"decoder": "transformer"} if values.pop("seq2seq", False) else {"mask": "causal"}
    model = build_model(ModelConfig(**{**SMALL, **decoder, **values}), VOCABULARY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.4 if parameter.ndim > 1 else 0.1)
    return model


def prompts(lengths: tuple[int, ...]) -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, VOCABULARY, (len(lengths), max(lengths)), generator=generator)
    used = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {"input_ids": ids * used, "segment_ids": used.long()}


def row_of(batch: Batch, row: int) -> Batch:
    """One row without its padding, on both sides."""
    alone = {}
    for side in ("", "decoder_"):
        if f"{side}segment_ids" in batch:
            used = batch[f"{side}segment_ids"][row] > 0
            for name in (f"{side}input_ids", f"{side}segment_ids"):
                alone[name] = batch[name][row][used][None]
    return alone


def expected_logits(model: Model, batch: Batch, tokens: Tensor) -> Tensor:
    """After each of the tokens that follow a single row's prompt, without cache: [new, V]."""
    side = "" if model.decoder is None else "decoder_"
    ids, segments = batch[f"{side}input_ids"], batch[f"{side}segment_ids"]
    segment = 2 if model.config.mask == "causal_with_prefix" and not side else 1
    target = cast(LmTarget, model.target["lm"])
    logits = []
    with torch.no_grad():
        for step in range(len(tokens)):
            text = torch.cat([ids, tokens[None, :step]], 1)
            marked = torch.cat([segments, torch.full((1, step), segment)], 1)
            hidden = model.encode({**batch, f"{side}input_ids": text, f"{side}segment_ids": marked})
            logits.append(target.logits(hidden[0, -1]))
    return torch.stack(logits)


def check_steps(model: Model, batch: Batch, steps: int) -> None:
    """Logits of every step and row are those of the row alone, computed anew from the start."""
    tokens = torch.randint(0, VOCABULARY, (len(batch["input_ids"]), steps))
    got = []
    with torch.inference_mode():
        text = Continuation(model.eval(), batch)
        for step in range(steps):
            got.append(text.logits())
            text.append(tokens[:, step])
    for row in range(len(tokens)):
        wanted = expected_logits(model, row_of(batch, row), tokens[row])
        torch.testing.assert_close(torch.stack(got)[:, row], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", CAUSAL)
def test_every_step_of_every_row_is_that_of_the_row_alone_without_a_cache(kind: str) -> None:
    check_steps(make_model(**CAUSAL[kind]), prompts((7, 3, 1)), 10)


@pytest.mark.parametrize("kind", KINDS)
def test_decoders_continue_prompts_of_different_lengths_from_sources_of_different_lengths(kind: str) -> None:
    model = make_model(seq2seq=True, **KINDS[kind])
    targets = {f"decoder_{name}": tensor for name, tensor in prompts((1, 4, 2)).items()}
    check_steps(model, prompts((5, 2, 9)) | targets, 8)


def test_the_most_probable_token_is_chosen_and_read_next() -> None:
    model, batch = make_model(rotary_position_embedding=True), prompts((7, 3))
    tokens = greedy(model, batch, 12)
    assert len(set(tokens.flatten().tolist())) > 2  # else the test would see nothing
    model.eval()
    for row in range(2):
        assert torch.equal(expected_logits(model, row_of(batch, row), tokens[row]).argmax(-1), tokens[row])


@pytest.mark.parametrize("seq2seq", [False, True])
def test_without_a_cache_generation_is_the_same(seq2seq: bool) -> None:
    model, batch = make_model(seq2seq=seq2seq, relative_position_embedding=True), prompts((6, 2, 4))
    expected = greedy(model, batch, 10, start_id=START)
    with (
        mock.patch.object(TransformerEncoder, "caches", False),
        mock.patch.object(TransformerDecoder, "caches", False),
    ):
        assert torch.equal(greedy(model, batch, 10, start_id=START), expected)


def test_a_dynamic_base_turns_each_position_as_at_the_time_it_was_read() -> None:
    """As in Transformers: keys in the cache are not turned again when the base grows."""
    longest, factor, prompt = 8, 2.0, 5
    scaling = {"rope_type": "dynamic", "factor": factor}
    model = make_model(rotary_position_embedding=True, rope_scaling=scaling, max_seq_length=longest)
    batch = prompts((prompt,))
    with torch.inference_mode():
        text = Continuation(model.eval(), batch)
        got, tokens = [], []
        for _ in range(12):
            got.append(text.logits())
            tokens.append(got[-1].argmax(-1))
            text.append(tokens[-1])

    def turned(self: Rotary, length: int, position_ids: Any, past: int, device: torch.device) -> Rotation:
        angles = torch.zeros(length, self.size // 2)
        for position in range(length):
            read_at = max(position + 1, prompt)
            stretch = factor * max(read_at, longest) / longest - (factor - 1)
            base = 10000.0 * stretch ** (self.size / (self.size - 2))
            angles[position] = position / base ** (torch.arange(0, self.size, 2) / self.size)
        return Rotation(angles.cos()[None, None], angles.sin()[None, None])

    with mock.patch.object(Rotary, "__call__", turned):
        wanted = expected_logits(model, batch, torch.cat(tokens))
    torch.testing.assert_close(torch.cat(got), wanted, rtol=1e-4, atol=1e-4)


def test_padding_on_the_left_is_understood_too() -> None:
    model, batch = make_model(embedding=("word", "pos")), prompts((7, 3, 1))
    left = {name: tensor.clone() for name, tensor in batch.items()}
    for row, length in enumerate((7, 3, 1)):
        for tensor in left.values():
            tensor[row] = tensor[row].roll(7 - length)
    assert torch.equal(greedy(model, left, 9), greedy(model, batch, 9))


def test_given_positions_are_counted_on() -> None:
    model, batch = make_model(embedding=("word", "pos")), prompts((4,))
    shifted = greedy(model, batch | {"position_ids": torch.arange(10, 14)[None]}, 9)
    weight: Any = model.embedding.get_submodule("pos.embedding").weight
    with torch.no_grad():
        weight.copy_(weight.roll(-10, 0))
    assert torch.equal(greedy(model, batch, 9), shifted)


def test_absent_segments_are_one_segment() -> None:
    model, batch = make_model(embedding=("word", "pos", "seg")), prompts((4, 4))
    assert torch.equal(greedy(model, {"input_ids": batch["input_ids"]}, 6), greedy(model, batch, 6))


def test_a_row_ends_with_its_token_and_is_filled_up() -> None:
    model, batch = make_model(embedding=("word", "pos")), prompts((7, 3, 1))
    free = greedy(model, batch, 12)
    eos = int(free[1, 2])
    ended = greedy(model, batch, 12, eos_id=eos, pad_id=4)
    for row, tokens in enumerate(free.tolist()):
        end = tokens.index(eos) + 1 if eos in tokens else 12
        assert ended[row].tolist() == tokens[:end] + [4] * (ended.shape[1] - end)


def script(*rows: list[int]) -> Callable[[Tensor], Tensor]:
    steps = iter(zip(*rows, strict=True))
    return lambda logits: torch.tensor(next(steps))


def test_generation_stops_when_every_row_has_ended() -> None:
    model, batch = make_model(), prompts((2, 2))
    tokens = generate(model, batch, 6, script([7, 9, 7, 8], [7, 7, 7, 9]), eos_id=9, pad_id=1)
    assert tokens.tolist() == [[7, 9, 1, 1], [7, 7, 7, 9]]  # a fifth step would have no tokens
    assert greedy(model, batch, 0).shape == (2, 0)


def test_generation_is_evaluation_and_leaves_the_model_as_it_was() -> None:
    model, batch = make_model(), prompts((3, 2))
    model.train()
    first = greedy(model, batch, 8)
    assert model.training and model.encoder.training
    assert torch.equal(greedy(model, batch, 8), first)  # dropout would differ
    model.eval()
    greedy(model, batch, 1)
    assert not model.training
    model.train()
    with pytest.raises(DataError):
        greedy(model, {"input_ids": torch.ones(1, 0, dtype=torch.int64)}, 1)
    assert model.training


@pytest.mark.parametrize("seq2seq", [False, True])
def test_with_a_cache_every_token_is_computed_once(seq2seq: bool) -> None:
    model, batch, new = make_model(seq2seq=seq2seq, layers_num=1), prompts((9, 5)), 128
    reader = model.embedding if model.tgt_embedding is None else model.tgt_embedding
    read, encoded = [], []
    reader.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]["input_ids"].shape[1]))
    model.encoder.register_forward_pre_hook(lambda module, inputs: encoded.append(inputs[0].shape[1]))
    with FlopCounterMode(display=False) as counter:
        tokens = greedy(model, batch, new, start_id=START)
    generated = counter.get_total_flops()
    assert read == [1 if seq2seq else 9] + [1] * (new - 1)
    assert encoded == ([9] if seq2seq else read)

    side = "decoder_" if seq2seq else ""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        hidden = model.encode(
            batch | {f"{side}input_ids": tokens, f"{side}segment_ids": torch.ones_like(tokens)}
        )
        cast(LmTarget, model.target["lm"]).logits(hidden)
    assert 0 < generated < 1.1 * counter.get_total_flops()  # no more than reading the whole text once


def test_what_cannot_be_generated_is_said() -> None:
    batch = prompts((3, 2))
    masked = build_model(ModelConfig(**{**SMALL, "target": ("mlm",)}), VOCABULARY)
    with pytest.raises(ConfigError, match="needs the target 'lm', but `target` is mlm"):
        greedy(masked, batch, 1)
    with pytest.raises(DataError, match="start_id"):
        greedy(make_model(seq2seq=True), batch, 1)
    with pytest.raises(DataError, match="at least one token in every row"):
        greedy(make_model(), prompts((3, 0)), 1)
    learned = make_model(embedding=("word", "pos"), max_seq_length=8)
    assert greedy(learned, batch, 6).shape == (2, 6)  # the last token is not read
    with pytest.raises(DataError, match="prompts of up to 3 tokens and 7 new ones"):
        greedy(learned, batch, 7)
