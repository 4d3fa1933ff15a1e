"""Layers against the formulas they implement."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tencentpretrain.config import ModelConfig
from tencentpretrain.layers import attention
from tencentpretrain.layers.attention import MultiHeadedAttention
from tencentpretrain.layers.dropout import LEVELS, dropout
from tencentpretrain.layers.masks import MASKS, Positions
from tencentpretrain.layers.norm import LayerNorm, RMSNorm
from tencentpretrain.layers.pooling import pool
from tencentpretrain.layers.vocabulary import CHUNK, vocabulary_loss


def test_layer_norm_is_torchs_under_published_names() -> None:
    hidden = torch.randn(3, 5, 16)
    ours, theirs = LayerNorm(16, 1e-12), nn.LayerNorm(16, eps=1e-12)
    with torch.no_grad():
        ours.gamma.normal_()
        ours.beta.normal_()
        theirs.weight.copy_(ours.gamma)
        theirs.bias.copy_(ours.beta)
    assert torch.equal(ours(hidden), theirs(hidden))


def test_rms_norm_divides_by_the_root_mean_square() -> None:
    hidden, norm = torch.randn(3, 5, 16), RMSNorm(16, 1e-6)
    with torch.no_grad():
        norm.weight.normal_()
    expected = norm.weight * hidden / (hidden.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(norm(hidden), expected)


@pytest.mark.parametrize("rows", [0, 1, CHUNK, 2 * CHUNK + 3])
@pytest.mark.parametrize("with_bias", [True, False])
def test_chunked_vocabulary_loss_equals_cross_entropy(rows: int, with_bias: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(rows, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(31, 8, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(31, dtype=torch.float64, requires_grad=True) if with_bias else None
    labels = torch.randint(0, 31, (rows,))
    labels[::3] = -100
    leaves = [leaf for leaf in (hidden, weight, bias) if leaf is not None]

    logits = F.linear(hidden, weight, bias)
    expected = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    wanted = torch.autograd.grad(expected * 0.37, leaves)
    loss, correct = vocabulary_loss(hidden, weight, bias, labels)
    got = torch.autograd.grad(loss * 0.37, leaves)

    torch.testing.assert_close(loss, expected.to(loss.dtype))
    assert int(correct) == int(((logits.argmax(1) == labels) & (labels != -100)).sum())
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_vocabulary_loss_follows_autocast() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(40, 16, requires_grad=True)
    weight = torch.randn(50, 16, requires_grad=True)
    labels = torch.randint(0, 50, (40,))
    exact = F.cross_entropy(hidden @ weight.T, labels, reduction="sum")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = vocabulary_loss(hidden, weight, None, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=1e-2, atol=0)
    (gradient,) = torch.autograd.grad(loss, [weight])
    (wanted,) = torch.autograd.grad(exact, [weight])
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=0.02 * float(wanted.abs().max()))


def test_vocabulary_loss_without_gradients() -> None:
    weight = torch.randn(5, 4, requires_grad=True)
    with (
        torch.no_grad(),
        mock.patch("torch.zeros_like", side_effect=AssertionError("a gradient is computed")),
    ):
        vocabulary_loss(torch.zeros(3, 4), weight, None, torch.tensor([1, 2, -100]))
    with torch.no_grad():
        loss, _ = vocabulary_loss(torch.zeros(3, 4), torch.zeros(5, 4), None, torch.tensor([1, 2, -100]))
    torch.testing.assert_close(loss, 2 * torch.tensor(5.0).log())


def test_pooling_ignores_padding() -> None:
    hidden = torch.arange(12.0).view(1, 4, 3)
    segments = torch.tensor([[1, 2, 2, 0]])
    assert pool(hidden, segments, "first").tolist() == [[0, 1, 2]]
    assert pool(hidden, segments, "last").tolist() == [[6, 7, 8]]
    assert pool(hidden, segments, "mean").tolist() == [[3, 4, 5]]
    assert pool(-hidden, segments, "max").tolist() == [[0, -1, -2]]
    assert pool(hidden, None, "last").tolist() == [[9, 10, 11]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.1, 0.5, 1.0])
def test_dropout_zeroes_its_share_and_keeps_the_mean(dtype: torch.dtype, probability: float) -> None:
    torch.manual_seed(0)
    hidden = torch.ones(99, 1001, dtype=dtype, requires_grad=True)
    output = dropout(hidden, probability, training=True)
    (gradient,) = torch.autograd.grad(output.sum(), [hidden])
    assert torch.equal(gradient, output.detach())  # ones in: what passed forward passes back, equally scaled
    share = float((output == 0).float().mean())
    deviation = (probability * (1 - probability) / hidden.numel()) ** 0.5
    assert abs(share - probability) <= 5 * deviation + 1 / LEVELS
    if probability < 1:
        kept = output.detach()[output != 0].float()
        assert float(kept.min()) == float(kept.max()) == pytest.approx(1 / (1 - probability), rel=1e-2)
    neighbours = (output[:, :-1] == 0) & (output[:, 1:] == 0)
    assert abs(float(neighbours.float().mean()) - probability**2) < 0.01


def test_dropout_follows_the_seed_and_is_off_in_evaluation() -> None:
    hidden = torch.randn(7, 5)
    outputs = []
    for _ in range(2):
        torch.manual_seed(3)
        outputs.append(dropout(hidden, 0.3, training=True))
    assert torch.equal(*outputs)
    assert not torch.equal(dropout(hidden, 0.3, training=True), outputs[0])
    assert dropout(hidden, 0.3, training=False) is hidden


@pytest.mark.parametrize("mask", ["fully_visible", "causal", "causal_with_prefix"])
@pytest.mark.parametrize("remove_attention_scale", [True, False])
def test_attention_with_dropout_is_the_same_attention(
    mask: str, remove_attention_scale: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "CAUSAL_ROWS", 4)
    config = ModelConfig(
        hidden_size=32,
        emb_size=32,
        heads_num=4,
        mask=mask,
        dropout=1e-9,
        remove_attention_scale=remove_attention_scale,
    )
    layer = MultiHeadedAttention(config)
    hidden, segments = torch.randn(3, 6, 32, requires_grad=True), torch.tensor([[1, 1, 1, 2, 2, 0]] * 3)
    visible = MASKS[mask](Positions(segments, 6, 6, hidden.device))
    weights = torch.randn(3, 6, 32)
    expected, output = (layer.train(mode)(hidden, hidden, visible)[0] for mode in (False, True))
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-6)
    gradients = [torch.autograd.grad((one * weights).sum(), hidden)[0] for one in (output, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
