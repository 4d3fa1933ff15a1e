"""What a model costs, found by running it on tensors without contents: nothing is computed or allocated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tencentpretrain.batch import Batch
from tencentpretrain.model import Body, Model
from tencentpretrain.training.memory import RecurrentAtOnce


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one batch, forward and backward.

    Attributes:
        flops: of the matrix products.
        activations: bytes kept for the backward pass, in fp32.
    """

    flops: int
    activations: int


def measure_cost(build: Callable[[], Body], batch: Batch) -> Cost:
    """Cost of a batch for the model that `build` makes; of one without targets, of its hidden states."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = build()
    inputs: Batch = _to_meta(batch)
    # By storage: several views of one tensor cost once, and a transposed weight is still a weight.
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in weights:
            kept[storage] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter, RecurrentAtOnce():
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(inputs).loss if isinstance(model, Model) else _sum(model.encode(inputs))
        activations = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        loss.backward()
    return Cost(counter.get_total_flops(), activations)


def _to_meta(batch: Any) -> Any:
    """A batch, or one for each stream."""
    return {
        name: value.to("meta") if isinstance(value, Tensor) else _to_meta(value)
        for name, value in batch.items()
    }


def tokens_num(batch: dict[str, Any]) -> int:
    """Tokens of all streams, source and target."""
    tokens: list[int] = [batch[name].numel() for name in ("input_ids", "decoder_input_ids") if name in batch]
    return sum(tokens) + sum(tokens_num(part) for part in batch.values() if isinstance(part, dict))


def _sum(hidden: Tensor | tuple[Tensor, ...]) -> Tensor:
    return hidden.sum() if isinstance(hidden, Tensor) else torch.stack([_sum(part) for part in hidden]).sum()


def parts_of(model: Body) -> list[tuple[str, nn.Module]]:
    """The modules that the configuration names and that have parameters, with what to call them."""
    parts = [(f"embedding {name}", module) for name, module in model.embedding.named_children()]
    parts.append((f"encoder {model.config.encoder}", model.encoder))
    if model.tgt_embedding is not None and model.decoder is not None:
        parts += [(f"tgt_embedding {name}", part) for name, part in model.tgt_embedding.named_children()]
        parts.append((f"decoder {model.config.decoder}", model.decoder))
    if isinstance(model, Model):
        parts += [(f"target {name}", module) for name, module in model.target.named_children()]
    return [(name, module) for name, module in parts if parameters_num(module)]


def state_bytes(parameters_num: int, optimizer: str) -> int:
    """Bytes of fp32 weights, gradients and optimizer state; Adafactor's means weigh next to none."""
    return 4 * parameters_num * (4 if optimizer == "adamw" else 2)


def parameters_num(module: nn.Module) -> int:
    """Parameters; a shared one counts once."""
    return sum(parameter.numel() for parameter in module.parameters())
