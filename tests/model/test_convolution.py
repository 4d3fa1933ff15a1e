"""Gated convolutions and Fourier mixing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_model import VOCABULARY, make_batch, make_config
from torch import nn
from torch.nn import functional as F

from tencentpretrain import ConfigError, build_model
from tencentpretrain.model import Model


def convolutional(**values: Any) -> Model:
    torch.manual_seed(0)
    given = {"embedding": ("word",), "encoder": "gatedcnn", "emb_size": 24, "layers_num": 5, **values}
    model = build_model(make_config(**given), VOCABULARY).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize(("kernel_size", "block_size"), [(4, 2), (1, 1), (3, 3)])
def test_gated_convolutions_follow_the_published_formula(kernel_size: int, block_size: int) -> None:
    """In two dimensions, each of the two convolutions for itself, with both biases."""
    model = convolutional(kernel_size=kernel_size, block_size=block_size)
    encoder, embedded = model.encoder, model.embedding(make_batch())

    def layer(conv: nn.Module, gate: nn.Module, conv_b: nn.Parameter, gate_b: nn.Parameter) -> torch.Tensor:
        return (conv(padded) + conv_b) * torch.sigmoid(gate(padded) + gate_b)

    padded = F.pad(embedded, (0, 0, kernel_size - 1, 0)).unsqueeze(1)  # [B, 1, S, emb_size]
    hidden = layer(encoder.conv_1, encoder.gate_1, encoder.conv_b1, encoder.gate_b1)
    before = hidden
    for number in range(4):
        padded = F.pad(hidden, (0, 0, kernel_size - 1, 0))  # [B, D, S, 1]
        hidden = layer(
            encoder.conv[number], encoder.gate[number], encoder.conv_b[number], encoder.gate_b[number]
        )
        if number % block_size == block_size - 1:
            hidden = before = hidden + before
    torch.testing.assert_close(encoder(embedded, {}), hidden.squeeze(3).mT)


def test_a_position_sees_as_far_back_as_kernels_reach() -> None:
    model, batch = convolutional(kernel_size=3, layers_num=2), make_batch(rows=1)
    before = model.encode(batch)[0]
    for changed in range(12):
        other = batch | {"input_ids": batch["input_ids"].clone()}
        other["input_ids"][0, changed] = (other["input_ids"][0, changed] + 1) % VOCABULARY
        seen = (model.encode(other)[0] - before).abs().amax(-1) > 0
        assert seen.tolist() == [changed <= query <= changed + 4 for query in range(12)]


def fourier(**values: Any) -> Model:
    torch.manual_seed(0)
    return build_model(make_config(encoder="fnet", **values), VOCABULARY).eval()


def test_positions_and_features_are_mixed_by_a_fourier_transform() -> None:
    model, batch = fourier(layers_num=1), make_batch(rows=1)
    (layer,) = model.encoder.transformer
    hidden = model.embedding(batch)
    mixed = torch.fft.fft(torch.fft.fft(hidden, dim=2), dim=1).real
    hidden = layer.layer_norm_1(hidden + mixed)
    expected = layer.layer_norm_2(hidden + layer.feed_forward(hidden))
    torch.testing.assert_close(model.encode(batch), expected)
    assert not any("self_attn" in name for name in model.state_dict())


def test_leading_outputs_of_the_mixing_are_those_of_the_whole() -> None:
    for rows in (1, 3):  # without and with padding
        model, batch = fourier(), make_batch(rows=rows)
        embedded = model.embedding(batch)
        whole = model.encoder(embedded, batch)
        torch.testing.assert_close(model.encoder(embedded, batch, 1), whole[:, :1], rtol=1e-5, atol=1e-6)


def test_padding_is_mixed_in_as_published_where_it_is_a_segment() -> None:
    model, batch = fourier(layers_num=1, embedding=("word",)), make_batch()
    ones = {"input_ids": batch["input_ids"], "segment_ids": torch.ones_like(batch["segment_ids"])}
    published, own = model.encode(ones), model.encode(batch)
    torch.testing.assert_close(published, model.encode({"input_ids": batch["input_ids"]}))
    torch.testing.assert_close(published[0], own[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(published[2, :8], own[2, :8], atol=1e-2)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"encoder": "fnet", "target": ("lm",)}, "target 'lm' needs a decoder behind encoder 'fnet'"),
        ({"encoder": "fnet", "mask": "causal"}, "'fnet' has no attention that `mask` could restrict"),
        (
            {"encoder": "fnet", "sliding_window": 3},
            "`sliding_window` is about attention, which the model does not have",
        ),
        ({"encoder": "lstm", "has_qkv_bias": True}, "`has_qkv_bias` is about attention"),
        (
            {"encoder": "lstm", "decoder": "lstm", "target": ("lm",), "rotary_position_embedding": True},
            "`rotary_position_embedding` is about attention",
        ),
        ({"encoder": "gatedcnn", "mask": "causal_with_prefix"}, "'gatedcnn' has no attention"),
        ({"encoder": "gatedcnn", "has_residual_attention": True}, "`has_residual_attention` is about"),
    ],
)
def test_what_encoders_without_attention_cannot_do_is_said(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make_config(**values)
