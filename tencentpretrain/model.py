"""A model: embedding → encoder → target, put together from the names in the configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tencentpretrain.batch import DECODER_SIDE, Batch
from tencentpretrain.config import ModelConfig
from tencentpretrain.embeddings import Embedding
from tencentpretrain.errors import ConfigError, DataError
from tencentpretrain.layers.cache import Cache
from tencentpretrain.registry import DECODERS, EMBEDDINGS, ENCODERS, PROCESSORS, TARGETS
from tencentpretrain.sizes import DataSizes
from tencentpretrain.state_dict import assign
from tencentpretrain.targets.output import TargetOutput

INITIAL_STD = 0.02  # of every matrix (Devlin et al. 2019)


class Body(nn.Module):
    """Embedding and encoder, and where there is a decoder its embedding and itself: a batch to hidden states.

    A module that has more to hand on than hidden states (an auxiliary loss, features before masking) writes
    it as a field of the batch, which is copied for each forward pass, and names it in its class's `writes`;
    who needs it names it in `reads`.
    """

    def __init__(self, config: ModelConfig, sizes: DataSizes) -> None:
        super().__init__()
        self.config = config
        self.sizes = sizes
        self.embedding = Embedding(config.embedding, config, sizes)
        self.encoder = ENCODERS[config.encoder](config)
        self.tgt_embedding: nn.Module | None = None
        self.decoder: nn.Module | None = None
        if config.decoder is not None:
            self.tgt_embedding = Embedding(config.tgt_embedding, config, sizes.of_target)
            self.decoder = DECODERS[config.decoder](config)
            if config.share_embedding and sizes.of_target.vocab_size != sizes.vocab_size:
                raise ConfigError(
                    f"`share_embedding` needs one vocabulary, but the source has {sizes.vocab_size} tokens "
                    f"and the target {sizes.tgt_vocab_size}."
                )

    def encode(self, batch: Batch, outputs: int | None = None) -> Tensor:
        """Hidden states of the last layer: [B, S, D], of a decoder [B, T, D].

        With `outputs`, at least those of that many leading positions.
        """
        if self.decoder is None:
            hidden: Tensor = self.encoder(self.embedding(batch), batch, outputs)
            return hidden
        return self.decode(self.encoder(self.embedding(batch), batch), batch)

    def decode(self, memory: Tensor, batch: Batch, cache: Cache | None = None) -> Tensor:
        """The decoder's hidden states [B, T, D], from the encoder's [B, S, D]."""
        assert self.decoder is not None and self.tgt_embedding is not None
        hidden: Tensor = self.decoder(self.tgt_embedding(target_side(batch)), memory, batch, cache)
        return hidden

    def tie_weights(self) -> None:
        """Make shared parameters one; to be repeated after moving parameters."""
        if self.tgt_embedding is not None and self.config.share_embedding:
            _word(self.tgt_embedding).weight = _word(self.embedding).weight


class Model(Body):
    """A pre-training model: a body and its targets."""

    def __init__(self, config: ModelConfig, sizes: DataSizes) -> None:
        super().__init__(config, sizes)
        if not config.target:
            raise ConfigError("`target` names nothing; pre-training needs at least one.")
        for name in config.target:
            if getattr(TARGETS[name], "streams", 1) != (2 if config.is_dual else 1):
                raise ConfigError(
                    f"target '{name}' cannot follow encoder '{config.encoder}', which gives the states of "
                    f"{'two sequences' if config.is_dual else 'one sequence'}."
                )
        self.target = nn.ModuleDict({name: TARGETS[name](config, sizes.of_target) for name in config.target})

    def forward(self, batch: Batch) -> TargetOutput:
        batch = dict(batch)
        hidden = self.encode(batch)
        if self.decoder is not None:
            batch = target_side(batch)
        for name, target in self.target.items():
            missing = [field for field in getattr(target, "reads", ()) if field not in batch]
            if missing:
                raise DataError(
                    f"target '{name}' reads {', '.join(map(repr, missing))}, which the batch does not have; "
                    "for hidden states alone call model.encode(batch)."
                )
        parts = {name: target(hidden, batch) for name, target in self.target.items()}
        return TargetOutput(parts, self.config.target_weights)

    def tie_weights(self) -> None:
        """Make shared parameters one, the targets' vocabulary layers the word embedding among them."""
        super().tie_weights()
        if not self.config.tie_weights or self.config.is_dual:  # a dual model ties its streams, as built
            return
        for target in self.target.values():
            layer = getattr(target, "vocabulary_layer", None)
            if layer is not None:
                layer.weight = _word(self.tgt_embedding or self.embedding).weight


def _word(embedding: nn.Module) -> nn.Module:
    return embedding.get_submodule("word").get_submodule("embedding")


def target_side(batch: Batch) -> Batch:
    """The batch as the decoder's embeddings and the targets see it: the decoder's input is the input."""
    source_only = {name: tensor for name, tensor in batch.items() if name not in DECODER_SIDE}
    return source_only | {name: batch[other] for name, other in DECODER_SIDE.items() if other in batch}


def initialise(model: nn.Module, std: float = INITIAL_STD) -> None:
    """Matrices normal with deviation `std`, vectors (biases) zero; norms keep their ones and zeros.

    Values are drawn on the CPU, whole and one matrix after the other, whatever part of it is kept here.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                device = "meta" if parameter.is_meta else "cpu"
                assign(parameter, torch.empty(parameter.shape, device=device).normal_(std=std))
            elif name.rpartition(".")[2].startswith("bias"):
                nn.init.zeros_(parameter)


def build_model(
    config: ModelConfig,
    vocab_size: int,
    labels_num: int | None = None,
    tgt_vocab_size: int | None = None,
    place: Callable[[Model], None] | None = None,
) -> Model:
    """A model with fresh weights, in training mode.

    Args:
        vocab_size: rows of the word embedding; the tokenizer knows it.
        labels_num: classes of the target cls, if there is one.
        tgt_vocab_size: rows of the decoder's word embedding, if its vocabulary is another.
        place: what is done to the model before its weights are drawn (`Engine.place`).

    Raises:
        ConfigError: a module cannot be built from this configuration.
    """
    model = Model(config, DataSizes(vocab_size, labels_num, tgt_vocab_size))
    model.tie_weights()
    if place is not None:
        place(model)
    initialise(model)
    return model


def modules_of(config: ModelConfig) -> Iterator[tuple[str, type[Any], Mapping[str, str]]]:
    """The classes that a configuration names, what to call them, and what their fields are called there."""
    decoder = () if config.decoder is None else (config.decoder,)
    for kind, registry, names, renamed in (
        ("embedding", EMBEDDINGS, config.embedding, {}),
        ("encoder", ENCODERS, (config.encoder,), {}),
        ("tgt_embedding", EMBEDDINGS, config.tgt_embedding if decoder else (), DECODER_SIDE),
        ("decoder", DECODERS, decoder, {}),
        ("target", TARGETS, config.target, DECODER_SIDE if decoder else {}),
    ):
        for name in names:
            yield f"{kind} '{name}'", registry[name], renamed


def fields_read(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Every batch field that a configured module reads and none of them writes, with that module."""
    modules = list(modules_of(config))
    written = {field for _, module, _ in modules for field in getattr(module, "writes", ())}
    for title, module, renamed in modules:
        for field in getattr(module, "reads", ()):
            if field not in written:
                yield renamed.get(field, field), title


def length_problems(config: ModelConfig, seq_length: int, target: tuple[str, int] | None = None) -> list[str]:
    """What is wrong with inputs of that many tokens; empty: nothing.

    Args:
        target: what a decoder reads at most, and the option that says so; default: the same.
    """
    sides = [(config.embedding, ("seq_length", seq_length))]
    if config.decoder is not None:
        sides.append((config.tgt_embedding, target or sides[0][1]))
    too_long = {
        option: length
        for names, (option, length) in sides
        if "pos" in names and length > config.max_seq_length
    }
    return [
        f"`{option}` ({length}) must not exceed `max_seq_length` ({config.max_seq_length}), "
        "the number of position embeddings."
        for option, length in too_long.items()
    ]


def check_provided(config: ModelConfig, provides: Iterable[str], processor: str) -> None:
    """Refuse a model that reads what the data does not have, before any data is touched.

    Raises:
        ConfigError: with every field that is missing and the processors that have it.
    """
    given = set(provides)
    problems = []
    for field, reader in fields_read(config):
        if field not in given:
            others = [name for name in PROCESSORS if field in PROCESSORS[name].provides]
            hint = f"processors that do: {', '.join(others)}" if others else "no processor does"
            problems.append(
                f"{reader} reads '{field}', which processor '{processor}' does not provide ({hint})."
            )
    if problems:
        raise ConfigError(problems)
