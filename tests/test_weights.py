"""Weights into models: names, reports, and mismatches with their likely cause."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tencentpretrain import build_model, load_config, load_weights
from tencentpretrain.config import ModelConfig
from tencentpretrain.description import write_description
from tencentpretrain.errors import WeightsError
from tencentpretrain.model import Model
from tencentpretrain.weights import LoadReport, publish_weights, read_state_dict, save_weights

SIZES: dict[str, Any] = {
    "hidden_size": 16, "emb_size": 16, "feedforward_size": 24, "heads_num": 2, "layers_num": 2,
    "max_seq_length": 10, "embedding": ("word", "pos", "seg"),
}  # fmt: skip
VOCABULARY = 30


def model_of(vocab_size: int = VOCABULARY, labels_num: int | None = None, **changes: Any) -> Model:
    return build_model(ModelConfig(**{**SIZES, **changes}), vocab_size, labels_num)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A small BERT's, without a description."""
    torch.manual_seed(1)
    path = tmp_path / "model.bin"
    save_weights(model_of(target=("mlm", "sp"), tie_weights=True).state_dict(), path)
    return path


@pytest.mark.parametrize("name", ["model.bin", "model.safetensors"])
@pytest.mark.parametrize("tied", [True, False])
def test_saved_weights_are_loaded(tmp_path: Path, name: str, tied: bool) -> None:
    one, other = (model_of(target=("mlm", "sp"), tie_weights=tied) for _ in range(2))
    save_weights(one.state_dict(), tmp_path / name)
    report = load_weights(other, tmp_path / name)
    assert all(torch.equal(tensor, other.state_dict()[key]) for key, tensor in one.state_dict().items())
    assert set(report.loaded) == one.state_dict().keys() and not report.missing and not report.unexpected
    assert (other.target["mlm"].linear_2.weight is other.embedding.word.embedding.weight) == tied


def test_report_has_three_lines(weights: Path) -> None:
    model = model_of(target=("mlm", "cls"), labels_num=3, tie_weights=True)
    report = load_weights(model, weights)
    assert all(name.startswith("target.cls.") for name in report.missing) and len(report.missing) == 4
    assert all(name.startswith("target.sp.") for name in report.unexpected) and len(report.unexpected) == 4
    first, second, third = str(report).split("\n")
    assert (
        first
        == f"loaded: {len(report.loaded)} of {len(model.state_dict())} tensors of the model, from {weights}"
    )
    assert second == "left at random: 4: target.cls (4)"
    assert third == "ignored: 4: target.sp (4)"


def test_report_counts_by_module_and_names_few(weights: Path) -> None:
    names = [f"output_layer_{number}.{kind}" for number in (1, 2) for kind in ("weight", "bias")]
    lines = str(LoadReport(weights, [], names, names[:1])).split("\n")
    assert lines[1:] == [
        "left at random: 4: output_layer_1 (2), output_layer_2 (2)",
        "ignored: output_layer_1.weight",
    ]


def test_one_name_of_a_tied_pair_is_enough(tmp_path: Path) -> None:
    tensors = dict(model_of(tie_weights=True).state_dict())
    del tensors["target.mlm.linear_2.weight"]
    save_weights(tensors, tmp_path / "model.bin")
    assert load_weights(model_of(tie_weights=True), tmp_path / "model.bin").missing == []
    assert load_weights(model_of(), tmp_path / "model.bin").missing == ["target.mlm.linear_2.weight"]


def test_untied_weights_do_not_load_into_a_tied_model(tmp_path: Path) -> None:
    save_weights(model_of().state_dict(), tmp_path / "model.bin")
    with pytest.raises(WeightsError, match="set `tie_weights` to false"):
        load_weights(model_of(tie_weights=True), tmp_path / "model.bin")


def test_half_precision_is_widened(tmp_path: Path) -> None:
    one, other = model_of(), model_of()
    save_weights({name: tensor.half() for name, tensor in one.state_dict().items()}, tmp_path / "model.bin")
    load_weights(other, tmp_path / "model.bin")
    weight = other.embedding.word.embedding.weight
    assert weight.dtype == torch.float32 and torch.equal(
        weight, one.embedding.word.embedding.weight.half().float()
    )


@pytest.mark.parametrize(
    ("changes", "shapes", "cause"),
    [
        (
            {"vocab_size": 50},
            "30 × 16 in the file, 50 × 16 in the model",
            "vocabulary: the file has 30 tokens",
        ),
        ({"max_seq_length": 12}, "10 × 16 in the file, 12 × 16 in the model", "set `max_seq_length` to 10"),
        (
            {"feedforward_size": 32},
            "24 × 16 in the file, 32 × 16 in the model",
            "set `feedforward_size` to 24",
        ),
        (
            {"hidden_size": 32, "emb_size": 32},
            "30 × 16 in the file, 30 × 32 in the model",
            "another size or family of model: hidden_size",
        ),
        ({"layers_num": 3}, "has 2 layers in encoder.transformer, the model has 3", "set `layers_num` to 2"),
        ({"layers_num": 1}, "has 2 layers in encoder.transformer, the model has 1", "set `layers_num` to 2"),
        ({"parameter_sharing": True}, "another family", "none of its 32 tensors of the encoder has a place"),
    ],
)
def test_what_does_not_fit(weights: Path, changes: dict[str, Any], shapes: str, cause: str) -> None:
    model = model_of(**{"target": ("mlm", "sp"), "tie_weights": True, **changes})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(model, weights)
    assert shapes in str(caught.value) and cause in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_wrong_number_of_labels(tmp_path: Path) -> None:
    save_weights(model_of(target=("cls",), labels_num=3).state_dict(), tmp_path / "model.bin")
    with pytest.raises(WeightsError, match="likely cause: labels: the file has 3 classes, the model 2"):
        load_weights(model_of(target=("cls",), labels_num=2), tmp_path / "model.bin")


def test_wrong_family(tmp_path: Path) -> None:
    save_weights({"wav2vec2.encoder.weight": torch.ones(2)}, tmp_path / "other.bin")
    with pytest.raises(WeightsError, match=r"another family.*such as 'wav2vec2\.encoder\.weight'"):
        load_weights(model_of(), tmp_path / "other.bin")


def test_quantised_weights(tmp_path: Path) -> None:
    tensors = {name: tensor.to(torch.int8) for name, tensor in model_of().state_dict().items()}
    save_weights(tensors, tmp_path / "model.bin")
    with pytest.raises(WeightsError, match="quantised"):
        load_weights(model_of(), tmp_path / "model.bin")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_that_are_not_finite(weights: Path, value: float, dtype: torch.dtype) -> None:
    tensors = {name: tensor.clone().to(dtype) for name, tensor in read_state_dict(weights).items()}
    tensors["encoder.transformer.1.layer_norm_1.beta"][3] = value
    save_weights(tensors, weights)
    model = model_of(target=("mlm", "sp"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match=r"encoder\.transformer\.1\.layer_norm_1\.beta has values that"):
        load_weights(model, weights)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["model.bin", "model.safetensors"])
def test_weights_and_description_appear_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    publish_weights({"a": torch.ones(1)}, tmp_path / name, {"of": "the first"})
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert kept.keys() == {name, f"{name}.json"}

    def full(*arguments: object, **keywords: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("torch.save", full)
        disk.setattr("safetensors.torch.save_file", full)
        with pytest.raises(OSError, match="No space left"):
            publish_weights({"a": torch.zeros(1)}, tmp_path / name, {"of": "the second"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept
    publish_weights({"a": torch.zeros(1)}, tmp_path / name, {"of": "the third"})
    assert "third" in (tmp_path / f"{name}.json").read_text(encoding="utf-8")
    assert not read_state_dict(tmp_path / name)["a"].any()


def test_empty_state_dict(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model.bin")
    with pytest.raises(WeightsError, match="holds no tensors"):
        load_weights(model_of(), tmp_path / "model.bin")


def test_names_of_older_releases(tmp_path: Path, weights: Path) -> None:
    old = {}
    for name, tensor in read_state_dict(weights).items():
        for today, then in (
            ("embedding.word.embedding.", "embedding.word_embedding."),
            ("embedding.pos.embedding.", "embedding.position_embedding."),
            ("embedding.seg.embedding.", "embedding.segment_embedding."),
            ("target.mlm.linear_", "target.mlm_linear_"),
            ("target.mlm.layer_norm.", "target.layer_norm."),
            ("target.sp.linear_", "target.nsp_linear_"),
        ):
            name = name.replace(today, then)
        old[f"module.{name}"] = tensor
    save_weights(old, tmp_path / "old.bin")
    report = load_weights(model_of(target=("mlm", "sp"), tie_weights=True), tmp_path / "old.bin")
    assert report.missing == [] and report.unexpected == []


def test_description_is_heeded(tmp_path: Path) -> None:
    """Heads fit whatever their number: only the description can tell."""
    config = ModelConfig(**SIZES)
    save_weights(build_model(config, VOCABULARY).state_dict(), tmp_path / "model.bin")
    write_description(tmp_path / "model.bin", config, None, vocab_size=VOCABULARY)
    free = {"dropout": 0.5, "ignore_index": True, "target_weights": {"mlm": 2.0}}
    assert load_weights(model_of(**free), tmp_path / "model.bin").notes == []
    with pytest.raises(WeightsError, match=r"`heads_num` is 4, but the weights .* have 2"):
        load_weights(model_of(heads_num=4), tmp_path / "model.bin")


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "relu"},
        {"layernorm_positioning": "pre"},
        {"mask": "causal"},
        {"remove_attention_scale": True},
        {"rotary_position_embedding": True, "rope_theta": 5.0},
        {"mask": "causal", "sliding_window": 3},
    ],
)
def test_what_changes_the_computation_and_no_shape_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = ModelConfig(**SIZES)
    save_weights(build_model(config, VOCABULARY).state_dict(), tmp_path / "model.bin")
    write_description(tmp_path / "model.bin", config, None, vocab_size=VOCABULARY)
    with pytest.raises(WeightsError) as caught:
        load_weights(model_of(**changes), tmp_path / "model.bin")
    for name, value in changes.items():
        assert f"`{name}` is {value}, but the weights {tmp_path / 'model.bin'} have" in str(caught.value)


def test_what_changes_outputs_a_little_is_told(tmp_path: Path) -> None:
    config = ModelConfig(**SIZES, target=("mlm", "sp"), layernorm_eps=1e-12)
    save_weights(build_model(config, VOCABULARY).state_dict(), tmp_path / "model.bin")
    write_description(tmp_path / "model.bin", config, None, vocab_size=VOCABULARY)
    path = tmp_path / "model.bin"
    assert load_weights(model_of(target=("mlm", "sp"), layernorm_eps=1e-12), path).notes == []
    report = load_weights(model_of(target=("mlm", "sp"), pooling="mean"), path)
    epsilon, pooling = str(report).split("\n")[3:]
    assert (
        epsilon == "`layernorm_eps` is 1e-06, but the weights were made with 1e-12: outputs differ a little"
    )
    assert pooling.startswith("`pooling` is mean, but the weights were made with first: the head ")
    # Without the head nothing was trained on the first state.
    assert len(load_weights(model_of(pooling="mean"), path).notes) == 1


def test_a_head_for_other_classes(tmp_path: Path) -> None:
    heads = {
        name: torch.nn.Linear(16, size) for name, size in (("output_layer_1", 16), ("output_layer_2", 3))
    }
    model, other = model_of(), model_of()
    for name, layer in heads.items():
        model.add_module(name, layer)
        other.add_module(name, torch.nn.Linear(16, 16 if name.endswith("1") else 2))
    save_weights(model.state_dict(), tmp_path / "model.bin")
    with pytest.raises(WeightsError) as caught:
        load_weights(other, tmp_path / "model.bin")
    assert "fine-tuned for 3 classes, this task has 2; fine-tune for other classes from" in str(caught.value)
    assert "predict with `labels_num` 3" in str(caught.value)


def test_huggingface_file_is_converted(tmp_path: Path, weights: Path) -> None:
    from tencentpretrain.conversion.engine import to_theirs
    from tencentpretrain.conversion.maps import BERT

    tensors = read_state_dict(weights)
    theirs = dict(to_theirs(BERT, tensors).tensors) | {"bert.embeddings.position_ids": torch.arange(10)[None]}
    save_weights(theirs, tmp_path / "pytorch_model.bin")
    report = load_weights(model_of(target=("mlm", "sp"), tie_weights=True), tmp_path / "pytorch_model.bin")
    assert report.missing == [] and report.unexpected == ["bert.embeddings.position_ids"]


def test_published_files_are_safe_to_load(weights: Path) -> None:
    """The state dict is plain: torch.load(weights_only=True) in any other program reads it."""
    tensors = torch.load(weights, weights_only=True)
    assert type(tensors) is dict and all(type(tensor) is torch.Tensor for tensor in tensors.values())
    assert {"embedding.word.embedding.weight", "target.mlm.linear_2.weight"} <= tensors.keys()


def test_api_with_a_configuration_file(tmp_path: Path, weights: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**SIZES, "target": ["mlm", "sp"], "tie_weights": True}), encoding="utf-8")
    assert not load_weights(build_model(load_config(path), VOCABULARY), os.fspath(weights)).missing
