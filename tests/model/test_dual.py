"""Two streams."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_model import SMALL, VOCABULARY, make_batch, make_config

from tencentpretrain import ConfigError, build_model
from tencentpretrain.config import ModelConfig
from tencentpretrain.model import Body, initialise
from tencentpretrain.sizes import DataSizes

ONE = {"embedding": ["word", "pos"], "encoder": "transformer"}
OTHER = {"embedding": ["word"], "encoder": "gru", "emb_size": 24, "hidden_size": 20, "layers_num": 1}
BATCH = {"stream_0": make_batch(), "stream_1": make_batch(rows=2, length=7, seed=1)}


def dual_config(**values: Any) -> ModelConfig:
    given = {"stream_0": ONE, "stream_1": OTHER, "target": (), **values}
    return make_config(embedding=("dual",), encoder="dual", **given)


def body(**values: Any) -> Body:
    torch.manual_seed(0)
    model = Body(dual_config(**values), DataSizes(VOCABULARY))
    initialise(model)
    return model.eval()


def test_each_stream_is_a_model_of_its_own() -> None:
    model = body(remove_stream_layernorm=True)
    states = model.encode(BATCH)
    assert [tuple(part.shape) for part in states] == [(3, 12, 32), (2, 7, 20)]
    for number, stream in enumerate(("stream_0", "stream_1")):
        alone = Body(model.config.streams[number], DataSizes(VOCABULARY)).eval()
        prefixes = {
            f"embedding.dual.embedding_{number}.": "embedding.",
            f"encoder.encoder_{number}.": "encoder.",
        }
        weights = {
            name.replace(theirs, own): value
            for name, value in model.state_dict().items()
            for theirs, own in prefixes.items()
            if name.startswith(theirs)
        }
        alone.load_state_dict(weights)
        assert torch.equal(alone.encode(BATCH[stream]), states[number])


def test_embeddings_are_normalised_a_second_time_as_published() -> None:
    model = body()
    dual = model.embedding.dual
    for norm in (dual.stream_0_layer_norm, dual.stream_1_layer_norm):
        torch.nn.init.normal_(norm.gamma)
    first = dual.embedding_0(BATCH["stream_0"])
    torch.testing.assert_close(model.embedding(BATCH)[0], dual.stream_0_layer_norm(first))
    bare = body(stream_1={**OTHER, "remove_embedding_layernorm": True})
    names = {name for name in bare.state_dict() if "norm" in name and "embedding" in name}
    assert names == {
        f"embedding.dual.{part}.{vector}"
        for part in ("stream_0_layer_norm", "embedding_0.layer_norm")
        for vector in ("gamma", "beta")
    }


def test_parameters_have_the_published_names() -> None:
    names = set(body().state_dict())
    assert {
        "embedding.dual.embedding_0.word.embedding.weight", "embedding.dual.embedding_0.layer_norm.gamma",
        "embedding.dual.stream_1_layer_norm.beta", "embedding.dual.embedding_1.word.embedding.weight",
        "encoder.encoder_0.transformer.0.self_attn.final_linear.bias", "encoder.encoder_1.rnn.weight_hh_l0",
    } <= names  # fmt: skip
    assert "embedding.layer_norm.gamma" not in names


def test_tied_streams_are_one_module() -> None:
    tied, free = body(stream_1=ONE, tie_weights=True), body(stream_1=ONE)
    assert tied.state_dict().keys() == free.state_dict().keys()
    assert tied.encoder.encoder_0 is tied.encoder.encoder_1
    assert tied.embedding.dual.embedding_0 is tied.embedding.dual.embedding_1
    states = tied.encode({"stream_0": BATCH["stream_0"], "stream_1": BATCH["stream_0"]})
    assert torch.equal(*states)
    reloaded = body(stream_1=ONE, tie_weights=True)
    reloaded.load_state_dict(tied.state_dict())
    assert torch.equal(reloaded.encode(BATCH)[1], tied.encode(BATCH)[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_gets_a_gradient(dtype: torch.dtype, tied: bool) -> None:
    model = body(stream_1=ONE if tied else OTHER, tie_weights=tied, dropout=0.1).train()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        one, other = model.encode(BATCH)
    # Not a plain sum: that of normalised states is constant.
    (one.float() ** 3).sum().add((other.float() ** 3).sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"embedding": ("dual",)}, "need each other.*`encoder` is transformer"),
        ({"encoder": "dual"}, "need each other.*`embedding` is word pos seg"),
        ({"stream_0": ONE}, "are for encoder 'dual', but `encoder` is transformer"),
        ({"embedding": ("dual",), "encoder": "dual"}, "stream_0: `encoder` must name the stream's own"),
        ({"decoder": "lstm", "tgt_embedding": ("dual",)}, "`tgt_embedding` cannot be dual"),
    ],
)
def test_half_a_dual_model_is_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make_config(**values)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"decoder": "transformer"}, "decoder 'transformer' reads one sequence"),
        ({"tie_weights": True}, "`stream_0` and `stream_1` differ"),
        ({"stream_1": {**OTHER, "hiden_size": 3}}, "stream_1: hiden_size: not an option .*'hidden_size'"),
        ({"stream_1": {**ONE, "heads_num": 5}}, "stream_1: `heads_num` must divide"),
        ({"stream_0": {**ONE, "emb_size": 24}}, r"stream_0: `emb_size` \(24\) must equal"),
    ],
)
def test_streams_that_do_not_fit_are_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        dual_config(**values)


@pytest.mark.parametrize("target", ["mlm", "lm", "bilm", "sp", "cls"])
def test_a_target_of_one_sequence_cannot_follow_two(target: str) -> None:
    with pytest.raises(ConfigError, match=f"target '{target}' cannot follow encoder 'dual'.*two sequences"):
        build_model(dual_config(target=(target,)), VOCABULARY, labels_num=3)


def test_a_task_may_name_the_streams_without_the_embeddings_name() -> None:
    """Fine-tuned siamese models have embedding.embedding_i."""
    model = body()
    before = model.encode(BATCH)
    model.embedding = model.embedding.dual
    assert "embedding.embedding_0.pos.embedding.weight" in model.state_dict()
    assert all(torch.equal(*pair) for pair in zip(before, model.encode(BATCH), strict=True))
    assert SMALL["hidden_size"] == before[0].shape[-1]
