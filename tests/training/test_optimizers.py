from __future__ import annotations

import torch
from torch import Tensor, nn

from tencentpretrain.config import OptimizationConfig
from tencentpretrain.training.optimizers import Adafactor, make_optimizer


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(5, 3)
        self.linear = nn.Linear(3, 5)
        self.norm = nn.LayerNorm(3)
        self.linear.weight = self.word.weight  # tied


def test_matrices_decay_and_vectors_do_not() -> None:
    model = Small()
    model.norm.weight.requires_grad_(False)
    optimizer = make_optimizer(model, OptimizationConfig(weight_decay=0.1))
    decayed, free = optimizer.param_groups
    assert [tuple(weight.shape) for weight in decayed["params"]] == [(5, 3)]  # once, although tied
    assert [tuple(weight.shape) for weight in free["params"]] == [(5,), (3,)]
    assert decayed["weight_decay"] == 0.1 and free["weight_decay"] == 0


def test_adamw_is_the_published_one() -> None:
    model = nn.Linear(3, 2)
    weight = model.weight.detach().double().clone()
    config = OptimizationConfig(learning_rate=0.01, weight_decay=0.1, beta1=0.8, beta2=0.9, adam_eps=1e-6)
    optimizer = make_optimizer(model, config)
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["fused"]
    first, second = torch.zeros(2, 3).double(), torch.zeros(2, 3).double()
    for step in range(1, 6):
        gradient = torch.randn(2, 3, generator=torch.Generator().manual_seed(step))
        model.weight.grad = gradient.clone()
        optimizer.step()
        first = 0.8 * first + 0.2 * gradient
        second = 0.9 * second + 0.1 * gradient.double() ** 2
        update = first / (1 - 0.8**step) / ((second / (1 - 0.9**step)).sqrt() + 1e-6)
        weight = weight * (1 - 0.01 * 0.1) - 0.01 * update
    torch.testing.assert_close(model.weight.detach().double(), weight, rtol=1e-5, atol=1e-6)


def adafactor_by_hand(weight: Tensor, gradients: list[Tensor], lr: float, decay: float) -> Tensor:
    """Shazeer & Stern 2018, algorithms 4 and 5, without the scaling by the size of the parameter."""
    row = column = square = torch.zeros(())
    for step, gradient in enumerate(gradients, start=1):
        beta = 1 - step**-0.8
        squares = gradient**2 + 1e-30
        if gradient.ndim == 2:
            row = beta * row + (1 - beta) * squares.sum(1)
            column = beta * column + (1 - beta) * squares.sum(0)
            estimate = torch.outer(row, column) / row.sum()
        else:
            square = estimate = beta * square + (1 - beta) * squares
        update = gradient / estimate.sqrt()
        update = update / max(1.0, update.pow(2).mean().sqrt().item())
        weight = weight - lr * decay * weight - lr * update
    return weight


def test_adafactor() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((4, 6), (5,)):
        weight = nn.Parameter(torch.randn(shape, generator=generator).double())
        gradients = [torch.randn(shape, generator=generator).double() * 10**step for step in range(4)]
        expected = adafactor_by_hand(weight.detach().clone(), gradients, lr=0.1, decay=0.01)
        optimizer = Adafactor([weight], lr=0.1, weight_decay=0.01)
        for gradient in gradients:
            weight.grad = gradient
            optimizer.step()
        torch.testing.assert_close(weight.detach(), expected)


def test_adafactor_memory_and_state() -> None:
    weight = nn.Parameter(torch.ones(100, 50))
    optimizer = make_optimizer(nn.ParameterList([weight]), OptimizationConfig(optimizer="adafactor"))
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    held = sum(value.numel() for value in optimizer.state[weight].values() if isinstance(value, Tensor))
    assert held == 150
