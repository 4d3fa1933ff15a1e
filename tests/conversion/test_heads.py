"""Fine-tuned models: heads, labels, and what is missing, in both directions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import VOCABULARY, tiny_bert

from tencentpretrain.conversion import huggingface
from tencentpretrain.conversion.maps import ALBERT, BERT, FAMILIES, ROBERTA, XLM_ROBERTA
from tencentpretrain.conversion.program import convert, from_huggingface, to_huggingface
from tencentpretrain.errors import WeightsError
from tencentpretrain.weights import read_description, read_state_dict, save_weights

LABELS = ["good", "bad", "so so"]
NAMES = {"id2label": dict(enumerate(LABELS)), "label2id": {name: place for place, name in enumerate(LABELS)}}
KINDS = {
    "classification": ("BertForSequenceClassification", {"output_layer_1", "output_layer_2"}),
    "token_classification": ("BertForTokenClassification", {"output_layer"}),
    "question_answering": ("BertForQuestionAnswering", {"output_layer"}),
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(program, source: Path, target: Path, *options: str) -> str:
        arguments = ["--input_model_path", str(source), "--output_model_path", str(target), *options]
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        program()
        return capsys.readouterr().out

    return call


def directory(path: Path, kind: str) -> Path:
    """A fine-tuned model of theirs; question answering has no names of classes."""
    tiny_bert(kind, **({} if kind.endswith("Answering") else NAMES)).save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("head", KINDS)
@pytest.mark.parametrize("alone", [True, False])
def test_there_and_back(run, tmp_path: Path, head: str, alone: bool) -> None:
    """By the published programs, and by the one that finds out what the model is."""
    import transformers

    kind, layers = KINDS[head]
    theirs = directory(tmp_path / "theirs", kind)
    family = BERT.with_head(head)
    if alone:
        programs = (lambda: from_huggingface(family)), (lambda: to_huggingface(family))
        directions = ((), ())
    else:
        programs = convert, convert
        directions = (("--to", "tencentpretrain"), ("--to", "huggingface"))
    said = run(programs[0], theirs, tmp_path / "ours.bin", *directions[0], "--verify")
    assert f"targets: {head}" in said and "ignored: none" in said and "logits: largest difference" in said
    tensors = read_state_dict(tmp_path / "ours.bin")
    body = ("embedding", "encoder")
    assert {name.partition(".")[0] for name in tensors} == {*body, *layers}
    description = read_description(tmp_path / "ours.bin")
    assert description is not None and description["target"] == ["mlm"]
    assert description.get("labels") == (None if head == "question_answering" else LABELS)

    run(programs[1], tmp_path / "ours.bin", tmp_path / "back", *directions[1], "--verify")
    loaded, info = getattr(transformers, kind).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info.values()), info
    original = getattr(transformers, kind).from_pretrained(theirs)
    assert loaded.state_dict().keys() == original.state_dict().keys()
    for name, tensor in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert loaded.config.id2label == original.config.id2label
    assert loaded.config.label2id == original.config.label2id
    assert loaded.config.architectures == [kind]


def test_head_of_every_family_has_its_layers() -> None:
    for family in FAMILIES:
        for head in family.heads:
            theirs = [name for rule in head.rules for name in rule.names(ours=False)]
            assert family.with_head_in(theirs, ours=False).head == head.name
            ours = {name for rule in head.rules for name in rule.names(ours=True)}
            assert {name.partition(".")[0] for name in ours} == KINDS[head.name][1]
    assert all(len(family.heads) == 3 for family in (BERT, ROBERTA, XLM_ROBERTA, ALBERT))


@pytest.mark.parametrize("kind", ["RobertaForSequenceClassification", "AlbertForTokenClassification"])
def test_other_families(run, tmp_path: Path, kind: str) -> None:
    import transformers

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 30, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 40, "max_position_embeddings": 20, "num_labels": 3, "embedding_size": 8,
    }  # fmt: skip
    config = transformers.AlbertConfig if kind.startswith("Albert") else transformers.RobertaConfig
    theirs = getattr(transformers, kind)(config(**sizes))
    theirs.save_pretrained(tmp_path / "theirs")
    run(convert, tmp_path / "theirs", tmp_path / "ours.bin", "--to", "tencentpretrain", "--verify")
    family = kind.partition("For")[0].lower()
    said = run(
        convert,
        tmp_path / "ours.bin",
        tmp_path / "back",
        "--to",
        "huggingface",
        "--family",
        family,
        "--verify",
    )
    assert f"back: {family}" in said
    loaded, info = getattr(transformers, kind).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info.values()), info
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_another_problem_type_is_told(run, tmp_path: Path, problem: str) -> None:
    theirs = directory(tmp_path / "theirs", "BertForSequenceClassification")
    convert_there = (convert, theirs, tmp_path / "ours.bin", "--to", "tencentpretrain")
    assert "`problem_type`" not in run(*convert_there)
    config = json.loads((theirs / "config.json").read_text(encoding="utf-8"))
    for kind, told in ((problem, True), ("single_label_classification", False)):
        (theirs / "config.json").write_text(json.dumps(config | {"problem_type": kind}), encoding="utf-8")
        assert (f"`problem_type` is {kind}" in run(*convert_there)) is told


@pytest.mark.parametrize("to", ["back", "back.bin"])
def test_multiple_choice_is_refused(run, tmp_path: Path, to: str) -> None:
    directory(tmp_path / "theirs", "BertForTokenClassification")
    run(convert, tmp_path / "theirs", tmp_path / "ours.bin", "--to", "tencentpretrain")
    tensors = read_state_dict(tmp_path / "ours.bin")
    one = {f"output_layer.{kind}": tensors[f"output_layer.{kind}"][:1] for kind in ("weight", "bias")}
    save_weights(tensors | one, tmp_path / "ours.bin")
    path = tmp_path / "ours.bin.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    for name in ("labels", "labels_num"):
        del values[name]
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(
        WeightsError, match=r"ours\.bin: `output_layer` has one output, as of multiple choice"
    ):
        run(convert, tmp_path / "ours.bin", tmp_path / to, "--to", "huggingface")
    path.write_text(json.dumps(values | {"labels": ["a"], "labels_num": 1}), encoding="utf-8")
    run(convert, tmp_path / "ours.bin", tmp_path / to, "--to", "huggingface")


def test_weights_alone_tell_their_head(tmp_path: Path) -> None:
    for head, (kind, _) in KINDS.items():
        torch.save(tiny_bert(kind).state_dict(), tmp_path / "theirs.bin")
        model = huggingface.read(tmp_path / "theirs.bin")
        assert (model.family.head, model.parts, model.ignored) == (head, (head,), [])


def test_files_of_old_token_classifiers_have_a_pooler(tmp_path: Path) -> None:
    directory(tmp_path, "BertForTokenClassification")
    tensors = dict(tiny_bert("BertForSequenceClassification", num_labels=3).state_dict())  # with a pooler
    model = huggingface.read(tmp_path, tensors)
    assert model.parts == ("token_classification",)
    assert set(model.ignored) == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}


def test_missing_and_incomplete_heads(run, tmp_path: Path) -> None:
    theirs = directory(tmp_path / "theirs", "BertForSequenceClassification")
    tensors = dict(tiny_bert("BertForSequenceClassification", num_labels=3).state_dict())
    (theirs / "model.safetensors").unlink()
    del tensors["classifier.bias"]
    torch.save(tensors, theirs / "pytorch_model.bin")
    said = run(convert, theirs, tmp_path / "ours.bin", "--to", "tencentpretrain")
    assert "classification is incomplete, without classifier.bias" in said and "targets: none" in said

    bare = {
        name: tensor for name, tensor in tensors.items() if "pooler" not in name and "classif" not in name
    }
    torch.save(bare, theirs / "pytorch_model.bin")
    said = run(convert, theirs, tmp_path / "bare.bin", "--to", "tencentpretrain")
    assert "targets: none" in said and "there is no classification head" in said
    run(convert, tmp_path / "bare.bin", tmp_path / "back", "--to", "huggingface")
    written = json.loads((tmp_path / "back" / "config.json").read_text(encoding="utf-8"))
    assert written["architectures"] == ["BertModel"]


def test_head_of_another_class_is_ignored_and_said(run, tmp_path: Path) -> None:
    theirs = directory(tmp_path / "theirs", "BertForSequenceClassification")
    config = json.loads((theirs / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = ["BertForMultipleChoice"]
    (theirs / "config.json").write_text(json.dumps(config), encoding="utf-8")
    said = run(convert, theirs, tmp_path / "ours.bin", "--to", "tencentpretrain")
    assert "classifier.weight" in said and "targets: none" in said


def test_pooling_of_a_classifier_must_be_theirs(run, tmp_path: Path) -> None:
    theirs = directory(tmp_path / "theirs", "BertForSequenceClassification")
    run(convert, theirs, tmp_path / "ours.bin", "--to", "tencentpretrain")
    beside = tmp_path / "ours.bin.json"
    description = json.loads(beside.read_text(encoding="utf-8"))
    beside.write_text(json.dumps(description | {"pooling": "mean"}), encoding="utf-8")
    with pytest.raises(WeightsError, match="`pooling` is mean, only first is possible"):
        run(convert, tmp_path / "ours.bin", tmp_path / "back", "--to", "huggingface")


def test_as_many_labels_as_outputs(run, tmp_path: Path) -> None:
    theirs = directory(tmp_path / "theirs", "BertForSequenceClassification")
    run(convert, theirs, tmp_path / "ours.bin", "--to", "tencentpretrain")
    tensors = read_state_dict(tmp_path / "ours.bin")
    tensors |= {
        f"output_layer_2.{kind}": tensors[f"output_layer_2.{kind}"][:2] for kind in ("weight", "bias")
    }
    save_weights(tensors, tmp_path / "ours.bin")
    with pytest.raises(WeightsError, match="3 labels, but 2 outputs"):
        run(convert, tmp_path / "ours.bin", tmp_path / "back", "--to", "huggingface")
