"""BERT against Transformers: the same numbers, the same gradients, and nothing lost on the way and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import SIZES, tiny_bert
from torch.nn import functional as F

from tencentpretrain import build_model, load_weights
from tencentpretrain.conversion.engine import is_tied, to_ours, to_theirs, without_copies
from tencentpretrain.conversion.maps import BERT, families_of
from tencentpretrain.errors import WeightsError
from tencentpretrain.weights import described_config, read_description, read_state_dict

ROWS, LENGTH = 5, 12


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    """Equal up to a share of the largest number."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * theirs.abs().max().item())


def inputs(padded: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, SIZES["vocab_size"], (ROWS, LENGTH), generator=generator)
    segments = torch.ones_like(ids)
    segments[:, 5:] = 2
    if padded:
        for row in range(1, ROWS):
            ids[row, LENGTH - 2 * row :] = 0
            segments[row, LENGTH - 2 * row :] = 0
    labels = ids.where(torch.rand(ids.shape, generator=generator) < 0.3, -100).where(segments > 0, -100)
    labels[:, 1] = ids[:, 1]
    return {
        "input_ids": ids,
        "segment_ids": segments,
        "mlm_labels": labels,
        "sp_labels": torch.tensor([0, 1, 1, 0, 1]),
    }


@pytest.mark.parametrize(
    ("attention", "activation", "padded"),
    [
        ("eager", "gelu", True),
        ("eager", "gelu", False),
        ("sdpa", "gelu", True),
        ("sdpa", "gelu", False),
        ("sdpa", "gelu_new", True),
        ("sdpa", "relu", True),
        ("sdpa", "silu", True),
    ],
)
def test_same_outputs_and_gradients(tmp_path: Path, attention: str, activation: str, padded: bool) -> None:
    theirs = tiny_bert(attn_implementation=attention, hidden_act=activation)
    theirs.save_pretrained(tmp_path)
    description = read_description(tmp_path)
    assert description is not None
    ours = build_model(described_config(tmp_path, description), description["vocab_size"]).eval()
    assert load_weights(ours, tmp_path).missing == []
    batch = inputs(padded)

    expected = theirs(
        input_ids=batch["input_ids"],
        attention_mask=(batch["segment_ids"] > 0).long(),
        token_type_ids=(batch["segment_ids"] - 1).clamp(min=0),
        labels=batch["mlm_labels"],
        next_sentence_label=batch["sp_labels"],
        output_hidden_states=True,
    )
    output = ours(batch)
    real = batch["segment_ids"] > 0
    hidden = ours.encode(batch)
    assert_close(hidden[real], expected.hidden_states[-1][real], 1e-5)
    assert_close(ours.target["mlm"].logits(hidden)[real], expected.prediction_logits[real], 1e-5)
    assert_close(ours.target["sp"].logits(hidden, batch), expected.seq_relationship_logits, 1e-5)
    loss = F.cross_entropy(expected.prediction_logits.flatten(0, 1), batch["mlm_labels"].flatten())
    assert_close(output.parts["mlm"].loss_sum / output.parts["mlm"].count, loss, 1e-5)
    assert_close(output.loss, expected.loss, 1e-5)

    output.loss.backward()
    expected.loss.backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    converted = to_ours(BERT, gradients).tensors
    for name, parameter in ours.named_parameters():
        gradient = parameter.grad
        assert gradient is not None, name
        if name == "embedding.seg.embedding.weight":  # their padding has segment 0, ours its own
            gradient, expected_gradient = gradient[2], converted[name][2]
        else:
            expected_gradient = converted[name]
        if name.endswith("linear_layers.1.bias"):  # of the keys: exactly zero in theory
            assert gradient.abs().max() < 1e-6
            continue
        assert_close(gradient, expected_gradient, 1e-4)


def state_of(kind: str = "BertForPreTraining", **changes: Any) -> dict[str, torch.Tensor]:
    return dict(tiny_bert(kind, **changes).state_dict())


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_is_exact(tied: bool) -> None:
    theirs = state_of(tie_word_embeddings=tied)
    if not tied:  # they are two parameters, of which only the decoder's is used
        theirs["cls.predictions.bias"] = theirs["cls.predictions.decoder.bias"]
    ours = to_ours(BERT, theirs)
    assert ours.parts == ("mlm", "sp") and ours.layers == {"encoder.transformer": 3}
    assert not ours.tensors["embedding.seg.embedding.weight"][0].any()
    back = to_theirs(BERT, ours.tensors).tensors
    assert_equal(back, theirs)
    assert_equal(to_ours(BERT, back).tensors, ours.tensors)
    assert is_tied(BERT, back) == tied
    small = without_copies(BERT, back)
    assert ("cls.predictions.decoder.weight" in small) != tied
    assert_equal(to_ours(BERT, small).tensors, ours.tensors)


@pytest.mark.parametrize(
    ("kind", "parts", "incomplete"),
    [
        ("BertForPreTraining", ("mlm", "sp"), set()),
        ("BertForMaskedLM", ("mlm",), set()),
        ("BertForNextSentencePrediction", ("sp",), set()),
        ("BertModel", (), {"sp"}),
    ],
)
def test_heads_that_are_there(kind: str, parts: tuple[str, ...], incomplete: set[str]) -> None:
    theirs = state_of(kind)
    assert families_of(theirs)[0] is BERT
    done = to_ours(BERT, theirs)
    assert done.parts == parts and done.incomplete.keys() == incomplete
    back = to_theirs(BERT, done.tensors).tensors
    if kind == "BertModel":  # the prefix of a model with heads is there now
        theirs = {f"bert.{name}": tensor for name, tensor in theirs.items()}
    assert_equal(back, theirs)


def test_old_spellings_and_buffers() -> None:
    theirs = state_of()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in theirs.items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(20)[None]
    assert families_of(old)[0] is BERT
    done = to_ours(BERT, old)
    assert done.ignored == ["bert.embeddings.position_ids"]
    assert_equal(done.tensors, to_ours(BERT, theirs).tensors)


def test_fine_tuned_head_is_ignored_and_said() -> None:
    done = to_ours(BERT, state_of("BertForSequenceClassification", num_labels=3))
    assert set(done.ignored) == {"classifier.weight", "classifier.bias"}


def test_one_type_only() -> None:
    done = to_ours(BERT, state_of(), parts=BERT.types["mlm"])
    assert done.parts == ("mlm",) and not any(name.startswith("target.sp.") for name in done.tensors)
    assert len(done.ignored) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("bert.encoder.layer.1.output.dense.bias"), "layer.1.output.dense.bias"),
        (lambda state: state.pop("bert.embeddings.LayerNorm.bias"), "embeddings.LayerNorm.bias"),
        (lambda state: state.update({"bert.extra.weight": torch.ones(1)}), "bert.extra.weight"),
        (
            lambda state: state.update({"embeddings.LayerNorm.weight": torch.ones(1)}),
            "'bert.embeddings.LayerNorm.weight' is there twice",
        ),
        (
            lambda state: state.update({"bert.encoder.layer.99999.output.dense.bias": torch.ones(1)}),
            "missing",
        ),
    ],
)
def test_every_key_exactly_once(change: Any, message: str) -> None:
    state = state_of()
    change(state)
    with pytest.raises(WeightsError, match=message.replace(".", r"\.")):
        to_ours(BERT, state)


def test_half_a_head_is_named() -> None:
    theirs = state_of()
    del theirs["cls.predictions.transform.LayerNorm.bias"]
    assert to_ours(BERT, theirs).incomplete == {"mlm": ["cls.predictions.transform.LayerNorm.bias"]}


def test_directory_of_their_classifier_loads(tmp_path: Path) -> None:
    tiny_bert("BertForSequenceClassification", num_labels=3).save_pretrained(tmp_path)
    tensors = read_state_dict(tmp_path)
    assert "encoder.transformer.2.layer_norm_2.beta" in tensors and "classifier.weight" not in tensors
