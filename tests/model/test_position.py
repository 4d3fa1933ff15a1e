"""Positions that attention knows, against Transformers: rotation, distances in buckets, linear biases."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from tencentpretrain.config import ModelConfig
from tencentpretrain.errors import ConfigError
from tencentpretrain.layers.position import (
    RelativePositionEmbedding,
    Rotary,
    alibi_bias,
    distance_buckets,
)

os.environ.setdefault("HF_HUB_OFFLINE", "1")

CPU = torch.device("cpu")
LONGEST = 64
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


def config(head_size: int, theta: float, scaling: dict[str, Any], **changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "hidden_size": 4 * head_size,
        "emb_size": 4 * head_size,
        "heads_num": 4,
        "max_seq_length": LONGEST,
        "rotary_position_embedding": True,
        "rope_theta": theta,
        "rope_scaling": scaling,
    }
    return ModelConfig(**{**values, **changes})


SCALINGS = [
    {"rope_type": "linear", "factor": 1.0},
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "dynamic", "factor": 1.0},
    {"rope_type": "dynamic", "factor": 4.0},
    {**LLAMA3, "original_max_position_embeddings": 16},
    {**LLAMA3, "original_max_position_embeddings": 8192},
    {**LLAMA3, "factor": 32.0, "high_freq_factor": 2.0, "original_max_position_embeddings": 512},
    YARN,
    {**YARN, "factor": 1.0},
    {**YARN, "factor": 40.0, "original_max_position_embeddings": 4096},
    {**YARN, "attention_factor": 0.8},
    {**YARN, "attention_factor": 1.0},
    {**YARN, "beta_fast": 16.0, "beta_slow": 2.0},
    {**YARN, "beta_fast": 2.0, "beta_slow": 2.0, "truncate": False},  # a ramp of no width
    {**YARN, "beta_fast": None, "beta_slow": None},
    {**YARN, "truncate": False},
    {**YARN, "truncate": True},
    {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
    {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    {**YARN, "mscale": 0.7},
    {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3, "attention_factor": 0.5},
    # So short that whole pairs turn less than once, and the ramp lies at the ends.
    {**YARN, "original_max_position_embeddings": 4},
    {**YARN, "original_max_position_embeddings": 2, "truncate": False},
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize(("head_size", "theta"), [(8, 10000.0), (64, 500000.0), (128, 20.0), (6, 1e6)])
def test_speeds_of_scaled_rotation(scaling: dict[str, Any], head_size: int, theta: float) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    theirs = LlamaConfig(
        hidden_size=4 * head_size,
        num_attention_heads=4,
        max_position_embeddings=LONGEST,
        rope_parameters={"rope_theta": theta, **scaling},
    )
    rotary = Rotary(config(head_size, theta, scaling))
    for length in (5, LONGEST, LONGEST + 1, 200):
        speeds, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](theirs, CPU, seq_len=length)
        rotation = rotary(length, None, 0, CPU)
        angles = torch.arange(length)[:, None].double() * speeds.double()
        expected = torch.stack([angles.cos(), angles.sin()]) * factor
        ours = torch.stack([rotation.cos[0, 0], rotation.sin[0, 0]]).double()
        assert ours.shape == (2, length, head_size // 2)
        # In single precision an angle of some hundred is exact to 1e-5.
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6 + 3e-7 * length)


def test_speeds_without_scaling() -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    for given in ({}, {"rope_type": "default"}):
        theirs = LlamaConfig(hidden_size=32, num_attention_heads=4, rope_parameters={"rope_theta": 5000.0})
        positions = torch.tensor([[0, 3, 1, 7], [2, 2, 9, 100]])
        cos, sin = LlamaRotaryEmbedding(theirs)(torch.zeros(1), positions)
        rotation = Rotary(config(8, 5000.0, given))(4, positions, 0, CPU)
        torch.testing.assert_close(rotation.cos[:, 0], cos[..., :4])
        torch.testing.assert_close(rotation.sin[:, 0], sin[..., :4])


def test_dynamic_counts_from_the_length_trained_on() -> None:
    dynamic = {"rope_type": "dynamic", "factor": 2.0}
    plain = Rotary(config(8, 10000.0, {}))
    rotary = Rotary(config(8, 10000.0, dynamic))
    same = [
        torch.equal(rotary(length, None, 0, CPU).cos, plain(length, None, 0, CPU).cos)
        for length in (LONGEST, LONGEST + 1)
    ]
    assert same == [True, False]


@pytest.mark.parametrize("scaling", [{}, {"rope_type": "dynamic", "factor": 2.0}, YARN])
def test_rotation_after_earlier_positions(scaling: dict[str, Any]) -> None:
    rotary = Rotary(config(8, 10000.0, scaling))
    whole, last = rotary(100, None, 0, CPU), rotary(3, None, 97, CPU)
    torch.testing.assert_close(whole.cos[:, :, 97:], last.cos, rtol=0, atol=0)
    torch.testing.assert_close(whole.sin[:, :, 97:], last.sin, rtol=0, atol=0)


def test_rotated_products_depend_on_the_distance_only() -> None:
    query, key = torch.randn(2, 1, 2, 1, 8, generator=torch.Generator().manual_seed(0)).double()
    rotary = Rotary(config(8, 100.0, {}))

    def product(asks: int, answers: int) -> torch.Tensor:
        turned = [
            rotary(1, torch.tensor([[position]]), 0, CPU).apply(states)
            for position, states in ((asks, query), (answers, key))
        ]
        return (turned[0] * turned[1]).sum(-1)

    torch.testing.assert_close(product(9, 4), product(105, 100), rtol=0, atol=1e-4)
    assert not torch.allclose(product(9, 4), product(9, 5), rtol=0, atol=1e-3)


def test_rotation_turns_neighbours_and_keeps_the_type() -> None:
    rotation = Rotary(config(4, 10000.0, {}))(2, None, 0, CPU)
    states = torch.tensor([1.0, 0.0, 0.0, 2.0]).expand(1, 1, 2, 4)
    turned = rotation.apply(states)[0, 0]
    fast, slow = torch.tensor(1.0), torch.tensor(0.01)
    expected = torch.stack([fast.cos(), fast.sin(), -2 * slow.sin(), 2 * slow.cos()])
    torch.testing.assert_close(turned, torch.stack([states[0, 0, 0], expected]))
    assert rotation.apply(states.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("scaling", "said"),
    [
        ({"rope_type": "longrope"}, "rope_type is longrope; expected one of default, linear, dynamic"),
        ({"rope_type": "linear"}, "needs a number `factor` above 0"),
        ({"rope_type": "dynamic", "factor": -1}, "needs a number `factor` above 0"),
        ({"rope_type": "yarn", "factor": True}, "needs a number `factor` above 0"),
        ({"rope_type": "llama3", "factor": 8.0}, "needs a number `low_freq_factor`"),
        ({**LLAMA3, "low_freq_factor": 4.0}, "`low_freq_factor` and `high_freq_factor` must differ"),
        ({**YARN, "original_max_position_embeddings": "long"}, "`original_max_position_embeddings`"),
        ({**YARN, "attention_factor": "1"}, "`attention_factor`"),
        ({**YARN, "truncate": 1}, "`truncate` must be true or false"),
        ({**YARN, "betafast": 3}, "has no `betafast` .did you mean 'beta_fast'"),
    ],
)
def test_scaling_that_cannot_be(scaling: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config(8, 10000.0, scaling)


def test_older_name_of_the_type() -> None:
    older, today = (
        Rotary(config(8, 10000.0, {name: "linear", "factor": 3.0}))(9, None, 0, CPU).cos
        for name in ("type", "rope_type")
    )
    assert torch.equal(older, today)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("buckets", [4, 5, 6, 8, 31, 32, 33, 64, 128])
@pytest.mark.parametrize("furthest", [65, 100, 128, 129, 256, 1000])
def test_buckets_of_distances(buckets: int, furthest: int, bidirectional: bool) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    relative = RelativePositionEmbedding(
        ModelConfig(
            relative_position_embedding=True,
            relative_attention_buckets_num=buckets,
            relative_attention_max_distance=furthest,
        ),
        bidirectional,
    )
    distances = torch.arange(-1200, 1201)
    expected = T5Attention._relative_position_bucket(distances, bidirectional, buckets, furthest)
    assert torch.equal(distance_buckets(distances, buckets, furthest, bidirectional), expected)
    # The bias of the last queries is that part of the whole.
    whole, last = relative(9, 9), relative(2, 9)
    assert whole.shape == (1, 12, 9, 9)
    assert torch.equal(whole[:, :, 7:], last)
    table = relative.relative_attention_bias.weight
    assert torch.equal(whole[0, :, 2, 5], table[expected[1200 + 3]])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"relative_attention_buckets_num": 3}, "`relative_attention_buckets_num`"),
        ({"relative_attention_max_distance": 16}, "`relative_attention_max_distance`"),
    ],
)
def test_buckets_that_cannot_be(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ModelConfig(relative_position_embedding=True, **changes)


@pytest.mark.parametrize("heads", [*range(1, 17), 20, 32, 48, 112])
def test_linear_biases(heads: int) -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    expected = build_alibi_tensor(torch.ones(1, 11), heads, torch.float32)
    torch.testing.assert_close(alibi_bias(heads, 11, CPU)[0], expected, rtol=1e-6, atol=0)
