"""What a parity case is: a tiny random model of Transformers, and inputs for it and for ours."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tencentpretrain.batch import IGNORED
from tencentpretrain.config import ModelConfig
from tencentpretrain.conversion.engine import to_theirs
from tencentpretrain.conversion.family import Family
from tencentpretrain.conversion.maps import FAMILIES
from tencentpretrain.model import Model
from tencentpretrain.state_dict import StateDict

os.environ.setdefault("HF_HUB_OFFLINE", "1")

SPECIAL = 5  # ids below are left to special tokens


class Shape(NamedTuple):
    rows: int
    source: int
    target: int  # of a decoder
    padded: bool


SHAPES = (Shape(4, 12, 9, True), Shape(2, 7, 11, False))


def nothing(gradients: StateDict) -> None:
    pass


@dataclasses.dataclass(frozen=True)
class Case:
    """A model of theirs that ours must equal.

    Attributes:
        family: name of its conversion table.
        make: gives the model, every parameter random (`randomised`).
        unused: rows of our tensors that theirs has no counterpart for; they are zeros after a round trip.
        varied: whether it generates more than a few different tokens.
        gather: changes our gradients in place where theirs has one tensor for several of ours.
    """

    name: str
    family: str
    make: Callable[[], Any]
    kind: Literal["encoder", "causal", "seq2seq"]
    unused: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    varied: bool = True
    gather: Callable[[StateDict], None] = nothing
    shapes: Sequence[Shape] = SHAPES

    @property
    def table(self) -> Family:
        (family,) = (family for family in FAMILIES if family.name == self.family)
        return family


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in evaluation mode, with nothing left at zeros or ones that could hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * 0.25)
            else:
                parameter.copy_(noise * 0.1 + (1.0 if name.endswith("weight") else 0.0))
    return model.eval()


@dataclasses.dataclass(frozen=True)
class Inputs:
    """One batch, as ours and as theirs; `real` [B, T]: where there is text, on the side of the labels."""

    ours: dict[str, Tensor]
    theirs: dict[str, Tensor]
    real: Tensor


def make_inputs(case: Case, theirs: Any, shape: Shape, targets: Sequence[str]) -> Inputs:
    config, generator = theirs.config, torch.Generator().manual_seed(1)
    pad = 0 if config.pad_token_id is None else config.pad_token_id

    def text(length: int) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(SPECIAL, config.vocab_size, (shape.rows, length), generator=generator)
        lengths = torch.full((shape.rows, 1), length)
        if shape.padded:
            lengths = (length - 2 * torch.arange(shape.rows)[:, None]).clamp(min=2)
        real = torch.arange(length) < lengths
        return tokens.where(real, pad), real

    tokens, real = text(shape.source)
    segments = real.long()
    ours = {"input_ids": tokens, "segment_ids": segments}
    reference = {"input_ids": tokens, "attention_mask": real.long()}
    if case.kind == "encoder":
        segments[:, shape.source // 2 :] *= 2
        if getattr(config, "type_vocab_size", 0) >= 2:
            reference["token_type_ids"] = (segments - 1).clamp(min=0)
        hidden = torch.rand(tokens.shape, generator=generator) < 0.4
        hidden[:, 0] = True
        ours["mlm_labels"] = torch.randint(SPECIAL, config.vocab_size, tokens.shape, generator=generator)
        ours["mlm_labels"].masked_fill_(~(hidden & real), IGNORED)
        ours["sp_labels"] = torch.arange(shape.rows) % 2
    if case.kind == "seq2seq":
        tokens, real = text(shape.target)
        ours |= {"decoder_input_ids": tokens, "decoder_segment_ids": real.long()}
        reference |= {"decoder_input_ids": tokens, "decoder_attention_mask": real.long()}
    if "lm" in targets:
        following = F.pad(tokens[:, 1:], (0, 1))
        ours["lm_labels"] = following.where(F.pad(real[:, 1:], (0, 1)), IGNORED)
    return Inputs(ours, reference, real)


def their_logits(output: Any) -> dict[str, Tensor]:
    """Logits of an output of theirs, by the target of ours."""
    names = {
        "prediction_logits": "mlm",
        "logits": "mlm lm",
        "seq_relationship_logits": "sp",
        "sop_logits": "sp",
    }
    found = {
        target: output[name] for name, ours in names.items() if name in output for target in ours.split()
    }
    # A head for pairs of sentences alone calls its logits [B, 2] like those of tokens.
    return {"sp": logits} if (logits := output.get("logits")) is not None and logits.ndim == 2 else found


def their_states(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """States of the last layer, and of the encoder's where there is a decoder."""
    output = model.base_model(**inputs, output_hidden_states=True)
    if "decoder_hidden_states" in output:
        return output.decoder_hidden_states[-1], output.encoder_last_hidden_state
    return output.last_hidden_state, None


def our_logits(model: Model, hidden: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: target.logits(hidden, batch) if name == "sp" else target.logits(hidden)
        for name, target in model.target.items()
    }


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float, what: str) -> None:
    """Equal up to a share of the largest number of theirs."""
    assert ours.shape == theirs.shape, what
    difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    assert difference <= tolerance, f"{what}: differs by {difference:.1e} of the largest number"


def compare_gradients(
    table: Family,
    config: ModelConfig,
    ours: Mapping[str, Tensor],
    theirs: nn.Module,
    unread: Callable[[str], bool],
) -> None:
    """Every gradient, to 1e-4; `unread`: which of their tensors their model does not use."""
    converted = to_theirs(table, ours, dataclasses.asdict(config)).tensors
    expected = {table.canonical(name): parameter.grad for name, parameter in theirs.named_parameters()}
    largest = max(gradient.abs().max().item() for gradient in expected.values() if gradient is not None)
    compared = 0
    for name, gradient in expected.items():
        if gradient is None:
            assert unread(name), f"{name} has no gradient"
        elif gradient.abs().max() < 1e-6 * largest:  # of the biases of keys: zero but for rounding
            assert converted[name].abs().max() < 1e-6 * largest, name
        else:
            assert_close(converted[name], gradient, 1e-4, f"gradient of {name}")
            compared += 1
    assert compared > len(expected) / 2
