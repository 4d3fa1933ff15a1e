from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import write_table

from tencentpretrain.config import ClassifierConfig, ClassifierInferConfig, ModelConfig, load_config
from tencentpretrain.errors import ConfigError, DataError
from tencentpretrain.tasks.classification import Classification, Classifier
from tencentpretrain.tasks.examples import TextExamples
from tencentpretrain.tasks.labels import describe_classes
from tencentpretrain.tokenizers import Tokenizer


@pytest.fixture
def config(toy: Path) -> ModelConfig:
    return load_config(toy / "config.json")


def task(tokenizer: Tokenizer, labels_num: int | None = None, **options: object) -> Classification:
    labels = None if labels_num is None else tuple(map(str, range(labels_num)))
    configs = {ClassifierConfig: ClassifierConfig(**options)}  # type: ignore[arg-type]
    return Classification(tokenizer, 16, configs, labels)


def test_head_has_the_published_names_and_shapes(config: ModelConfig) -> None:
    shapes = {name: tuple(weight.shape) for name, weight in Classifier(config, 47, 3, 0.5).named_parameters()}
    head = {name: shape for name, shape in shapes.items() if name.startswith("output")}
    assert head == {
        "output_layer_1.weight": (16, 16), "output_layer_1.bias": (16,),
        "output_layer_2.weight": (3, 16), "output_layer_2.bias": (3,),
    }  # fmt: skip
    assert {name.partition(".")[0] for name in shapes.keys() - head.keys()} == {"embedding", "encoder"}
    assert shapes["embedding.word.embedding.weight"] == (47, 16)


@pytest.mark.parametrize(("counts", "said"), [
    ([5, 5], "2 classes: 0 50 %, 1 50 %"),
    ([4, 0, 2, 0, 1], "5 classes: 0 57.1 %, 2 28.6 %, 4 14.3 %; never in the training set: 1, 3"),
])  # fmt: skip
def test_classes_and_their_frequencies_are_told(
    tokenizer: Tokenizer, tmp_path: Path, counts: list[int], said: str
) -> None:
    rows = [[str(label), "w1"] for label, count in enumerate(counts) for _ in range(count)]
    one = task(tokenizer)
    train = one.read(write_table(tmp_path / "rows.tsv", ["label", "text_a"], rows), "train")
    assert one.about(train) == [said]


def test_of_many_classes_the_most_frequent_are_told() -> None:
    said = describe_classes([*range(1, 101), 0])
    assert said.startswith("101 classes: 99 1.98 %, 98 1.96 %, ")
    assert said.endswith(" %, 90 1.8 % …; never in the training set: 100")


@pytest.mark.parametrize("pooling", ["first", "last", "mean", "max"])
def test_head_is_linear_tanh_linear_over_the_pooled_state(
    config: ModelConfig, tokenizer: Tokenizer, pooling: str, toy: Path
) -> None:
    config = load_config(toy / "config.json", pooling=pooling)
    model = Classifier(config, tokenizer.vocab_size, 2, 0.5).eval()
    batch = TextExamples(tokenizer, ["w1 good w2", "w3"], None, 16).batch(np.array([0, 1]))
    hidden = model.encode(batch)
    rows = [hidden[0, :5], hidden[1, :3]]  # without padding
    pooled = {
        "first": [row[0] for row in rows],
        "last": [row[-1] for row in rows],
        "mean": [row.mean(0) for row in rows],
        "max": [row.amax(0) for row in rows],
    }[pooling]
    expected = model.output_layer_2(torch.tanh(model.output_layer_1(torch.stack(pooled))))
    torch.testing.assert_close(model(batch).outputs["logits"], expected)
    assert model(batch).parts == {}


def test_loss_is_cross_entropy_mixed_with_the_squared_distance_to_soft_targets(
    config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    rows = [["0", "w1 good", "2.5 -1 0"], ["2", "w2", "0 1e-1 3"], ["1", "bad w3", "0 4 -4"]]
    path = write_table(tmp_path / "soft.tsv", ["label", "text_a", "logits"], rows)
    subject = task(tokenizer, soft_targets=True, soft_alpha=0.3)
    batch = subject.read(path, "train").batch(np.array([2, 0, 1]))
    model = subject.build(config, tokenizer.vocab_size).eval()
    output = model(batch)
    logits, labels = output.outputs["logits"], torch.tensor([1, 0, 2])
    soft = torch.tensor([[0, 4, -4], [2.5, -1, 0], [0, 0.1, 3]])
    expected = 0.3 * torch.nn.MSELoss()(logits, soft) + 0.7 * torch.nn.CrossEntropyLoss()(logits, labels)
    torch.testing.assert_close(output.loss, expected)
    # The development set needs no soft targets, and its loss has none.
    dev = subject.read(write_table(tmp_path / "dev.tsv", ["label", "text_a"], [["1", "w1"]]), "dev")
    output = model(dev.batch(np.array([0])))
    torch.testing.assert_close(
        output.loss, torch.nn.CrossEntropyLoss()(output.outputs["logits"], torch.tensor([1]))
    )


@pytest.mark.parametrize(("labels", "line", "said"), [
    (["0", "1", "one"], 4, "label 'one'; expected a whole number"),
    (["0", "-1"], 3, "label '-1'; expected a whole number"),
    (["0", "1.0"], 3, "label '1.0'"),
    (["0", ""], 3, "label ''"),
    (["0", "٣"], 3, "label '٣'"),  # a digit to Python, not to us
    (["0", "1", "123456789"], 4, "label 123456789, but only 3 rows"),
    (["0", "0"], None, "every label is 0"),
])  # fmt: skip
def test_wrong_labels_are_named_with_their_line(
    tokenizer: Tokenizer, tmp_path: Path, labels: Sequence[str], line: int | None, said: str
) -> None:
    path = write_table(tmp_path / "rows.tsv", ["label", "text_a"], [[label, "w1"] for label in labels])
    with pytest.raises(DataError) as error:
        task(tokenizer).read(path, "train")
    assert said in str(error.value)
    assert line is None or f"rows.tsv, line {line}: " in str(error.value)


def test_classes_are_those_of_the_training_set(tokenizer: Tokenizer, tmp_path: Path) -> None:
    subject = task(tokenizer)
    subject.read(
        write_table(tmp_path / "train.tsv", ["label", "text_a"], [["0", "w1"], ["3", "w2"]]), "train"
    )
    assert subject.labels == ("0", "1", "2", "3")
    dev = write_table(tmp_path / "dev.tsv", ["label", "text_a"], [["1", "w1"], ["4", "w2"]])
    with pytest.raises(DataError, match=r"dev\.tsv, line 3: label 4 is out of range; .* 0 to 3"):
        subject.read(dev, "dev")


@pytest.mark.parametrize("logits", ["1 2", "1 2 3 4", "1 two 3", "1 nan 3", ""])
def test_wrong_soft_targets_are_named_with_their_line(
    tokenizer: Tokenizer, tmp_path: Path, logits: str
) -> None:
    rows = [["0", "w1", "1 2 3"], ["2", "w2", logits]]
    path = write_table(tmp_path / "soft.tsv", ["label", "text_a", "logits"], rows)
    with pytest.raises(DataError, match=r"soft\.tsv, line 3: logits '.*'; expected 3 numbers"):
        task(tokenizer, soft_targets=True).read(path, "train")
    assert len(task(tokenizer).read(path, "train")) == 2  # not asked for, not read


def test_soft_targets_need_their_column(tokenizer: Tokenizer, toy: Path) -> None:
    with pytest.raises(DataError, match="logits is missing"):
        task(tokenizer, soft_targets=True).read(toy / "train.tsv", "train")


def test_score_counts_classes_that_never_occur(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write_table(tmp_path / "dev.tsv", ["label", "text_a"], [["0", "w1"], ["1", "w2"], ["1", "w3"]])
    subject = task(tokenizer, labels_num=3)
    logits = [np.array(row, np.float32) for row in ([1, 0, 0], [0, 1, 0], [0, 0, 1])]
    score = subject.score({"logits": logits}, subject.read(path, "dev"))
    assert score.value == score.metrics["accuracy"] == pytest.approx(2 / 3)
    assert score.metrics["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert score.text.endswith("Acc. (Correct/Total): 0.6667 (2/3)")


@pytest.mark.parametrize(("options", "names"), [
    ({}, ["label"]),
    ({"output_prob": True}, ["label", "prob"]),
    ({"output_logits": True, "output_prob": True}, ["label", "logits", "prob"]),
])  # fmt: skip
def test_prediction_columns(tokenizer: Tokenizer, options: dict[str, bool], names: list[str]) -> None:
    configs = {ClassifierInferConfig: ClassifierInferConfig(**options)}  # type: ignore[arg-type]
    subject = Classification(tokenizer, 16, configs, ("0", "1"))
    examples = TextExamples(tokenizer, ["w1", "w2"], None, 16)
    logits = [np.array(row, np.float32) for row in ([0.1, -2], [-1e-8, 3])]
    columns = subject.columns({"logits": logits}, examples)
    assert list(columns) == names
    assert columns["label"] == ["0", "1"]
    if "logits" in names:
        assert columns["logits"] == ["0.1 -2.0", "-1e-08 3.0"]
    if "prob" in names:
        values = np.array([[float(word) for word in row.split(" ")] for row in columns["prob"]])
        np.testing.assert_allclose(values, torch.tensor(np.stack(logits)).softmax(1).numpy(), rtol=1e-6)


def test_number_of_classes_must_be_known_and_agree(config: ModelConfig, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="--labels_num"):
        Classification(tokenizer, 16, {}).build(config, 47)
    configs = {ClassifierInferConfig: ClassifierInferConfig(labels_num=5)}
    assert Classification(tokenizer, 16, configs).build(config, 47).output_layer_2.out_features == 5
    with pytest.raises(ConfigError, match="`labels_num` is 5, but the weights were fine-tuned with 2"):
        Classification(tokenizer, 16, configs, ("0", "1")).build(config, 47)
