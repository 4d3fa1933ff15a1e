"""Vectors of sentences: what the program writes, beside the model called directly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tencentpretrain import build_model, encode, load_tokenizer, load_weights
from tencentpretrain.description import make_description
from tencentpretrain.errors import ConfigError, DataError, UserError, WeightsError
from tencentpretrain.inspection.features import extract_features, whiten
from tencentpretrain.layers.pooling import pool
from tencentpretrain.model import Body, initialise
from tencentpretrain.sizes import DataSizes
from tencentpretrain.weights import described_config, publish_weights, read_description, save_weights

SENTENCES = ["river bank", "", "money in the bank old cash fish", "water", "banks and fishing"]


def features(weights: Path, *options: str, sentences: list[str] = SENTENCES) -> Tensor:
    path, output = weights.with_name("sentences.txt"), weights.with_name("features.pt")
    path.write_text("\n".join(sentences) + "\n", encoding="utf-8")
    extract_features(
        [
            f"--load_model_path={weights}",
            f"--test_path={path}",
            f"--prediction_path={output}",
            "--precision=fp32",
            "--batch_size=2",
            "--seq_length=24",
            *options,
        ]
    )
    written: Tensor = torch.load(output, weights_only=True)
    return written


def expected(weights: Path, pooling: str) -> Tensor:
    description = read_description(weights)
    assert description is not None
    model = build_model(described_config(weights, description), description["vocab_size"]).eval()
    load_weights(model, weights)
    batch = encode(load_tokenizer(weights), SENTENCES)
    with torch.no_grad():
        return pool(model.encode(batch), batch["segment_ids"], pooling)


@pytest.mark.parametrize("pooling", ["mean", "first", "max", "last"])
def test_a_row_for_every_line_in_order(weights: Path, pooling: str) -> None:
    found = features(weights, "--pooling", pooling)
    assert found.dtype == torch.float32 and len(found) == len(SENTENCES)
    torch.testing.assert_close(found, expected(weights, pooling), rtol=0, atol=1e-5)


def test_pooling_is_the_configurations(weights: Path) -> None:
    torch.testing.assert_close(features(weights), expected(weights, "mean"), rtol=0, atol=1e-5)


def test_normalised(weights: Path) -> None:
    found = features(weights, "--normalize_features")
    wanted = torch.nn.functional.normalize(expected(weights, "mean"))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_whitening_as_published() -> None:
    """The kernel of Su et al. by a singular value decomposition of the covariance, as their code has it."""
    torch.manual_seed(0)
    vectors = torch.randn(50, 8) @ torch.randn(8, 8) + 3
    array = vectors.double().numpy()
    left, values, _ = np.linalg.svd(np.cov(array.T))
    theirs = (array - array.mean(0)) @ (left @ np.diag(values**-0.5))[:, :5]
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    ours = whiten(vectors, 5).numpy()
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-5)  # a direction has no sign
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-5)


def test_whitening_needs_enough_sentences(weights: Path) -> None:
    assert features(weights, "--whitening_size=3").shape == (len(SENTENCES), 3)
    for size in (5, 17):
        with pytest.raises(ConfigError, match="differ in 4 directions only"):
            features(weights, f"--whitening_size={size}")
    with pytest.raises(ConfigError, match="in 0 directions"):
        whiten(torch.ones(1, 4), 1)


def test_a_dual_model_gives_the_first_stream(weights: Path) -> None:
    description = read_description(weights)
    assert description is not None
    stream = {"embedding": ["word", "pos", "seg"], "encoder": "transformer"}
    config = described_config(
        weights,
        description
        | {"embedding": ["dual"], "encoder": "dual", "target": [], "stream_0": stream, "stream_1": stream},
    )
    tokenizer = load_tokenizer(weights)
    model = Body(config, DataSizes(tokenizer.vocab_size))
    initialise(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    dual = weights.with_name("dual.bin")
    publish_weights(model.state_dict(), dual, make_description(dual, config, tokenizer))
    batch = encode(tokenizer, SENTENCES)
    with torch.no_grad():
        states = model.eval().encode({"stream_0": batch, "stream_1": batch})[0]  # type: ignore[dict-item]
    wanted = pool(states, batch["segment_ids"], "mean")
    torch.testing.assert_close(features(dual), wanted, rtol=0, atol=1e-5)


def test_mistakes_are_named(weights: Path) -> None:
    with pytest.raises(DataError, match="is empty, expected sentences"):
        features(weights, sentences=[""])
    with pytest.raises(ConfigError, match="must not exceed `max_seq_length`"):
        features(weights, "--seq_length=25")
    with pytest.raises(UserError, match="would be overwritten"):
        features(weights, f"--prediction_path={weights}")
    tensors = torch.load(weights, weights_only=True)
    name = "encoder.transformer.1.layer_norm_2.gamma"
    save_weights({other: tensors[other] for other in tensors if other != name}, weights)
    with pytest.raises(WeightsError, match=f"has no {name}"):
        features(weights)


def test_length_of_the_description_is_the_default(weights: Path) -> None:
    """What sentence-transformers calls max_seq_length comes with the weights."""
    description = read_description(weights)
    assert description is not None
    publish_weights(torch.load(weights, weights_only=True), weights, description | {"seq_length": 4})
    path, output = weights.with_name("sentences.txt"), weights.with_name("features.pt")
    path.write_text("river bank money\nriver bank cash\n", encoding="utf-8")
    extract_features([f"--load_model_path={weights}", f"--test_path={path}", f"--prediction_path={output}"])
    one, other = torch.load(output, weights_only=True)
    assert torch.equal(one, other)  # both are cut before the word in which they differ
