"""Directories of sentence-transformers and siamese models, beside Transformers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import VOCABULARY, tiny_bert

from tencentpretrain import encode, load_tokenizer, load_weights
from tencentpretrain.conversion import sentence_transformers
from tencentpretrain.conversion.program import sbert_from_huggingface, sbert_to_huggingface
from tencentpretrain.errors import WeightsError
from tencentpretrain.layers.pooling import pool
from tencentpretrain.model import Body, initialise
from tencentpretrain.sizes import DataSizes
from tencentpretrain.weights import described_config, read_description, read_state_dict, save_weights

TEXTS = ["a b c", "hello 你好 z", "a"]


def write_modules(directory: Path, pooling: dict[str, Any], *types: str, **sentences: Any) -> None:
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(zip(paths, types, strict=False))
    ]
    (directory / "1_Pooling").mkdir(exist_ok=True)
    for name, value in {
        "modules.json": modules, "1_Pooling/config.json": pooling, "sentence_bert_config.json": sentences,
    }.items():  # fmt: skip
        (directory / name).write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture
def sentence_directory(tmp_path: Path) -> Path:
    return make_directory(tmp_path / "sentences", "BertModel")


def make_directory(directory: Path, kind: str) -> Path:
    tiny_bert(kind).save_pretrained(directory)
    (directory / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    write_modules(
        directory,
        {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True},
        "Transformer", "Pooling", "Normalize",
        max_seq_length=16, do_lower_case=False,
    )  # fmt: skip
    return directory


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    def call(program, source: Path, target: Path, *options: str) -> None:
        arguments = ["--input_model_path", str(source), "--output_model_path", str(target), *options]
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        program()

    return call


def their_vectors(directory: Path) -> torch.Tensor:
    import transformers

    model = transformers.BertModel.from_pretrained(directory).eval()
    batch = encode(load_tokenizer(directory), TEXTS)
    mask = (batch["segment_ids"] > 0).long()
    with torch.no_grad():
        states = model(batch["input_ids"], mask).last_hidden_state
    return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def siamese(weights: Path, **changes: Any) -> Body:
    """The model that the description beside weights tells, with everything loaded."""
    description = read_description(weights)
    assert description is not None
    config = described_config(weights, description | changes)
    torch.manual_seed(1)
    model = Body(config, DataSizes(description["vocab_size"]))
    initialise(model)
    assert load_weights(model, weights).missing == []
    return model.eval()


def test_both_streams_give_the_vectors_of_theirs(run, sentence_directory: Path, tmp_path: Path) -> None:
    run(sbert_from_huggingface, sentence_directory, tmp_path / "ours.bin", "--layers_num", "3")
    model = siamese(tmp_path / "ours.bin")
    assert (model.config.pooling, model.config.layernorm_eps) == ("mean", 1e-12)
    batch = encode(load_tokenizer(tmp_path / "ours.bin"), TEXTS)
    with torch.no_grad():
        streams = model.encode({"stream_0": batch, "stream_1": {k: v.flip(0) for k, v in batch.items()}})
    expected = their_vectors(sentence_directory)
    pooled = [
        pool(hidden, segments, "mean")
        for hidden, segments in zip(
            streams, (batch["segment_ids"], batch["segment_ids"].flip(0)), strict=True
        )
    ]
    for ours, theirs in zip(pooled, (expected, expected.flip(0)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["BertModel", "BertForPreTraining"])
def test_there_and_back_is_the_same_directory(run, kind: str, tmp_path: Path) -> None:
    import transformers

    sentence_directory = make_directory(tmp_path / "sentences", kind)
    run(sbert_from_huggingface, sentence_directory, tmp_path / "ours.bin")
    run(sbert_to_huggingface, tmp_path / "ours.bin", tmp_path / "back")
    class_ = getattr(transformers, kind)
    model, info = class_.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    original = class_.from_pretrained(sentence_directory).state_dict()
    assert all(torch.equal(tensor, original[name]) for name, tensor in model.state_dict().items())
    said = {"pooling": "mean", "normalize_features": True, "seq_length": 16}
    assert sentence_transformers.settings(tmp_path / "back") == said
    assert load_tokenizer(tmp_path / "back").tokens == VOCABULARY


def test_files_of_the_published_scripts(run, sentence_directory: Path, tmp_path: Path) -> None:
    """Names as they write them: theirs bare, without the pooler; ours without what the streams share."""
    import transformers

    theirs = transformers.BertModel.from_pretrained(sentence_directory).state_dict()
    theirs = {name: tensor for name, tensor in theirs.items() if not name.startswith("pooler")}
    torch.save(theirs, tmp_path / "theirs.bin")
    run(sbert_from_huggingface, tmp_path / "theirs.bin", tmp_path / "ours.bin")
    ours = read_state_dict(tmp_path / "ours.bin")
    expected = theirs["encoder.layer.2.output.dense.weight"]
    for stream in (0, 1):
        name = f"encoder.encoder_{stream}.transformer.2.feed_forward.linear_2.weight"
        assert torch.equal(ours[name], expected)
        assert f"embedding.embedding_{stream}.seg.embedding.weight" in ours
    run(sbert_to_huggingface, tmp_path / "ours.bin", tmp_path / "back.bin")
    back = torch.load(tmp_path / "back.bin", weights_only=True)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)


def test_streams_that_differ_are_no_single_model(run, sentence_directory: Path, tmp_path: Path) -> None:
    run(sbert_from_huggingface, sentence_directory, tmp_path / "ours.bin")
    tensors = read_state_dict(tmp_path / "ours.bin")
    name = "embedding.embedding_1.pos.embedding.weight"
    save_weights({**tensors, name: tensors[name] + 1}, tmp_path / "ours.bin")
    with pytest.raises(WeightsError, match=r"embedding_0\.pos.*embedding_1\.pos.* differ"):
        run(sbert_to_huggingface, tmp_path / "ours.bin", tmp_path / "back")
    norm = {"embedding.stream_0_layer_norm.gamma": torch.ones(24)}
    save_weights(tensors | norm, tmp_path / "ours.bin")
    with pytest.raises(WeightsError, match="once more"):
        run(sbert_to_huggingface, tmp_path / "ours.bin", tmp_path / "back")


@pytest.mark.parametrize(
    ("pooling", "ours"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "first"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "mean", "embedding_dimension": 24}, "mean"),
    ],
)
def test_kinds_of_pooling(sentence_directory: Path, pooling: dict[str, Any], ours: str) -> None:
    write_modules(sentence_directory, pooling, "Transformer", "Pooling", max_seq_length=None)
    description = read_description(sentence_directory)
    assert description is not None
    assert (description["pooling"], description["normalize_features"]) == (ours, False)
    assert "seq_length" not in description


def test_the_layout_of_version_six(sentence_directory: Path) -> None:
    """The length is the tokenizer's, and the names of the types are longer."""
    write_modules(sentence_directory, {"pooling_mode": "mean"}, "a.Transformer", "b.Pooling", "c.Normalize")
    for length, expected in ((12, 12), (10**30, None)):
        text = json.dumps({"model_max_length": length})
        (sentence_directory / "tokenizer_config.json").write_text(text, encoding="utf-8")
        assert sentence_transformers.settings(sentence_directory).get("seq_length") == expected


def test_what_is_not_supported_is_refused(sentence_directory: Path) -> None:
    mean = {"pooling_mode_mean_tokens": True}
    write_modules(sentence_directory, mean, "Transformer", "Pooling", "Dense")
    with pytest.raises(WeightsError, match="Transformer, Pooling, Dense"):
        read_description(sentence_directory)
    for pooling in (
        {**mean, "pooling_mode_max_tokens": True},
        {"pooling_mode_mean_sqrt_len_tokens": True},
        {},
    ):
        write_modules(sentence_directory, pooling, "Transformer", "Pooling")
        with pytest.raises(WeightsError, match="supported is one of"):
            read_description(sentence_directory)
    write_modules(sentence_directory, mean, "Transformer", "Pooling", do_lower_case=True)
    (sentence_directory / "tokenizer_config.json").write_text('{"do_lower_case": false}', encoding="utf-8")
    with pytest.raises(WeightsError, match="keeps case"):
        read_description(sentence_directory)
    (sentence_directory / "modules.json").write_text('{"a": 1}', encoding="utf-8")
    with pytest.raises(WeightsError, match="list of modules"):
        read_description(sentence_directory)
