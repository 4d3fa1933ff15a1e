"""A converted model beside the original: both are run on the same random input."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tencentpretrain.config import ModelConfig
from tencentpretrain.conversion import huggingface
from tencentpretrain.conversion.maps import FAMILIES
from tencentpretrain.description import described_config, read_description
from tencentpretrain.errors import ConfigError, WeightsError
from tencentpretrain.files import read_json
from tencentpretrain.model import Model, build_model
from tencentpretrain.weights import load_weights, open_weights

TOLERANCE = 1e-4
ROWS, LENGTH = 3, 12
# Logits of theirs, by our target; the first that is there.
_LOGITS = {
    "mlm": ("prediction_logits", "logits"),
    "lm": ("logits",),
    "sp": ("seq_relationship_logits", "sop_logits", "logits"),
}


def check_verifiable(directory: Path, written: bool = False) -> Any:
    """The module `transformers`.

    Args:
        written: whether the directory is what a program will have written by then.

    Raises:
        ConfigError: it is not installed, or there is no directory that it could load.
    """
    if huggingface.is_file_name(directory) if written else not huggingface.is_model_directory(directory):
        raise ConfigError(
            f"--verify needs a Hugging Face directory with config.json, which {directory} "
            f"{'will not be; give a directory as the output' if written else 'is not'}."
        )
    try:
        import transformers
    except ImportError:
        raise ConfigError(
            "--verify needs Transformers; install it with 'pip install transformers'."
        ) from None
    return transformers


def verify(weights: Path, directory: Path, config: ModelConfig | None = None) -> None:
    """Run weights of ours and a Hugging Face directory, in fp32, and print by how much they differ.

    Args:
        config: ours; default: what lies beside the weights.

    Raises:
        SystemExit: with 1, where a difference exceeds 1e-4 of the largest number.
    """
    transformers = check_verifiable(directory)
    values = read_json(directory / huggingface.CONFIG)
    known = {name for family in FAMILIES for name in family.architectures.values()}
    known |= {head.architecture for family in FAMILIES for head in family.heads}
    # Of a class with a head that we do not have, the model alone.
    architecture = next((name for name in values.get("architectures") or () if name in known), "AutoModel")
    theirs = getattr(transformers, architecture).from_pretrained(directory, dtype=torch.float32).eval()
    if config is None:
        config = described_config(weights, read_description(weights) or {})
    tensors, _ = open_weights(weights)
    source, target = (tensors.get(f"{side}.word.embedding.weight") for side in ("embedding", "tgt_embedding"))
    assert source is not None
    ours = build_model(config, len(source), tgt_vocab_size=None if target is None else len(target)).eval()
    load_weights(ours, weights)
    worst = 0.0
    unused = next((one.unused_positions for one in FAMILIES if values["model_type"] in one.known_as), 0)
    length = min(LENGTH, config.max_seq_length - unused)
    if length < 1:
        raise WeightsError(f"`max_seq_length` is {config.max_seq_length}, of which no text has a position.")
    for what, one, other in _outputs(ours, theirs, tensors, length):
        absolute = (one - other).abs().max().item()
        relative = absolute / max(other.abs().max().item(), 1e-30)
        worst = max(worst, relative)
        print(f"{what}: largest difference {absolute:.1e}, {relative:.1e} of the largest number")
    if not worst <= TOLERANCE:  # nor if it is not a number
        print(f"the models differ by more than {TOLERANCE:.0e} of the largest number")
        raise SystemExit(1)


@torch.no_grad()
def _outputs(
    ours: Model, theirs: Any, tensors: Mapping[str, Tensor], length: int
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What both give for texts of up to `length` tokens, under a name: the last hidden states, and logits."""
    batch, reference = _inputs(ours.config, theirs, length)
    output = theirs(**reference, output_hidden_states=True)
    states = output.get("decoder_hidden_states") or output["hidden_states"]
    real = batch.get("decoder_segment_ids", batch["segment_ids"]) > 0
    hidden = ours.encode(batch)
    yield "hidden states", hidden[real], states[-1][real]
    for name, target in ours.target.items():
        of_target = [key for key in ours.state_dict() if key.startswith(f"target.{name}.")]
        found = [output[key] for key in _LOGITS.get(name, ()) if key in output]
        if not found or not any(key in tensors for key in of_target):
            continue
        logits: Any = target.logits
        if name == "sp":
            yield "logits of sp", logits(hidden, batch), found[0]
        else:
            yield f"logits of {name}", logits(hidden)[real], found[0][real]
    if "output_layer_2.weight" in tensors:
        pooled = _linear(hidden[:, 0], tensors, "output_layer_1").tanh()
        yield "logits", _linear(pooled, tensors, "output_layer_2"), output["logits"]
    if "output_layer.weight" in tensors:
        logits = _linear(hidden, tensors, "output_layer")
        ends = [output[key] for key in ("start_logits", "end_logits") if key in output]
        yield "logits", logits[real], (torch.stack(ends, -1) if ends else output["logits"])[real]


def _linear(states: Tensor, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    weight, bias = (tensors[f"{name}.{kind}"].float() for kind in ("weight", "bias"))
    return torch.nn.functional.linear(states, weight, bias)


def _inputs(config: ModelConfig, theirs: Any, length: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random padded input, as ours and as theirs."""
    generator = torch.Generator().manual_seed(0)
    padding = theirs.config.pad_token_id or 0
    known = inspect.signature(theirs.forward).parameters
    lengths = torch.arange(length, 0, -2)[:ROWS, None]
    # Theirs mixes padding into the Fourier transform.
    real = (torch.arange(length) < lengths) | (config.encoder == "fnet")

    def text() -> Tensor:
        tokens = torch.randint(theirs.config.vocab_size, real.shape, generator=generator)
        tokens[tokens == padding] = (padding + 1) % theirs.config.vocab_size
        return tokens.where(real, padding)

    tokens, segments = text(), real.long()
    if "seg" in config.embedding and getattr(theirs.config, "type_vocab_size", 0) > 1:
        segments[:, length // 2 :] *= 2
    ours = {"input_ids": tokens, "segment_ids": segments}
    reference = {"input_ids": tokens, "attention_mask": real.long()}
    if "token_type_ids" in known and "seg" in config.embedding:  # GPT-2 adds word vectors for them
        reference["token_type_ids"] = (segments - 1).clamp(min=0)
    if config.decoder is not None:
        size = getattr(theirs.config, "decoder_vocab_size", theirs.config.vocab_size)
        tokens = text().clamp(max=size - 1)
        ours |= {"decoder_input_ids": tokens, "decoder_segment_ids": real.long()}
        reference |= {"decoder_input_ids": tokens, "decoder_attention_mask": real.long()}
    return ours, reference
