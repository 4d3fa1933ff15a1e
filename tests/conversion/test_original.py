"""Checkpoints of the original BERT and ALBERT: names and shapes as published, numbers as of Transformers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import SIZES, VOCABULARY, tiny_bert
from torch import Tensor

from tencentpretrain import build_model, load_config, load_weights
from tencentpretrain.config import ModelConfig
from tencentpretrain.conversion.engine import to_ours, to_theirs, without_copies
from tencentpretrain.conversion.family import Family
from tencentpretrain.conversion.maps.albert import ALBERT
from tencentpretrain.conversion.maps.bert import BERT
from tencentpretrain.conversion.maps.original import ORIGINAL_ALBERT, ORIGINAL_BERT
from tencentpretrain.conversion.tensorflow import read_checkpoint, write_checkpoint
from tencentpretrain.errors import ConfigError, WeightsError

V, D, F, P, E = len(VOCABULARY), 24, 40, 20, 12  # vocabulary, hidden, inner, positions, embedding
HEAD = {
    "cls/predictions/output_bias": (V,), "cls/seq_relationship/output_weights": (2, D),
    "cls/seq_relationship/output_bias": (2,), "bert/pooler/dense/kernel": (D, D),
    "bert/pooler/dense/bias": (D,),
}  # fmt: skip


def embeddings(width: int) -> dict[str, tuple[int, ...]]:
    return {
        "bert/embeddings/word_embeddings": (V, width), "bert/embeddings/position_embeddings": (P, width),
        "bert/embeddings/token_type_embeddings": (2, width), "bert/embeddings/LayerNorm/gamma": (width,),
        "bert/embeddings/LayerNorm/beta": (width,), "cls/predictions/transform/dense/kernel": (D, width),
        "cls/predictions/transform/dense/bias": (width,),
        "cls/predictions/transform/LayerNorm/gamma": (width,),
        "cls/predictions/transform/LayerNorm/beta": (width,),
    }  # fmt: skip


def layer(
    place: str, attention: str, norm: str, inner: str, outer: str, last: str
) -> dict[str, tuple[int, ...]]:
    dense = {
        **{f"{attention}/self/{name}": (D, D) for name in ("query", "key", "value")},
        f"{attention}/output/dense": (D, D), inner: (D, F), outer: (F, D),
    }  # fmt: skip
    return {
        **{f"{place}/{name}/kernel": shape for name, shape in dense.items()},
        **{f"{place}/{name}/bias": shape[1:] for name, shape in dense.items()},
        **{f"{place}/{name}/{kind}": (D,) for name in (norm, last) for kind in ("gamma", "beta")},
    }


# Names as in the variables of bert_model.ckpt and of ALBERT's model.ckpt-best.
BERT_VARIABLES = embeddings(D) | HEAD
for number in range(3):
    BERT_VARIABLES |= layer(
        f"bert/encoder/layer_{number}", "attention", "attention/output/LayerNorm", "intermediate/dense",
        "output/dense", "output/LayerNorm",
    )  # fmt: skip
ALBERT_VARIABLES = embeddings(E) | HEAD | {
    "bert/encoder/embedding_hidden_mapping_in/kernel": (E, D),
    "bert/encoder/embedding_hidden_mapping_in/bias": (D,),
} | layer(
    "bert/encoder/transformer/group_0/inner_group_0", "attention_1", "LayerNorm", "ffn_1/intermediate/dense",
    "ffn_1/intermediate/output/dense", "LayerNorm_1",
)  # fmt: skip
FAMILIES = {
    "bert": (ORIGINAL_BERT, BERT, BERT_VARIABLES),
    "albert": (ORIGINAL_ALBERT, ALBERT, ALBERT_VARIABLES),
}


def variables(name: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = FAMILIES[name][2]
    return {variable: torch.randn(shape, generator=generator) for variable, shape in shapes.items()}


def reference(name: str) -> Any:
    import transformers

    if name == "bert":
        return tiny_bert()
    sizes = SIZES | {"embedding_size": E, "hidden_act": "gelu_new", "classifier_dropout_prob": 0.0}
    torch.manual_seed(0)
    return transformers.AlbertForPreTraining(transformers.AlbertConfig(**sizes)).eval()


def originals_of(family: Family, huggingface: Family, model: Any) -> dict[str, Tensor]:
    """The reference's weights under the original names."""
    return dict(
        without_copies(family, to_theirs(family, to_ours(huggingface, model.state_dict()).tensors).tensors)
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_every_variable_has_a_place_and_comes_back_as_it_was(name: str) -> None:
    family, source = FAMILIES[name][0], variables(name)
    done = to_ours(
        family, source | {"global_step": torch.tensor(3), "bert/pooler/dense/kernel/adam_m": torch.ones(2)}
    )
    assert sorted(done.ignored) == ["bert/pooler/dense/kernel/adam_m", "global_step"]
    assert set(done.parts) == {"mlm", "sp"} and not done.incomplete
    back = without_copies(family, to_theirs(family, done.tensors).tensors)
    assert back.keys() == source.keys()
    assert all(torch.equal(back[variable], tensor) for variable, tensor in source.items())


@pytest.mark.parametrize("name", FAMILIES)
def test_variables_of_a_reference_have_the_published_shapes(name: str) -> None:
    family, huggingface, shapes = FAMILIES[name]
    found = originals_of(family, huggingface, reference(name))
    assert {variable: tuple(tensor.shape) for variable, tensor in found.items()} == shapes


def test_kernels_are_transposed() -> None:
    model = tiny_bert()
    found = originals_of(ORIGINAL_BERT, BERT, model)
    assert torch.equal(
        found["bert/encoder/layer_1/intermediate/dense/kernel"],
        model.bert.encoder.layer[1].intermediate.dense.weight.T,
    )
    assert torch.equal(found["cls/seq_relationship/output_weights"], model.cls.seq_relationship.weight)


@pytest.mark.parametrize("name", FAMILIES)
def test_both_programs(run_script: Any, name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow", reason="reads and writes checkpoints with tensorflow")
    family, huggingface, _ = FAMILIES[name]
    model = reference(name)
    source = originals_of(family, huggingface, model)
    write_checkpoint(source, tmp_path / "model.ckpt")
    values = model.config.to_dict() | {"hidden_act": "gelu"}
    (tmp_path / f"{name}_config.json").write_text(json.dumps(values), encoding="utf-8")
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    output = tmp_path / "ours.bin"
    done = run_script(f"convert_{name}_from_original_tf_to_tencentpretrain", tmp_path / "model.ckpt", output)
    assert done.code == 0, done.stderr
    ours = build_model(load_config(f"{output}.json"), V)
    assert load_weights(ours, output).missing == []
    tokens = torch.randint(V, (2, 7))
    batch = {"input_ids": tokens, "segment_ids": torch.ones_like(tokens)}
    with torch.no_grad():
        hidden, theirs = ours.eval().encode(batch), model(tokens, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(hidden, theirs, rtol=1e-5, atol=1e-5)
    done = run_script(f"convert_{name}_from_tencentpretrain_to_original_tf", output, tmp_path / "back.ckpt")
    assert done.code == 0, done.stderr
    back = read_checkpoint(tmp_path / "back.ckpt")
    assert back.keys() == source.keys()
    assert all(torch.equal(back[variable], tensor) for variable, tensor in source.items())


def test_without_tensorflow_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.ckpt.index").touch()
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ConfigError, match="pip install tensorflow-cpu"):
        read_checkpoint(tmp_path / "model.ckpt")


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nothing.ckpt.index: no such file"):
        read_checkpoint(tmp_path / "nothing.ckpt")
    with pytest.raises(WeightsError, match="expected one checkpoint"):
        read_checkpoint(tmp_path)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow", reason="reads and writes checkpoints with tensorflow")
    (tmp_path / "model.ckpt.index").write_bytes(b"nothing of the kind" * 20)
    with pytest.raises(WeightsError, match=r"model\.ckpt: "):
        read_checkpoint(tmp_path / "model.ckpt")
    write_checkpoint(variables("albert"), tmp_path / "cut.ckpt")
    data = tmp_path / "cut.ckpt.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-200])
    with pytest.raises(WeightsError, match=r"cut\.ckpt: "):
        list(read_checkpoint(tmp_path / "cut.ckpt").values())


def test_an_untied_vocabulary_layer_is_refused(run_script: Any, tmp_path: Path) -> None:
    config = ModelConfig(
        embedding=("word", "pos", "seg"), target=("mlm", "sp"), hidden_size=D, emb_size=D, feedforward_size=F,
        heads_num=4, layers_num=1, max_seq_length=P,
    )  # fmt: skip
    torch.save(build_model(config, V).state_dict(), tmp_path / "untied.bin")
    script = "convert_bert_from_tencentpretrain_to_original_tf"
    done = run_script(script, tmp_path / "untied.bin", tmp_path / "x.ckpt")
    assert done.code == 2 and "vocabulary layer is not its word embedding" in done.stderr
