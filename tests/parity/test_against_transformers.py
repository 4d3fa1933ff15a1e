"""Every family against Transformers: the same states, logits, losses, gradients and generated tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from cases_bidirectional import CASES as BIDIRECTIONAL
from cases_causal import CASES as CAUSAL
from cases_seq2seq import CASES as SEQ2SEQ
from reference import (
    Case,
    Shape,
    assert_close,
    compare_gradients,
    make_inputs,
    our_logits,
    randomised,
    their_logits,
    their_states,
)
from torch.nn import functional as F

from tencentpretrain import build_model, load_weights
from tencentpretrain.config import ModelConfig
from tencentpretrain.conversion import huggingface
from tencentpretrain.conversion.engine import to_ours, to_theirs
from tencentpretrain.conversion.huggingface import OurModel
from tencentpretrain.generation import greedy
from tencentpretrain.model import Body
from tencentpretrain.sizes import DataSizes
from tencentpretrain.state_dict import StateDict
from tencentpretrain.weights import described_config, read_description

CASES = [*BIDIRECTIONAL, *CAUSAL, *SEQ2SEQ]
GENERATED = 50


@dataclasses.dataclass(frozen=True)
class Pair:
    """A model of theirs, saved in a directory, and ours that was loaded from there."""

    case: Case
    theirs: Any
    ours: Any  # Model or Headless
    directory: Path


class Headless(Body):
    """An encoder alone, which theirs can be too."""

    target: Mapping[str, Any] = {}


def ours_of(config: ModelConfig, vocab_size: int) -> Any:
    return build_model(config, vocab_size) if config.target else Headless(config, DataSizes(vocab_size))


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    case: Case = request.param
    directory = tmp_path_factory.mktemp("parity") / case.name
    theirs = case.make()
    theirs.save_pretrained(directory)
    description = read_description(directory)
    assert description is not None
    config = described_config(directory, description)
    if "target" not in description:
        config = dataclasses.replace(config, target=())
    ours = ours_of(config, description["vocab_size"]).eval()
    report = load_weights(ours, directory)
    assert report.missing == [] and all(map(case.table.is_ignored, report.unexpected))
    yield Pair(case, theirs, ours, directory)


SHAPED = [
    pytest.param(case, shape, id=f"{case.name}-{number}")
    for case in CASES
    for number, shape in enumerate(case.shapes)
]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("pair", "shape"), SHAPED, indirect=["pair"])
def test_same_outputs_and_gradients(pair: Pair, shape: Shape, attention: str) -> None:
    theirs, ours = pair.theirs, pair.ours
    theirs.set_attn_implementation(attention)
    inputs = make_inputs(pair.case, theirs, shape, tuple(ours.target))
    batch, real = inputs.ours, inputs.real

    hidden = ours.encode(batch)
    expected_hidden, expected_memory = their_states(theirs, inputs.theirs)
    assert_close(hidden[real], expected_hidden[real], 1e-5, "hidden states")
    if expected_memory is not None:
        source = batch["segment_ids"] > 0
        memory = ours.encoder(ours.embedding(batch), batch)
        assert_close(memory[source], expected_memory[source], 1e-5, "encoder states")

    logits, expected = our_logits(ours, hidden, batch), their_logits(theirs(**inputs.theirs))
    loss, own_loss = torch.zeros(()), ours(batch).loss if logits else states_loss(hidden[real])
    if not logits:
        loss = states_loss(expected_hidden[real])
    for target, numbers in logits.items():
        kept = slice(None) if target == "sp" else real
        assert_close(numbers[kept], expected[target][kept], 1e-5, f"logits of {target}")
        loss = loss + F.cross_entropy(
            expected[target].flatten(0, -2), batch[f"{target}_labels"].flatten(), ignore_index=-100
        )
    assert_close(own_loss, loss, 1e-5, "loss")

    ours.zero_grad()
    theirs.zero_grad()
    own_loss.backward()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in ours.state_dict(keep_vars=True).items()}
    pair.case.gather(gradients)
    compare_gradients(pair.case.table, pair.ours.config, gradients, pair.theirs, unread(pair).__contains__)


def states_loss(hidden: torch.Tensor) -> torch.Tensor:
    """Something to learn for a model without a head: states [n, D]."""
    return (hidden @ torch.linspace(-1, 1, hidden.shape[-1])).square().mean()


def unread(pair: Pair) -> set[str]:
    """Their tensors that their model does not use: other heads, and biases that untying left without use."""
    family = pair.case.table
    copied = {shared.source for shared in family.shared if family.place(shared.source, ours=False) is None}
    tied = pair.ours.config.tie_weights
    names = [family.canonical(name) for name in pair.theirs.state_dict()]
    return {name for name in names if family.is_ignored(name) or (name in copied and not tied)}


def test_round_trips_are_exact(pair: Pair) -> None:
    family, values = pair.case.table, dataclasses.asdict(pair.ours.config)
    theirs = {family.canonical(name): tensor for name, tensor in pair.theirs.state_dict().items()}
    back = to_theirs(family, to_ours(family, theirs, values).tensors, values).tensors
    kept = theirs.keys() - unread(pair)
    assert kept <= back.keys()
    for name in kept:
        assert torch.equal(back[name], theirs[name]), name

    mine = ours_of(pair.ours.config, pair.ours.sizes.vocab_size)
    ours: StateDict = dict(randomised(mine, seed=1).state_dict())
    for name, rows in pair.case.unused.items():
        ours[name][list(rows)] = 0
    again = to_ours(family, to_theirs(family, ours, values).tensors, values).tensors
    assert again.keys() == ours.keys()
    for name, tensor in ours.items():
        assert torch.equal(again[name], tensor), name


def test_directory_that_is_written_loads(pair: Pair, tmp_path: Path) -> None:
    family, theirs = pair.case.table, pair.theirs
    model = huggingface.read(pair.directory)
    directory = tmp_path / "written"
    huggingface.write(directory, family, OurModel(model.tensors, pair.ours.config), model.parts)
    loaded, info = type(theirs).from_pretrained(directory, output_loading_info=True)
    assert not any(info.values()), info
    read, original = loaded.config.to_dict(), theirs.config.to_dict()
    names = {"architectures", "model_type", "vocab_size", *family.fixed_theirs}
    names |= {setting.theirs for setting in family.settings}
    names = {name for name in names if original.get(name) is not None}  # what is None has a default
    assert {name: read[name] for name in names} == {name: original[name] for name in names}
    saved = theirs.state_dict()
    for name, tensor in loaded.state_dict().items():
        assert family.canonical(name) in unread(pair) or torch.equal(tensor, saved[name]), name


GENERATING = [pytest.param(case, id=case.name) for case in CASES if case.kind != "encoder"]


@pytest.mark.parametrize("pair", GENERATING, indirect=True)
def test_same_tokens_are_generated(pair: Pair) -> None:
    theirs, seq2seq = pair.theirs, pair.case.kind == "seq2seq"
    # Their generation of decoders alone wants padding on the left: prompts of equal length have none.
    inputs = make_inputs(pair.case, theirs, Shape(3, 6, 1, padded=seq2seq), ())
    start = theirs.config.decoder_start_token_id if seq2seq else None
    prompt = {name: inputs.theirs[name] for name in ("input_ids", "attention_mask")}
    theirs.generation_config.update(eos_token_id=None, forced_eos_token_id=None, forced_bos_token_id=None)
    expected = theirs.generate(
        **prompt, max_new_tokens=GENERATED, do_sample=False, num_beams=1, eos_token_id=None, pad_token_id=0
    )
    batch = {name: inputs.ours[name] for name in ("input_ids", "segment_ids")}
    generated = greedy(pair.ours, batch, GENERATED, eos_id=None, start_id=start)
    assert expected[:, -GENERATED:].tolist() == generated[:, -GENERATED:].tolist()
    # A model that repeats itself would prove little.
    assert generated.unique().numel() > 5 or not pair.case.varied
