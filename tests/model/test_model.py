"""The model: published parameter names, every combination of modules, tying, sharing, plug-ins."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tencentpretrain import ConfigError, DataError, build_model
from tencentpretrain.batch import DECODER_SIDE, FIELDS, Batch
from tencentpretrain.config import ModelConfig, as_json
from tencentpretrain.config.load import Options
from tencentpretrain.description import write_description
from tencentpretrain.errors import did_you_mean
from tencentpretrain.layers.recomputation import Recomputation
from tencentpretrain.model import Model, check_provided
from tencentpretrain.registry import DECODERS, EMBEDDINGS, ENCODERS, TARGETS, Registry, load_plugins
from tencentpretrain.weights import load_weights, save_weights

VOCABULARY = 97
SMALL = {
    "hidden_size": 32, "emb_size": 32, "feedforward_size": 48, "heads_num": 4, "layers_num": 2,
    "max_seq_length": 40,
}  # fmt: skip


def make_config(**values: Any) -> ModelConfig:
    return ModelConfig(**{**SMALL, "embedding": ("word", "pos", "seg"), "dropout": 0.0, **values})


def make_batch(rows: int = 3, length: int = 12, seed: int = 0) -> Batch:
    """Rows of different lengths, two segments, with labels for every target."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (rows, length), generator=generator)
    segments = torch.ones(rows, length, dtype=torch.int64)
    segments[:, length // 2 :] = 2
    mlm, lm, back = (torch.full((rows, length), -100) for _ in range(3))
    for row in range(rows):
        end = length - 2 * row
        segments[row, end:] = 0
        mlm[row, 1:3] = ids[row, 1:3]
        lm[row, : end - 1] = ids[row, 1:end]
        back[row, 1:end] = ids[row, : end - 1]
    classes = torch.arange(rows) % 2
    return {
        "input_ids": ids * (segments > 0), "segment_ids": segments, "mlm_labels": mlm, "lm_labels": lm,
        "bilm_labels": torch.stack([lm, back], -1), "sp_labels": classes, "cls_labels": classes,
    }  # fmt: skip


PUBLISHED = json.loads((Path(__file__).parent / "parameters.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("family", list(PUBLISHED))
def test_parameters_have_the_published_names_and_shapes(family: str) -> None:
    published = PUBLISHED[family]
    options = Options("", ModelConfig, arguments=[])
    options.add_layer("published", {k: v for k, v in published["config"].items() if k != "data_processor"})
    (config,) = options.build(ModelConfig)
    model = build_model(config, published["vocab_size"], published["labels_num"])
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == published["parameters"]


MASK_NAMES = ("fully_visible", "causal", "causal_with_prefix")
# Options of encoders, for those that have any; a combination takes one after the other.
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "transformer": (
        {"mask": "fully_visible"},
        {"mask": "causal", "layernorm_positioning": "pre", "rotary_position_embedding": True},
        {"mask": "causal_with_prefix", "layernorm": "t5", "relative_position_embedding": True},
        {"mask": "causal", "feed_forward": "gated", "local_kv_heads_num": 2, "has_qk_norm": True},
        {"mask": "causal", "alibi_position_embedding": True, "hidden_act": "silu"},
        {"mask": "fully_visible", "has_residual_attention": True, "layernorm_positioning": "pre"},
        {"mask": "causal", "sliding_window": 3, "remove_transformer_bias": True, "layernorm": "rms"},
        {"mask": "fully_visible", "parameter_sharing": True, "factorized_embedding_parameterization": True},
    ),
    "fnet": ({}, {"factorized_embedding_parameterization": True, "emb_size": 8}),
    "gatedcnn": ({"emb_size": 8}, {"block_size": 1}),
    **{name: ({"emb_size": 8}, {"bidirectional": True}) for name in ("rnn", "lstm", "gru")},
}  # fmt: skip
CAUSAL = {"rnn", "lstm", "gru", "gatedcnn"}
ONE_STREAM = [name for name in ENCODERS if name != "dual"]  # test_dual.py has the other
EMBEDDING_SETS = [
    ("word",),
    *(("word", name) for name in EMBEDDINGS if name not in ("word", "dual")),
    ("word", "pos", "seg"),
]
TARGET_SETS = [*((name,) for name in TARGETS), ("mlm", "sp"), ("lm", "cls")]


def meaningless(values: dict[str, Any]) -> str:
    """Why a combination must be refused; empty: it must not."""
    encoder, decoder, target = values["encoder"], values["decoder"], values["target"]
    if encoder == "transformer":
        sees_all, causal = values["mask"] == "fully_visible", values["mask"] == "causal"
    else:
        causal = encoder in CAUSAL and not values.get("bidirectional")
        sees_all = not causal
    if "lm" in target and decoder is None and sees_all:
        return "target 'lm' needs"
    if {"cls", "sp"}.intersection(target) and decoder is None and causal and values["pooling"] == "first":
        return "the first position sees nothing"
    if "bilm" in target and (decoder is not None or encoder not in ("birnn", "bilstm", "bigru")):
        return "target 'bilm'"
    if decoder == "transformer" and values["emb_size"] != 16:
        return "decoder 'transformer' needs `emb_size`"
    return ""


def combinations() -> Iterator[dict[str, Any]]:
    """The options of every encoder × decoder × targets × embeddings."""
    numbers: dict[str, int] = {}
    for encoder, decoder, target in itertools.product(ONE_STREAM, (None, *DECODERS), TARGET_SETS):
        for embedding in EMBEDDING_SETS:
            number = numbers[encoder] = numbers.get(encoder, -1) + 1
            variants = VARIANTS.get(encoder, ({},))
            variant = variants[number % len(variants)]
            values = {
                "hidden_size": 16, "emb_size": 16, "feedforward_size": 12, "encoder": encoder,
                "decoder": decoder, "target": target, "embedding": embedding,
                "tgt_embedding": embedding if decoder else ("word",), "dropout": 0.1,
                "has_lmtarget_bias": number % 3 == 0,
                "pooling": ("first", "mean", "max", "last")[number % 4], "mask": "fully_visible", **variant,
            }  # fmt: skip
            yield values


# A head reads one position, before (or after) which there is none: no state comes from there, and attention
# that sees one position only has nothing to weigh. By pooling, and whether there is a decoder.
UNREACHED = {
    ("first", True): r"decoder\.(rnn\.weight_hh|.+\.self_attn\.(linear_layers\.[01]|query_norm|key_norm))",
    ("first", False): r"encoder\.(rnn_forward\.weight_hh|rnn\.weight_hh_l1$)",
    ("last", False): r"encoder\.(rnn_backward\.weight_hh|rnn\.weight_hh_l1_reverse)",
}


# A softmax does not change with what is added to all its scores alike, but rounding may leave a trace.
ONLY_ROUNDING = re.compile(r".+\.(self_attn|context_attn)\.(linear_layers\.1\.bias|key_norm\.beta)")


def has_no_gradient(values: dict[str, Any], name: str) -> bool:
    """Whether a parameter's gradient is zero by what the model computes."""
    pattern = UNREACHED.get((values["pooling"], values["decoder"] is not None), "$")
    return {*values["target"]} <= {"sp", "cls"} and re.match(pattern, name) is not None


@pytest.mark.parametrize("name", ONE_STREAM)
def test_every_combination_trains_every_parameter_and_survives_saving(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "os.fsync", lambda handle: None
    )  # hundreds of files that need not survive a power cut
    batch = make_batch(rows=2, length=6)
    batch |= {other: batch[field] for field, other in DECODER_SIDE.items() if field in batch}
    # Of one class of two each, gradients could cancel.
    batch |= {field: torch.ones(2, dtype=torch.int64) for field in ("sp_labels", "cls_labels")}
    seen = set()
    for values in combinations():
        if values["encoder"] != name:
            continue
        decoder, target = values["decoder"], values["target"]
        reason = meaningless(values)
        if reason:
            with pytest.raises(ConfigError, match=reason):
                make_config(**values)
            continue
        config = make_config(**values)
        torch.manual_seed(0)
        model = build_model(config, VOCABULARY, labels_num=3)
        for half in (False, True):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                output = model(batch)
            model.zero_grad()
            output.loss.backward()
            assert output.loss.isfinite() and set(output.parts) == set(target)
            for parameter_name, parameter in model.named_parameters():
                assert parameter.grad is not None, (values, parameter_name)
                assert parameter.grad.isfinite().all(), (values, parameter_name)
                if not half and not ONLY_ROUNDING.fullmatch(parameter_name):  # half rounds small ones to zero
                    zero = has_no_gradient(values, parameter_name)
                    assert bool(parameter.grad.any()) is not zero, (values, parameter_name)
        seen |= {values["embedding"], decoder, target}
        path = tmp_path / ("model.bin" if values["pooling"] == "first" else "model.safetensors")
        save_weights(model.state_dict(), path)
        write_description(path, config, None, labels_num=3, vocab_size=VOCABULARY)
        other = build_model(config, VOCABULARY, labels_num=3)
        report = load_weights(other, path)
        assert report.missing == report.unexpected == report.notes == []
        assert torch.equal(model.eval().encode(batch), other.eval().encode(batch))
    assert seen >= {None, *DECODERS, *EMBEDDING_SETS, ("mlm",), ("sp",), ("cls",)}


def test_every_module_is_in_some_combination() -> None:
    accepted = [values for values in combinations() if not meaningless(values)]
    for registry, kind in ((EMBEDDINGS, "embedding"), (TARGETS, "target")):
        assert {name for values in accepted for name in values[kind]} == set(registry) - {"dual"}
    for kind, registry in (("encoder", ENCODERS), ("decoder", DECODERS)):
        assert {values[kind] for values in accepted} - {None} == set(registry) - {"dual"}


@pytest.mark.parametrize(
    "variant",
    [
        *({"target": ("cls",), "pooling": "mean", **variant} for variant in VARIANTS["transformer"]),
        {"encoder": "fnet"},
        {"decoder": "transformer", "target": ("lm",), "relative_position_embedding": True},
    ],
)
def test_transformers_compile_without_graph_breaks(variant: dict[str, Any]) -> None:
    torch.compiler.reset()
    model = build_model(make_config(**{"layers_num": 1, **variant}), VOCABULARY, labels_num=2).eval()
    batch = make_batch()
    batch |= {other: batch[field] for field, other in DECODER_SIDE.items() if field in batch}
    compiled = torch.compile(model.encode, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(batch), model.encode(batch))


@pytest.mark.parametrize("encoder", ONE_STREAM)
def test_padding_changes_no_result(encoder: str) -> None:
    batch = make_batch()
    for variant in (*VARIANTS.get(encoder, ({},)), {"layers_num": 3}):
        torch.manual_seed(0)
        model = build_model(make_config(**{"encoder": encoder, "target": ("mlm",), **variant}), VOCABULARY)
        hidden = model.eval().encode(batch)
        for row in range(3):
            end = int((batch["segment_ids"][row] > 0).sum())
            alone = {name: value[row : row + 1, :end] for name, value in batch.items() if value.ndim > 1}
            torch.testing.assert_close(model.encode(alone)[0], hidden[row, :end], rtol=1e-4, atol=1e-5)
        without = {"input_ids": batch["input_ids"][:1]}
        ones = without | {"segment_ids": torch.ones_like(without["input_ids"])}
        torch.testing.assert_close(model.encode(without), model.encode(ones), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decoder", list(DECODERS))
def test_padding_of_the_source_changes_no_result_of_a_decoder(decoder: str) -> None:
    model = build_model(make_config(decoder=decoder, target=("lm",), encoder="bilstm"), VOCABULARY).eval()
    batch, target = make_batch(), make_batch(length=9, seed=1)
    batch |= {other: target[field] for field, other in DECODER_SIDE.items() if field in target}
    hidden = model.encode(batch)
    for row in range(3):
        alone = {
            name: batch[name][row : row + 1, : 9 - 2 * row if name in DECODER_SIDE.values() else 12 - 2 * row]
            for name in ("input_ids", "segment_ids", "decoder_input_ids", "decoder_segment_ids")
        }
        torch.testing.assert_close(model.encode(alone)[0], hidden[row, : 9 - 2 * row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", ["fully_visible", "causal", "causal_with_prefix"])
def test_each_position_sees_what_the_mask_says(mask: str) -> None:
    torch.manual_seed(0)
    model = build_model(make_config(mask=mask, layers_num=1), VOCABULARY).eval()
    batch = make_batch(rows=1)
    length = 12
    before = model.encode(batch)[0]
    for changed in range(length):
        other = dict(batch)
        other["input_ids"] = batch["input_ids"].clone()
        other["input_ids"][0, changed] = (other["input_ids"][0, changed] + 1) % VOCABULARY
        seen = (model.encode(other)[0] - before).abs().amax(1) > 0
        for query in range(length):
            prefix = int(batch["segment_ids"][0, changed]) == 1
            expected = {
                "fully_visible": True, "causal": changed <= query,
                "causal_with_prefix": changed <= query or prefix,
            }[mask]  # fmt: skip
            assert bool(seen[query]) == expected, (query, changed)


def test_counts_from_outside_make_micro_batches_add_up_to_one_big_batch() -> None:
    model = build_model(make_config(target=("mlm", "sp"), target_weights={"sp": 0.5}), VOCABULARY)
    batch = make_batch(rows=4)
    batch["mlm_labels"][0, 4:9] = 9  # uneven: a mean of means would differ
    model(batch).loss.backward()
    whole = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    counts = {"mlm": float((batch["mlm_labels"] != -100).sum()), "sp": 4.0}
    for rows in (slice(0, 1), slice(1, 4)):
        model({name: value[rows] for name, value in batch.items()}).normalised(counts).backward()
    for parameter, expected in zip(model.parameters(), whole, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-5, atol=1e-7)


def test_given_positions_change_nothing_and_may_hold_fillers() -> None:
    model = build_model(make_config(target=("mlm",)), VOCABULARY)
    batch = make_batch()
    loss = model(batch).loss
    positions = (batch["mlm_labels"].flatten() != -100).nonzero().squeeze(1)
    for fillers in (0, 3):
        batch["mlm_positions"] = torch.cat([positions, torch.zeros(fillers, dtype=torch.int64)])
        torch.testing.assert_close(model(batch).loss, loss)


def test_tied_weights_are_one_parameter_and_albert_shares_one_layer() -> None:
    tied = build_model(make_config(target=("mlm", "sp"), tie_weights=True), VOCABULARY)
    free = build_model(make_config(target=("mlm", "sp")), VOCABULARY)
    count = [sum(p.numel() for p in model.parameters()) for model in (tied, free)]
    assert count[1] - count[0] == VOCABULARY * 32
    assert tied.state_dict().keys() == free.state_dict().keys()
    shared = build_model(
        make_config(parameter_sharing=True, factorized_embedding_parameterization=True, emb_size=16),
        VOCABULARY,
    )
    names = set(shared.state_dict())
    assert "encoder.transformer.self_attn.final_linear.weight" in names and "encoder.linear.weight" in names
    assert shared.state_dict()["target.mlm.linear_2.weight"].shape == (VOCABULARY, 16)


def test_leading_outputs_are_those_of_the_whole() -> None:
    batch = make_batch()
    for mask, position in itertools.product(MASK_NAMES, ("pre", "post")):
        model = build_model(make_config(mask=mask, layernorm_positioning=position), VOCABULARY).eval()
        embedded = model.embedding(batch)
        whole = model.encoder(embedded, batch)
        for number in (1, 5):
            leading = model.encoder(embedded, batch, number)
            torch.testing.assert_close(leading, whole[:, :number], rtol=1e-5, atol=1e-6)


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    model = build_model(make_config(dropout=0.1), VOCABULARY)
    gradients, kept, linear, attention = [], [], [], []
    for recomputation in (None, Recomputation(), Recomputation(2), Recomputation(keeps_linear=True)):
        model.encoder.recomputation = recomputation
        kept.append(saved_elements(model))
        model.zero_grad()
        torch.manual_seed(3)
        with FlopCounterMode(display=False) as counter:
            model(make_batch()).loss.backward()
        flops = counter.get_flop_counts()["Global"]
        linear.append(flops[torch.ops.aten.addmm] + flops[torch.ops.aten.mm])
        attention.append(flops[torch.ops.aten.bmm])
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for whole, *others in zip(*gradients, strict=True):
        assert all(torch.equal(whole, other) for other in others)
    assert kept[2] < kept[1] < kept[0] / 2
    assert linear[0] == linear[3] < linear[1] == linear[2]
    assert attention[0] < attention[3] == attention[1] == attention[2]


def saved_elements(model: Model) -> int:
    """Numbers that a forward pass keeps for the backward pass."""
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model.encoder(torch.randn(3, 12, 32, requires_grad=True), make_batch())
    return kept


def test_a_language_model_that_sees_its_answers_is_refused() -> None:
    with pytest.raises(ConfigError, match="target 'lm' needs `mask` causal"):
        make_config(target=("lm",), mask="fully_visible")


def test_a_batch_without_the_labels_a_target_reads_is_named() -> None:
    batch = make_batch()
    del batch["mlm_labels"]
    with pytest.raises(DataError, match=r"target 'mlm' reads 'mlm_labels'.*model.encode"):
        build_model(make_config(), VOCABULARY)(batch)


def test_a_longer_sequence_than_the_position_table_is_named() -> None:
    with pytest.raises(DataError, match=r"sequence of 50 tokens exceeds max_seq_length \(40\)"):
        build_model(make_config(), VOCABULARY).encode({"input_ids": torch.ones(1, 50, dtype=torch.int64)})


def test_initial_weights_are_small_and_biases_zero() -> None:
    for name, value in build_model(make_config(), VOCABULARY).named_parameters():
        if value.ndim >= 2:
            assert 0.01 < float(value.detach().std()) < 0.03, name
        elif name.endswith(("bias", "beta")):
            assert not value.any(), name
        else:
            assert bool((value == 1).all()), name


def test_a_model_that_reads_what_the_data_lacks_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        check_provided(make_config(target=("mlm", "sp")), ("input_ids", "segment_ids", "mlm_labels"), "mlm")
    assert re.fullmatch(
        r"target 'sp' reads 'sp_labels', which processor 'mlm' does not provide "
        r"\(processors that do: (\w+, )*bert(, \w+)*\)\.",
        str(error.value),
    )


def test_what_one_module_writes_another_may_read(monkeypatch: pytest.MonkeyPatch) -> None:
    config, provides = make_config(target=("mlm",)), ("input_ids", "segment_ids", "mlm_labels")
    monkeypatch.setattr(TARGETS["mlm"], "reads", ("mlm_labels", "router_loss"))
    with pytest.raises(ConfigError, match=r"'router_loss'.*\(no processor does\)"):
        check_provided(config, provides, "mlm")
    monkeypatch.setattr(ENCODERS["transformer"], "writes", ("router_loss",), raising=False)
    check_provided(config, provides, "mlm")


def test_unknown_modules_are_refused_with_the_nearest_name() -> None:
    registry: Registry[type[nn.Module]] = Registry("gadget", "tencentpretrain.layers")
    registry.register("sprocket")(nn.Module)
    with pytest.raises(
        ConfigError, match=r"no gadget 'sprocet' \(did you mean 'sprocket'\?\); known: sprocket"
    ):
        registry["sprocet"]
    with pytest.raises(ConfigError, match="registered twice"):
        registry.register("sprocket")(nn.Module)
    assert did_you_mean("zzz", ["sprocket"]) == ""


PLUGIN = """
import torch
from torch import nn
from tencentpretrain import EMBEDDINGS, TARGETS
from tencentpretrain.targets.output import Part

@EMBEDDINGS.register("parity")
class ParityEmbedding(nn.Module):
    reads = ("input_ids",)
    def __init__(self, config, sizes):
        super().__init__()
        self.embedding = nn.Embedding(2, config.emb_size)
    def forward(self, batch):
        return self.embedding(batch["input_ids"] % 2)

@TARGETS.register("norm_is_one")
class NormTarget(nn.Module):
    reads = ("segment_ids",)
    def __init__(self, config, sizes):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(config.hidden_size))
    def forward(self, hidden, batch):
        errors = ((hidden * self.scale).norm(dim=-1) - 1) ** 2
        real = batch["segment_ids"] > 0
        return Part((errors * real).sum(), real.sum(), {})
"""


def test_a_component_from_outside_registers_and_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside_plugin.py").write_text(PLUGIN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for registry in (EMBEDDINGS, TARGETS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    try:
        load_plugins(("outside_plugin",))
        model = build_model(make_config(embedding=("word", "parity"), target=("norm_is_one",)), VOCABULARY)
        model(make_batch()).loss.backward()
        assert model.get_parameter("embedding.parity.embedding.weight").grad is not None
    finally:
        sys.modules.pop("outside_plugin", None)
        if "" in sys.path:
            sys.path.remove("")
    for name in ("nowhere", "./outside_plugin.py", "tencentpretrain.nowhere"):
        with pytest.raises(ConfigError, match=f"there is no module '{name}'"):
            load_plugins((name,))


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, tencentpretrain; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_interface_is_what_is_documented() -> None:
    import tencentpretrain

    for name in tencentpretrain.__all__:
        assert getattr(tencentpretrain, name) is not None
    with pytest.raises(AttributeError):
        _ = tencentpretrain.absent


def test_every_field_is_described() -> None:
    batch: dict[str, Tensor] = make_batch()
    for name, value in batch.items():
        assert value.ndim == len(FIELDS[name].shape.split())
    assert (
        isinstance(build_model(make_config(), VOCABULARY), Model) and as_json(make_config())["heads_num"] == 4
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"share_embedding": True}, "`share_embedding` is about a decoder, which the model"),
        (
            {"prefix_lm_loss": True, "target": ("mlm",)},
            "`prefix_lm_loss` is about target lm, which the model",
        ),
        ({"embedding": ("pos", "seg")}, "`embedding` says where a token is, but not which"),
    ],
)
def test_options_without_what_they_are_about_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_config(**values)
