"""How predictions are scored."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MATRIX_LABELS = (
    30  # a confusion matrix of more classes fills no terminal; its largest entries are listed instead
)


def confusion_matrix(
    gold: NDArray[np.int64], predicted: NDArray[np.int64], labels_num: int
) -> NDArray[np.int64]:
    """Counts [labels_num, labels_num]: row = true class, column = predicted class."""
    flat = np.bincount(gold * labels_num + predicted, minlength=labels_num * labels_num)
    return flat.reshape(labels_num, labels_num)


def precision_recall_f1(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Per class [labels_num, 3], 0 where nothing was predicted (precision) or nothing was there (recall)."""
    right = confusion.diagonal().astype(np.float64)
    predicted, there = confusion.sum(0), confusion.sum(1)
    precision = right / np.maximum(predicted, 1)
    recall = right / np.maximum(there, 1)
    f1 = 2 * right / np.maximum(predicted + there, 1)
    return np.stack([precision, recall, f1], axis=1)


def describe(confusion: NDArray[np.int64]) -> str:
    """Confusion matrix, scores per class and accuracy, as lines for a reader."""
    labels_num, right, total = len(confusion), int(confusion.trace()), int(confusion.sum())
    lines = []
    if labels_num <= MATRIX_LABELS:
        width = max(6, len(str(confusion.max())) + 1)
        lines.append("Confusion matrix (row: true label, column: predicted label):")
        lines.append("label " + "".join(f"{label:>{width}}" for label in range(labels_num)))
        lines += [
            f"{label:>5} " + "".join(f"{n:>{width}}" for n in row) for label, row in enumerate(confusion)
        ]
    else:
        wrong = confusion - np.diag(confusion.diagonal())
        most = np.argsort(-wrong, axis=None, kind="stable")[:10]
        lines.append("Most frequent confusions (true label -> predicted label: count):")
        lines += [f"{i // labels_num} -> {i % labels_num}: {wrong.flat[i]}" for i in most if wrong.flat[i]]
    lines.append("Precision, recall and F1 of each label:")
    lines += [
        f"Label {label}: {p:.3f}, {r:.3f}, {f:.3f}"
        for label, (p, r, f) in enumerate(precision_recall_f1(confusion))
    ]
    lines.append(f"Acc. (Correct/Total): {right / max(total, 1):.4f} ({right}/{total})")
    return "\n".join(lines)
