"""Losses that several targets share."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from tencentpretrain.batch import IGNORED, Batch, labels_of, positions_of
from tencentpretrain.layers.pooling import pool
from tencentpretrain.layers.vocabulary import vocabulary_loss
from tencentpretrain.targets.output import Part


def predicted(hidden: Tensor, batch: Batch, target: str) -> tuple[Tensor, Tensor]:
    """The states and labels of the positions where something is predicted: [N, D] and [N].

    With the batch's positions field nothing is searched and no device waits; N may include ignored fillers.
    """
    flat, labels = hidden.flatten(0, 1), batch[labels_of(target)].flatten()
    positions = batch.get(positions_of(target))
    if positions is None:
        positions = (labels != IGNORED).nonzero().squeeze(1)
    return flat.index_select(0, positions), labels.index_select(0, positions)


def vocabulary_part(
    name: str, hidden: Tensor, layer: nn.Linear, labels: Tensor, smoothing: float = 0.0
) -> Part:
    """Loss and accuracy of a linear layer over the vocabulary. hidden: [N, D]; labels: [N]."""
    loss_sum, correct = vocabulary_loss(hidden, layer.weight, layer.bias, labels, smoothing)
    count = (labels != IGNORED).sum()
    return Part(loss_sum, count, {f"acc_{name}": (correct, count)})


class PooledClassifier(nn.Module):
    """Classes of a whole sequence: pooled state, linear, tanh, linear."""

    features = ()

    def __init__(self, hidden_size: int, labels_num: int, pooling: str) -> None:
        super().__init__()
        self.pooling = pooling
        self.linear_1 = nn.Linear(hidden_size, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, labels_num)

    def logits(self, hidden: Tensor, batch: Batch) -> Tensor:
        """hidden: [B, S, D] to [B, classes]."""
        if "document_starts" in batch:  # packed rows, of which pooling can only be "first"
            pooled = hidden.flatten(0, 1)[batch["document_starts"]]
        else:
            pooled = pool(hidden, batch.get("segment_ids"), self.pooling)
        output: Tensor = self.linear_2(self.linear_1(pooled).tanh())
        return output

    def part(self, name: str, hidden: Tensor, batch: Batch) -> Part:
        labels = batch[labels_of(name)]
        logits = self.logits(hidden, batch).float()
        loss_sum = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        count = (labels != IGNORED).sum()
        return Part(loss_sum, count, {f"acc_{name}": ((logits.argmax(1) == labels).sum(), count)})
