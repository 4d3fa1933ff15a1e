from __future__ import annotations

import numpy as np
import pytest

from tencentpretrain.tasks.metrics import confusion_matrix, describe, precision_recall_f1


def test_rows_are_true_classes_and_columns_predicted_ones() -> None:
    confusion = confusion_matrix(np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 0, 0]), 4)
    assert confusion.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]]


def test_scores_follow_their_definition() -> None:
    # Class 0: predicted 3 times, right once, there twice. Class 2 is never predicted, class 3 never there.
    scores = precision_recall_f1(np.array([[1, 1, 0, 0], [0, 1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]]))
    expected = [[1 / 3, 1 / 2, 2 / 5], [1 / 2, 1, 2 / 3], [0, 0, 0], [0, 0, 0]]
    np.testing.assert_allclose(scores, expected, atol=1e-12)


def test_report_has_matrix_scores_and_the_published_accuracy_line() -> None:
    lines = describe(np.array([[80, 20], [5, 95]])).split("\n")
    assert lines[1].split() == ["label", "0", "1"]
    assert [line.split() for line in lines[2:4]] == [["0", "80", "20"], ["1", "5", "95"]]
    assert lines[5] == "Label 0: 0.941, 0.800, 0.865"
    assert lines[-1] == "Acc. (Correct/Total): 0.8750 (175/200)"


def test_many_classes_list_their_largest_confusions_instead_of_a_matrix() -> None:
    confusion = np.eye(50, dtype=np.int64)
    confusion[7, 3], confusion[1, 49] = 9, 4
    lines = describe(confusion).split("\n")
    assert lines[1:3] == ["7 -> 3: 9", "1 -> 49: 4"]
    assert lines[3].startswith("Precision")
    assert len(max(lines, key=len)) < 100


@pytest.mark.parametrize("labels_num", [2, 5])
def test_perfect_predictions_score_one(labels_num: int) -> None:
    gold = np.arange(20) % labels_num
    confusion = confusion_matrix(gold, gold, labels_num)
    assert (precision_recall_f1(confusion) == 1).all()
