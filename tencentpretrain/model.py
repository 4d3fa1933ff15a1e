"""A model: embedding → encoder → target, put together from the names in the configuration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from tencentpretrain.batch import Batch
from tencentpretrain.config import ModelConfig
from tencentpretrain.embeddings import Embedding
from tencentpretrain.errors import ConfigError, DataError
from tencentpretrain.registry import EMBEDDINGS, ENCODERS, PROCESSORS, TARGETS
from tencentpretrain.sizes import DataSizes
from tencentpretrain.targets.output import TargetOutput

INITIAL_STD = 0.02  # of every matrix (Devlin et al. 2019)


class Model(nn.Module):
    """A pre-training model.

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
        self.target = nn.ModuleDict({name: TARGETS[name](config, sizes) for name in config.target})

    def encode(self, batch: Batch) -> Tensor:
        """Hidden states of the last layer: [B, S, D]."""
        hidden: Tensor = self.encoder(self.embedding(batch), batch)
        return hidden

    def forward(self, batch: Batch) -> TargetOutput:
        batch = dict(batch)
        hidden = self.encode(batch)
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
        """Make the targets' vocabulary layers the word embedding; to be repeated after moving parameters."""
        word = self.embedding.get_submodule("word").get_submodule("embedding")
        for target in self.target.values():
            layer = getattr(target, "vocabulary_layer", None)
            if layer is not None:
                layer.weight = word.weight


def initialise(model: nn.Module, std: float = INITIAL_STD) -> None:
    """Matrices normal with deviation `std`, vectors (biases) zero; norms keep their ones and zeros."""
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=std)
        elif name.endswith(".bias"):
            nn.init.zeros_(parameter)


def build_model(config: ModelConfig, vocab_size: int, labels_num: int | None = None) -> Model:
    """A model with fresh weights, in training mode.

    Args:
        vocab_size: rows of the word embedding; the tokenizer knows it.
        labels_num: classes of the target cls, if there is one.

    Raises:
        ConfigError: a module cannot be built from this configuration.
    """
    model = Model(config, DataSizes(vocab_size, labels_num))
    if config.tie_weights:
        model.tie_weights()
    initialise(model)
    return model


def modules_of(config: ModelConfig) -> Iterator[tuple[str, type[Any]]]:
    """The classes that a configuration names, with what to call them."""
    for kind, registry, names in (
        ("embedding", EMBEDDINGS, config.embedding),
        ("encoder", ENCODERS, (config.encoder,)),
        ("target", TARGETS, config.target),
    ):
        for name in names:
            yield f"{kind} '{name}'", registry[name]


def fields_read(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Every batch field that a configured module reads and none of them writes, with that module."""
    modules = list(modules_of(config))
    written = {field for _, module in modules for field in getattr(module, "writes", ())}
    for title, module in modules:
        for field in getattr(module, "reads", ()):
            if field not in written:
                yield field, title


def length_problems(config: ModelConfig, seq_length: int) -> list[str]:
    """What is wrong with inputs of that many tokens; empty: nothing."""
    if "pos" not in config.embedding or seq_length <= config.max_seq_length:
        return []
    return [
        f"`seq_length` ({seq_length}) must not exceed `max_seq_length` ({config.max_seq_length}), "
        "the number of position embeddings."
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
