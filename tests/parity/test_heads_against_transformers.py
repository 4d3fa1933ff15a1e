"""Fine-tuned models against Transformers: the same logits, losses and gradients of every parameter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases_bidirectional import PADDING, model
from reference import Case, Shape, assert_close, compare_gradients, make_inputs
from torch import Tensor, nn
from torch.nn import functional as F

from tencentpretrain import load_weights
from tencentpretrain.config import ModelConfig
from tencentpretrain.model import Body
from tencentpretrain.sizes import DataSizes
from tencentpretrain.tasks.classification import Classifier
from tencentpretrain.weights import described_config, read_description

CLASSES = 3
CLASSES_OF_HEADS = {
    "classification": "SequenceClassification",
    "token_classification": "TokenClassification",
    "question_answering": "QuestionAnswering",
}
FAMILIES = {
    "Bert": ("bert", {}),
    "Roberta": ("roberta", {"pad_token_id": 1}),
    "XLMRoberta": ("xlm-roberta", {"pad_token_id": 1}),
    "Albert": ("albert", {"embedding_size": 16, "classifier_dropout_prob": 0.0}),
}


class Tagger(Body):
    """Outputs of every token, as the heads of token classification and question answering have them."""

    def __init__(self, config: ModelConfig, vocab_size: int, outputs: int) -> None:
        super().__init__(config, DataSizes(vocab_size))
        self.output_layer = nn.Linear(config.hidden_size, outputs)


def ours_of(head: str, config: ModelConfig, vocab_size: int) -> Body:
    if head == "classification":
        return Classifier(config, vocab_size, CLASSES, 0.5).eval()
    return Tagger(config, vocab_size, CLASSES if head == "token_classification" else 2).eval()


def span_loss(logits: Tensor, real: Tensor, classes: Tensor) -> Tensor:
    """Of the first and the last word of an answer: logits [B, S, 2]; early words stand for it."""
    logits = logits.masked_fill(~real[..., None], float("-inf"))
    return (
        F.cross_entropy(logits[..., 0], classes[:, 0] % 2)
        + F.cross_entropy(logits[..., 1], classes[:, 1] % 2)
    ) / 2


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("head", CLASSES_OF_HEADS)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shape", [Shape(4, 12, 0, True), Shape(2, 7, 0, False)], ids=["padded", "unpadded"])
def test_same_logits_loss_and_gradients(
    name: str, head: str, attention: str, shape: Shape, tmp_path: Path
) -> None:
    family, changes = FAMILIES[name]
    labels_num = {} if head == "question_answering" else {"num_labels": CLASSES}
    theirs = model(f"{name}For{CLASSES_OF_HEADS[head]}", name, **changes, **labels_num)
    theirs.set_attn_implementation(attention)
    theirs.save_pretrained(tmp_path)
    description = read_description(tmp_path)
    assert description is not None
    config = described_config(tmp_path, description)
    ours = ours_of(head, config, description["vocab_size"])
    report = load_weights(ours, tmp_path)
    assert report.missing == report.unexpected == []

    case = Case(name, family, lambda: theirs, "encoder", PADDING)
    inputs = make_inputs(case, theirs, shape, ())
    generator, real = torch.Generator().manual_seed(2), inputs.real
    classes = torch.randint(CLASSES, real.shape, generator=generator)
    hidden = ours.encode(inputs.ours)
    expected_loss = torch.zeros(())
    if head == "classification":
        output = theirs(**inputs.theirs, labels=classes[:, 0])
        ours_output = ours(inputs.ours | {"cls_labels": classes[:, 0]})
        logits, loss = ours_output.outputs["logits"], ours_output.loss
        expected = output.logits
    elif head == "token_classification":
        labels = classes.masked_fill(~real, -100)
        output = theirs(**inputs.theirs, labels=labels)
        everywhere = ours.output_layer(hidden)
        loss = F.cross_entropy(everywhere.flatten(0, 1), labels.flatten(), ignore_index=-100)
        logits, expected = everywhere[real], output.logits[real]
    else:
        # What theirs makes of padding counts in its loss; it must not, and is left out of both.
        output = theirs(**inputs.theirs)
        both = torch.stack((output.start_logits, output.end_logits), -1)
        expected_loss, loss = (span_loss(one, real, classes) for one in (both, ours.output_layer(hidden)))
        logits, expected = ours.output_layer(hidden)[real], both[real]
    assert_close(logits, expected, 1e-5, "logits")
    expected_loss = expected_loss if output.loss is None else output.loss
    assert_close(loss, expected_loss, 1e-5, "loss")

    loss.backward()
    expected_loss.backward()
    table = case.table.with_head(head)
    own = {name: parameter.grad for name, parameter in ours.named_parameters()}
    compare_gradients(table, config, own, theirs, table.is_ignored)
