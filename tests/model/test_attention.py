"""Attention of whole encoders and decoders against loops over rows, heads and positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tencentpretrain import ConfigError
from tencentpretrain.batch import Batch
from tencentpretrain.config import ModelConfig
from tencentpretrain.decoders.transformer import TransformerDecoder
from tencentpretrain.encoders.transformer import TransformerEncoder
from tencentpretrain.layers import attention
from tencentpretrain.layers.masks import MASKS, Positions
from tencentpretrain.layers.recomputation import Recomputation

HIDDEN, HEADS, ROWS, LENGTH = 16, 4, 2, 7
SMALL = {
    "hidden_size": HIDDEN, "emb_size": HIDDEN, "feedforward_size": 24, "heads_num": HEADS, "layers_num": 3,
    "max_seq_length": LENGTH, "dropout": 1e-9,
}  # fmt: skip
RELATIVE = {"relative_attention_buckets_num": 8, "relative_attention_max_distance": 6}
# With a probability that rounds to zero, attention takes the path with dropout, and drops nothing.

MASKED: dict[str, dict[str, Any]] = {
    "fully_visible": {},
    "causal": {"mask": "causal"},
    "prefix": {"mask": "causal_with_prefix"},
}
FURTHER: dict[str, dict[str, Any]] = {
    "plain": {},
    "relative": {"relative_position_embedding": True, "remove_attention_scale": True},
    "grouped": {"local_kv_heads_num": 2},
    "one_group": {"local_kv_heads_num": 1, "relative_position_embedding": True},
    "wide_heads": {"attention_head_size": 6, "has_qk_norm": True},
    "residual": {"has_residual_attention": True},
    "residual_pre": {"has_residual_attention": True, "layernorm_positioning": "pre"},
    "residual_relative": {
        "has_residual_attention": True,
        "relative_position_embedding": True,
        "local_kv_heads_num": 2,
    },
    "rotary": {"rotary_position_embedding": True},
}
CAUSAL_ONLY: dict[str, dict[str, Any]] = {
    "window": {"sliding_window": 3},
    "window_of_one": {"sliding_window": 1},
    "alibi": {"alibi_position_embedding": True},
    "alibi_relative_window": {
        "alibi_position_embedding": True,
        "relative_position_embedding": True,
        "sliding_window": 4,
    },
    "residual_alibi_window": {
        "has_residual_attention": True,
        "alibi_position_embedding": True,
        "sliding_window": 4,
    },
}
Scored = Callable[[int, int, int, float], float]  # head, query, key, score to the score that counts

ENCODERS = {f"{mask}-{kind}": MASKED[mask] | FURTHER[kind] for mask in MASKED for kind in FURTHER} | {
    f"causal-{kind}": {"mask": "causal", **values} for kind, values in CAUSAL_ONLY.items()
}


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Causal attention that is written out takes several turns even for these lengths."""
    monkeypatch.setattr(attention, "CAUSAL_ROWS", 3)


def make_config(**values: Any) -> ModelConfig:
    relative = RELATIVE if values.get("relative_position_embedding") else {}
    return ModelConfig(**{**SMALL, **relative, **values})


def randomise(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)


def make_encoder(**values: Any) -> TransformerEncoder:
    torch.manual_seed(0)
    encoder = TransformerEncoder(make_config(**values))
    randomise(encoder)
    return encoder.eval()


def make_decoder(**values: Any) -> TransformerDecoder:
    torch.manual_seed(0)
    decoder = TransformerDecoder(make_config(mask="causal", **values))
    randomise(decoder)
    return decoder.eval()


def states(length: int = LENGTH, seed: int = 1) -> Tensor:
    return torch.randn(ROWS, length, HIDDEN, generator=torch.Generator().manual_seed(seed))


SEGMENTS = torch.tensor([[1, 1, 1, 2, 2, 2, 2], [1, 1, 2, 2, 0, 0, 0]])


def visible(config: ModelConfig, segments: list[int], query: int, key: int) -> bool:
    if config.mask == "fully_visible":
        return segments[key] > 0
    if config.mask == "causal_with_prefix" and segments[key] == 1:
        return True
    return key <= query and query - key < (config.sliding_window or LENGTH)


def bucket(distance: int, both_ways: bool) -> int:
    """T5's: half of the buckets for single distances, the rest logarithmic; those ahead in the upper half."""
    buckets, longest, first = 8, 6, 0
    if both_ways:
        buckets //= 2
        first = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    if distance < buckets // 2:
        return first + distance
    far = math.log(distance / (buckets // 2)) / math.log(longest / (buckets // 2)) * (buckets - buckets // 2)
    return first + min(buckets // 2 + int(far), buckets - 1)


def attend(attention: Any, asking: Tensor, answering: Tensor, scored: Scored) -> Tensor:
    """One row: [T, D] and [S, D] to [T, D]."""
    size = attention.head_size
    query, key, value = (
        layer(part).unflatten(-1, (-1, size))
        for layer, part in zip(attention.linear_layers, (asking, answering, answering), strict=True)
    )
    if attention.query_norm is not None:
        query, key = attention.query_norm(query), attention.key_norm(key)
    scale = 1 / math.sqrt(size) if attention.scale is None else attention.scale
    group = query.shape[1] // key.shape[1]
    context = torch.zeros(len(asking), query.shape[1], size)
    for head in range(query.shape[1]):
        for at in range(len(asking)):
            products = [
                float(query[at, head] @ key[to, head // group]) * scale for to in range(len(answering))
            ]
            scores = [scored(head, at, to, product) for to, product in enumerate(products)]
            weights = [math.exp(score - max(scores)) for score in scores]
            context[at, head] = sum(
                weight / sum(weights) * value[to, head // group] for to, weight in enumerate(weights)
            )
    output: Tensor = attention.final_linear(context.flatten(1))
    return output


def reference_encoder(encoder: TransformerEncoder, config: ModelConfig, hidden: Tensor) -> Tensor:
    """hidden: [B, S, D]; padding is not computed and stays zero."""
    result = torch.zeros_like(hidden)
    for row in range(ROWS):
        segments = [segment for segment in SEGMENTS[row].tolist() if segment > 0]
        state, scored = hidden[row, : len(segments)], scoring(encoder, config, segments)
        for layer in encoder.transformer:
            attention: Any = layer.self_attn
            if config.layernorm_positioning == "pre":
                normed = layer.layer_norm_1(state)
                state = state + attend(attention, normed, normed, scored)
                state = state + layer.feed_forward(layer.layer_norm_2(state))
            else:
                state = layer.layer_norm_1(state + attend(attention, state, state, scored))
                state = layer.layer_norm_2(state + layer.feed_forward(state))
        result[row, : len(segments)] = state if encoder.layer_norm is None else encoder.layer_norm(state)
    return result


def scoring(encoder: TransformerEncoder, config: ModelConfig, segments: list[int]) -> Scored:
    """What becomes of a score, layer after layer, in a row of these segments."""
    biases = (
        None if encoder.relative_pos_emb is None else encoder.relative_pos_emb.relative_attention_bias.weight
    )
    earlier: dict[tuple[int, int, int], float] = {}

    def scored(head: int, query: int, key: int, score: float) -> float:
        if not visible(config, segments, query, key):
            return -math.inf
        if biases is not None:
            score += float(biases[bucket(key - query, config.mask == "fully_visible"), head])
        if config.alibi_position_embedding:
            score -= 2 ** (-8 * (head + 1) / HEADS) * (query - key)
        if config.has_residual_attention:
            score += earlier.get((head, query, key), 0.0)
            earlier[head, query, key] = score
        return score

    return scored


def real(hidden: Tensor) -> Tensor:
    return hidden * (SEGMENTS > 0)[:, : hidden.shape[1], None]


@pytest.mark.parametrize("kind", [kind for kind in ENCODERS if "rotary" not in kind])
@torch.no_grad()
def test_encoders_equal_loops(kind: str) -> None:
    config, encoder = make_config(**ENCODERS[kind]), make_encoder(**ENCODERS[kind])
    expected = reference_encoder(encoder, config, states())
    for training in (False, True):  # without and with dropout
        got = encoder.train(training)(states(), {"segment_ids": SEGMENTS})
        torch.testing.assert_close(real(got), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("padded", [True, False])
@torch.no_grad()
def test_with_dropout_it_is_the_same_attention(kind: str, padded: bool) -> None:
    encoder, batch = make_encoder(**ENCODERS[kind]), {"segment_ids": SEGMENTS} if padded else {}
    expected = encoder(states(), batch)
    torch.testing.assert_close(encoder.train()(states(), batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_leading_outputs_are_those_of_all(kind: str, training: bool) -> None:
    encoder = make_encoder(**ENCODERS[kind]).train(training)
    for batch in ({"segment_ids": SEGMENTS}, {}):
        whole = encoder(states(), batch)
        for number in (1, 3):
            got = encoder(states(), batch, number)
            assert got.shape == (ROWS, number, HIDDEN)
            torch.testing.assert_close(got, whole[:, :number], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positioning", ["pre", "post"])
@torch.no_grad()
def test_decoders_equal_loops(positioning: str) -> None:
    """Their own past, then all of the source but its padding; scores are not passed on."""
    decoder = make_decoder(
        layernorm_positioning=positioning,
        relative_position_embedding=True,
        has_residual_attention=True,
        sliding_window=3,
    )
    assert decoder.self_pos_emb is not None
    biases = decoder.self_pos_emb.relative_attention_bias.weight
    memory, hidden = states(), states(5, seed=2)

    def itself(head: int, query: int, key: int, score: float) -> float:
        if not 0 <= query - key < 3:
            return -math.inf
        return score + float(biases[bucket(key - query, both_ways=False), head])

    for row in range(ROWS):
        source, state = memory[row, SEGMENTS[row] > 0], hidden[row]
        for layer in decoder.transformer_decoder:
            norms = layer.layer_norm_1, layer.layer_norm_2, layer.layer_norm_3
            for number, norm in enumerate(norms):
                asking = norm(state) if positioning == "pre" else state
                if number == 0:
                    change = attend(layer.self_attn, asking, asking, itself)
                elif number == 1:
                    change = attend(layer.context_attn, asking, source, lambda head, query, key, score: score)
                else:
                    change = layer.feed_forward(asking)
                state = state + change if positioning == "pre" else norm(state + change)
        expected = state if decoder.layer_norm is None else decoder.layer_norm(state)
        for training in (False, True):
            got = decoder.train(training)(hidden, memory, {"segment_ids": SEGMENTS})
            torch.testing.assert_close(got[row], expected, rtol=1e-4, atol=1e-5)


def gradients(module: nn.Module, run: Callable[[], Tensor]) -> Iterator[Tensor]:
    module.zero_grad()
    run().square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        yield parameter.grad.clone()


@pytest.mark.parametrize("kind", ["fully_visible-residual_relative", "prefix-plain", "causal-rotary"])
def test_recomputed_activations_give_the_same_gradients(kind: str) -> None:
    encoder = make_encoder(**ENCODERS[kind]).train()
    decoder = make_decoder(rotary_position_embedding=True).train()
    both = nn.ModuleList([encoder, decoder])
    batch = {"segment_ids": SEGMENTS}

    def run() -> Tensor:
        output: Tensor = decoder(states(5, seed=2), encoder(states(), batch), batch)
        return output

    expected = list(gradients(both, run))
    encoder.recomputation = decoder.recomputation = Recomputation()
    calls = []
    attention: Any = encoder.get_submodule("transformer.0.self_attn")
    attention.register_forward_pre_hook(lambda module, inputs: calls.append(1))
    for got, wanted in zip(gradients(both, run), expected, strict=True):
        torch.testing.assert_close(got, wanted)
    assert len(calls) == 2


COMPILED = ["plain", "relative", "grouped", "residual", "rotary"]


def check_compiled(module: nn.Module, inputs: list[Any]) -> None:
    """As one graph; a break would be an error."""
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs), module(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [f"fully_visible-{kind}" for kind in COMPILED] + [
    "causal-alibi", "causal-window", "prefix-plain"
])  # fmt: skip
def test_encoders_compile_to_one_graph(kind: str) -> None:
    encoder = make_encoder(**{**ENCODERS[kind], "layers_num": 2, "dropout": 0.0})
    check_compiled(encoder.train(), [states(), {"segment_ids": SEGMENTS}])


@pytest.mark.parametrize("keeps_linear", [False, True])
def test_recomputation_is_compiled_too(keeps_linear: bool) -> None:
    encoder = make_encoder(**{**ENCODERS["fully_visible-plain"], "dropout": 0.0}).train()

    def run() -> Tensor:
        output: Tensor = encoder(states(), {"segment_ids": SEGMENTS})
        return output

    expected = list(gradients(encoder, run))
    encoder.recomputation = Recomputation(2, keeps_linear)
    torch._dynamo.reset()
    encoder.compile(fullgraph=True, backend="aot_eager")
    for got, wanted in zip(gradients(encoder, run), expected, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("kind", [*COMPILED, "alibi", "window"])
def test_decoders_compile_to_one_graph(kind: str) -> None:
    values: dict[str, Any] = {**(FURTHER | CAUSAL_ONLY)[kind], "layers_num": 1, "dropout": 0.0}
    check_compiled(make_decoder(**values).train(), [states(5, seed=2), states(), {"segment_ids": SEGMENTS}])


def changed_by(run: Callable[[Tensor], Tensor], hidden: Tensor, position: int) -> set[int]:
    """The positions of the first row whose output depends on what stands at `position`."""
    other = hidden.clone()
    other[0, position] += 1.0
    difference = (run(hidden) - run(other))[0].abs().amax(-1)
    return {at for at, value in enumerate(difference.tolist()) if value > 0}


@torch.no_grad()
def test_the_prefix_sees_itself_and_nothing_of_what_follows() -> None:
    """UniLM: one layer, so that each position depends on what it sees and on nothing else."""
    encoder = make_encoder(mask="causal_with_prefix", layers_num=1)
    segments = torch.tensor([[1, 1, 1, 2, 2, 2, 0]] * ROWS)

    def run(hidden: Tensor) -> Tensor:
        output: Tensor = encoder(hidden, {"segment_ids": segments})
        return output[:, :6]

    for position in range(3):
        assert changed_by(run, states(), position) == {0, 1, 2, 3, 4, 5}
    for position in range(3, 6):
        assert changed_by(run, states(), position) == set(range(position, 6))
    assert changed_by(run, states(), 6) == set()


@pytest.mark.parametrize("mask", ["causal", "causal_with_prefix"])
@torch.no_grad()
def test_padding_on_the_left_is_seen_by_itself_only(mask: str) -> None:
    segments = torch.tensor([[0, 0, 1, 1, 2, 2]])
    at = Positions(segments, queries=6, keys=6, device=segments.device, generating=True)
    allowed = MASKS[mask](at).allowed
    assert allowed is not None
    seen = [{key for key in range(6) if allowed[0, 0, query, key]} for query in range(6)]
    prefix = {2, 3}
    assert seen[:2] == [{0}, {1}] if mask == "causal" else [{0} | prefix, {1} | prefix]
    assert seen[2:] == [
        {2} if mask == "causal" else prefix, prefix, prefix | {4}, prefix | {4, 5},
    ]  # fmt: skip
    for queries in (1, 2, 4):  # later steps of generation ask for the last positions only
        later = MASKS[mask](at._replace(queries=queries)).allowed
        assert later is not None
        assert torch.equal(later.expand(1, 1, queries, 6), allowed[:, :, -queries:])


@pytest.mark.parametrize("option", [{"sliding_window": 4}, {"alibi_position_embedding": True}])
@pytest.mark.parametrize("mask", ["fully_visible", "causal_with_prefix"])
def test_what_looks_back_only_needs_a_causal_mask(option: dict[str, Any], mask: str) -> None:
    with pytest.raises(ConfigError, match=f"`{next(iter(option))}` looks back only .* but it is {mask}"):
        make_config(mask=mask, **option)


def test_decoders_of_models_with_residual_attention_pass_no_scores_on() -> None:
    plain, residual = make_decoder(), make_decoder(has_residual_attention=True)
    batch: Batch = {}
    inputs = states(5, seed=2), states(), batch
    assert torch.equal(residual(*inputs), plain(*inputs))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("residual", [False, True])
def test_padding_of_packed_rows_has_finite_gradients(mask: str, residual: bool) -> None:
    """Also where attention is written out, as it is with dropout on the CPU."""
    torch.manual_seed(0)
    config = ModelConfig(**SMALL | {"dropout": 0.1}, mask=mask, has_residual_attention=residual)
    encoder = TransformerEncoder(config).train()
    documents = torch.tensor([[1, 1, 2, 2, 0, 0, 0], [1, 1, 1, 2, 2, 2, 2]])
    hidden = torch.randn(ROWS, LENGTH, HIDDEN, requires_grad=True)
    states = encoder(hidden, {"segment_ids": (documents > 0).long(), "document_ids": documents})
    states[documents > 0].sum().backward()
    assert hidden.grad is not None and hidden.grad.isfinite().all()
    assert not hidden.grad[documents == 0].any()
