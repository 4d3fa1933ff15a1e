from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tencentpretrain.config import AdversarialConfig
from tencentpretrain.tasks.adversarial import add_adversarial_gradients


def gradient(loss: Tensor, weight: Tensor) -> Tensor:
    return 3.0 * torch.autograd.grad(loss, [weight])[0]  # the factor must not matter


class Scene:
    """A tiny nonlinear model, its loss, and every embedding at which the loss was asked for."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 4)
        self.layer = nn.Linear(4, 1)
        self.ids = torch.tensor([1, 2, 2, 5])
        self.seen: list[Tensor] = []

    def loss(self) -> Tensor:
        self.seen.append(self.embedding.weight.detach().clone())
        return self.layer(self.embedding(self.ids)).tanh().square().mean()

    def gradient_at(self, weight: Tensor) -> list[Tensor]:
        def loss(weight: Tensor) -> Tensor:
            return self.layer(weight[self.ids]).tanh().square().mean()

        weight = weight.clone().requires_grad_()
        return list(torch.autograd.grad(loss(weight), [weight, *self.layer.parameters()]))

    def gradients(self) -> list[Tensor]:
        return [parameter.grad.clone() for parameter in (self.embedding.weight, *self.layer.parameters())]

    def attack(self, **options: object) -> tuple[Tensor, list[Tensor]]:
        self.loss().backward()
        clean, before = self.embedding.weight.detach().clone(), self.gradients()
        config = AdversarialConfig(use_adv=True, **options)  # type: ignore[arg-type]
        add_adversarial_gradients(
            self.embedding.weight, self.loss, lambda loss: loss.backward(), gradient, config
        )
        assert torch.equal(self.embedding.weight, clean)
        return clean, before


def test_fgm_adds_the_gradient_one_step_of_epsilon_uphill() -> None:
    scene = Scene()
    clean, before = scene.attack(adv_type="fgm", fgm_epsilon=0.5)
    perturbed = clean + 0.5 * before[0] / before[0].norm()
    torch.testing.assert_close(scene.seen[-1], perturbed)
    added = scene.gradient_at(perturbed)
    torch.testing.assert_close(scene.gradients(), [a + b for a, b in zip(before, added, strict=True)])


@pytest.mark.parametrize("radius", [0.25, 10.0])
def test_pgd_walks_k_steps_of_alpha_inside_the_ball(radius: float) -> None:
    scene = Scene()
    clean, before = scene.attack(adv_type="pgd", pgd_k=4, pgd_alpha=0.1, pgd_epsilon=radius)
    weight, direction = clean, before[0]
    for _ in range(4):
        weight = weight + 0.1 * direction / direction.norm()
        if (weight - clean).norm() > radius:
            weight = clean + radius * (weight - clean) / (weight - clean).norm()
        direction = scene.gradient_at(weight)[0]
    torch.testing.assert_close(scene.seen[-1], weight)
    added = scene.gradient_at(weight)
    torch.testing.assert_close(scene.gradients(), [a + b for a, b in zip(before, added, strict=True)])
    assert len(scene.seen) == 1 + 4


@pytest.mark.parametrize("kind", ["fgm", "pgd"])
def test_a_vanished_gradient_perturbs_nothing(kind: str) -> None:
    scene = Scene()
    with torch.no_grad():
        scene.layer.weight.zero_()
        scene.layer.bias.zero_()
    clean, _ = scene.attack(adv_type=kind)
    assert all(torch.equal(weight, clean) for weight in scene.seen)
    assert all(torch.isfinite(gradient).all() for gradient in scene.gradients())


def test_embeddings_are_put_back_when_the_attack_fails() -> None:
    scene = Scene()
    scene.loss().backward()
    clean = scene.embedding.weight.detach().clone()

    def fail() -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_adversarial_gradients(
            scene.embedding.weight,
            fail,
            lambda loss: loss.backward(),
            gradient,
            AdversarialConfig(fgm_epsilon=1.0),
        )
    assert torch.equal(scene.embedding.weight, clean)
