"""Adversarial training on the word embedding.

FGM: Miyato et al. 2017, "Adversarial Training Methods for Semi-Supervised Text Classification", eq. 5-7.
PGD: Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks", section 2.1.
As in the published toolkits, the embedding matrix is what is perturbed, and norms are over the whole of it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tencentpretrain.config import AdversarialConfig


def add_adversarial_gradients(
    weight: Tensor,
    loss: Callable[[], Tensor],
    backward: Callable[[Tensor], None],
    gradient: Callable[[Tensor, Tensor], Tensor],
    config: AdversarialConfig,
    add_up: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> None:
    """Add the gradients of the loss at perturbed embeddings to those of the clean loss, there already.

    Args:
        weight: [V, D], the word embedding; the same to the bit afterwards.
        loss: computes the loss of the batch with the weights as they are.
        backward: accumulates the gradients of a loss.
        gradient: that of a loss with respect to a weight, up to a positive factor.
        add_up: gives the sum of a gradient over all ranks, each of which has a part of the loss.
    """
    assert weight.grad is not None, "the clean loss must have been backpropagated"
    if config.adv_type == "fgm":
        steps, length, radius = 1, config.fgm_epsilon, float("inf")
    else:
        steps, length, radius = config.pgd_k, config.pgd_alpha, config.pgd_epsilon
    clean = weight.detach().clone()
    direction = add_up(weight.grad)
    try:
        for step in range(1, steps + 1):
            with torch.no_grad():
                weight += _of_norm(direction, length)
                if radius < float("inf"):
                    offset = weight - clean
                    norm = torch.linalg.vector_norm(offset)
                    weight.copy_(clean + offset * (radius / norm.clamp(min=radius)) if radius else clean)
            if step < steps:
                # Only the embedding's gradient: nothing accumulates, so nothing has to be put back.
                direction = add_up(gradient(loss(), weight))
            else:
                backward(loss())
    finally:
        with torch.no_grad():
            weight.copy_(clean)


def _of_norm(direction: Tensor, length: float) -> Tensor:
    """`direction` scaled to a norm of `length`; zeros where its gradients vanished or overflowed."""
    norm = torch.linalg.vector_norm(direction)
    usable = (norm > 0) & torch.isfinite(norm)
    return torch.where(usable, direction * (length / norm), torch.zeros_like(direction))
