"""The loss over a vocabulary, without ever holding [positions × vocabulary] numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tencentpretrain.batch import IGNORED

CHUNK = 512  # rows of logits held at once


def vocabulary_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Cross entropy of `hidden @ weight.T + bias` and labels, summed, and how many predictions were right.

    Args:
        hidden: [N, D]. weight: [V, D]. bias: [V] or None. labels: [N], IGNORED where nothing is predicted.
        smoothing: probability spread evenly over the tokens that are not the label (Szegedy et al. 2016, §7).
    """
    if not torch.is_grad_enabled():  # inside the function below this can no longer be seen
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    loss, correct = _ChunkedLoss.apply(hidden, weight, bias, labels, smoothing)  # type: ignore[no-untyped-call]
    return loss, correct


class _ChunkedLoss(torch.autograd.Function):
    """Gradients are computed in the forward pass, chunk by chunk, while the logits are there."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        # "meta" tensors have no contents and no autocast of their own; a dry run measures with them.
        kind = "cpu" if hidden.is_meta else hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        matrix = weight.to(dtype)
        others = smoothing / max(len(weight) - 1, 1)  # the probability of each token that is not the label
        label = 1 - smoothing - others  # and what the label has beyond it
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        grad_bias = torch.zeros_like(bias) if bias is not None and needs_bias else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        with torch.autocast(kind, enabled=False):
            for start in range(0, len(hidden), CHUNK):
                part = slice(start, start + CHUNK)
                states, target = hidden[part].to(dtype), labels[part]
                logits = states @ matrix.T
                if bias is not None:
                    logits += bias.to(dtype)
                counted = target != IGNORED
                index = target.clamp(min=0).unsqueeze(1)
                correct += ((logits.argmax(1) == target) & counted).sum()
                log_probabilities = logits.log_softmax(1, dtype=torch.float32)
                picked = log_probabilities.gather(1, index).squeeze(1)
                if smoothing:
                    picked = label * picked + others * log_probabilities.sum(1)
                loss -= picked.where(counted, 0).sum()
                if not (needs_hidden or needs_weight or needs_bias):
                    continue
                # d loss / d logits = probabilities − those asked for, zero in rows that do not count.
                gradient = log_probabilities.exp_()
                gradient.scatter_add_(1, index, torch.full_like(gradient[:, :1], -label))
                if smoothing:
                    gradient -= others
                gradient *= counted.unsqueeze(1)
                if grad_bias is not None:
                    grad_bias += gradient.sum(0)
                gradient = gradient.to(dtype)
                if grad_hidden is not None:
                    grad_hidden[part] = gradient @ matrix
                if grad_weight is not None:
                    grad_weight += gradient.T @ states
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad_outputs[0]
        return (
            *(None if grad is None else grad * scale.to(grad.dtype) for grad in ctx.saved_tensors),
            None,
            None,
        )
