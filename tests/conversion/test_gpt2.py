"""GPT-2 against Transformers: a fused and transposed table in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tencentpretrain import build_model, load_weights
from tencentpretrain.conversion.engine import to_ours, to_theirs, without_copies
from tencentpretrain.conversion.maps import GPT2, families_of
from tencentpretrain.weights import described_config, read_description


def tiny_gpt2(kind: str = "GPT2LMHeadModel", **changes: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 20}
    ends = {"bos_token_id": 1, "eos_token_id": 1}
    model = getattr(transformers, kind)(transformers.GPT2Config(**{**sizes, **ends, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.mark.parametrize("changes", [{}, {"n_inner": 50, "tie_word_embeddings": False}])
def test_same_outputs_and_gradients(tmp_path: Path, changes: dict[str, Any]) -> None:
    theirs = tiny_gpt2(**changes)
    theirs.save_pretrained(tmp_path)
    description = read_description(tmp_path)
    assert description is not None and description["feedforward_size"] == changes.get("n_inner", 96)
    ours = build_model(described_config(tmp_path, description), description["vocab_size"]).eval()
    assert load_weights(ours, tmp_path).missing == []

    ids = torch.randint(40, (3, 12), generator=torch.Generator().manual_seed(1))
    labels = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -100)], 1)
    expected = theirs(ids, labels=ids)
    output = ours({"input_ids": ids, "segment_ids": torch.ones_like(ids), "lm_labels": labels})
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-5, atol=0)

    output.loss.backward()
    expected.loss.backward()
    gradients = to_ours(GPT2, {name: parameter.grad for name, parameter in theirs.named_parameters()}).tensors
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        scale = gradients[name].abs().max().item() + 1e-3
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "GPT2Model"])
def test_round_trip_is_exact(kind: str) -> None:
    theirs = dict(tiny_gpt2(kind).state_dict())
    assert families_of(theirs)[0] is GPT2
    ours = to_ours(GPT2, theirs)
    back = to_theirs(GPT2, ours.tensors).tensors
    full = {
        name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}" for name in theirs
    }
    assert back.keys() == full | {"lm_head.weight"}  # a tied head is always there
    for name, tensor in theirs.items():
        assert torch.equal(back.get(name, back.get(f"transformer.{name}")), tensor)
    assert without_copies(GPT2, back).keys() == full - {"lm_head.weight"}


def test_attention_buffers_are_ignored() -> None:
    theirs = dict(tiny_gpt2().state_dict()) | {"transformer.h.0.attn.bias": torch.ones(1, 1, 20, 20)}
    assert to_ours(GPT2, theirs).ignored == ["transformer.h.0.attn.bias"]
