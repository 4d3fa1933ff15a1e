"""BLOOM: heads that are stored one after the other, and configurations; see tests/parity for outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tencentpretrain import build_model
from tencentpretrain.conversion import huggingface
from tencentpretrain.conversion.huggingface import OurModel
from tencentpretrain.conversion.maps.bloom import BLOOM
from tencentpretrain.conversion.steps import SplitHeads
from tencentpretrain.errors import WeightsError
from tencentpretrain.weights import described_config

ROOT = Path(__file__).parents[2]
HERE = Path("config.json")
SMALL = {"hidden_size": 24, "emb_size": 24, "feedforward_size": 96, "heads_num": 6, "layers_num": 2}


def test_heads_are_taken_apart() -> None:
    config = {"hidden_size": 4, "heads_num": 2}
    fused = torch.arange(12)[:, None]  # of head 0: two rows of queries, keys, values; then of head 1
    query, key, value = SplitHeads().to_ours([fused], config)
    assert query.flatten().tolist() == [0, 1, 6, 7]
    assert key.flatten().tolist() == [2, 3, 8, 9]
    assert value.flatten().tolist() == [4, 5, 10, 11]
    (back,) = SplitHeads().to_theirs([query, key, value], config)
    assert torch.equal(back, fused)
    with pytest.raises(WeightsError, match="not made of heads of 6 rows"):
        SplitHeads().to_ours([fused[:10]], config)
    with pytest.raises(WeightsError, match="not known from the weights alone"):
        SplitHeads().to_ours([fused], {})


@pytest.mark.parametrize(
    "written",
    [
        {"hidden_size": 48, "n_layer": 3, "n_head": 6},
        {"n_embed": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "offset_alibi": 100},
    ],
)
def test_values_under_either_name(written: dict[str, int]) -> None:
    values = huggingface.our_values(BLOOM, written, HERE)
    expected = {"hidden_size": 48, "emb_size": 48, "feedforward_size": 192, "layers_num": 3, "heads_num": 6}
    assert {name: values[name] for name in expected} == expected
    assert values["tie_weights"] and values["alibi_position_embedding"]
    assert not values["remove_embedding_layernorm"] and values["hidden_act"] == "gelu_fast"


def test_residual_after_the_norm_is_refused() -> None:
    written = {"apply_residual_connection_post_layernorm": True}
    with pytest.raises(WeightsError, match="`apply_residual_connection_post_layernorm` is True"):
        huggingface.our_values(BLOOM, written, HERE)


def test_published_configuration() -> None:
    """It leaves out a norm that the original has: it runs as it stands, and is no model of theirs."""
    published = json.loads((ROOT / "models/bloom/7b1_config.json").read_text(encoding="utf-8"))
    values = {name: value for name, value in published.items() if name not in ("about", "data_processor")}
    model = build_model(described_config(HERE, values | SMALL), 50).eval()
    assert not any(name.startswith("embedding.layer_norm") for name in model.state_dict())
    ids = torch.arange(5, 15)[None]
    labels = {"lm_labels": ids.roll(-1, 1)}
    output = model({"input_ids": ids, "segment_ids": torch.ones_like(ids), **labels})
    assert output.loss.isfinite()
    with pytest.raises(WeightsError, match="`remove_embedding_layernorm` is True"):
        huggingface.their_config(BLOOM, model.config, OurModel(model.state_dict()), ("lm",))


def test_inner_width_is_always_four_times_theirs() -> None:
    values = huggingface.our_values(BLOOM, {"hidden_size": 24, "n_head": 6}, HERE)
    config = described_config(HERE, values | {"target": ["lm"], "feedforward_size": 80})
    tensors = {"embedding.word.embedding.weight": torch.zeros(9, 24)}
    with pytest.raises(WeightsError, match=r"`feedforward_size` is 80, only four times `hidden_size` \(96\)"):
        huggingface.their_config(BLOOM, config, OurModel(tensors), ("lm",))
