"""What options are about: where a model does not have it, another value than the default would do nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from tencentpretrain.registry import DECODERS, EMBEDDINGS, ENCODERS, TARGETS, Registry

KINDS: dict[str, Registry[type[Any]]] = {
    "embedding": EMBEDDINGS, "encoder": ENCODERS, "tgt_embedding": EMBEDDINGS, "decoder": DECODERS,
    "target": TARGETS,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Need:
    """What an option is about.

    Attributes:
        what: in words.
        met: whether a model's configuration has it.
    """

    what: str
    met: Callable[[Any], Any]


def modules_named(config: Any, *kinds: str) -> Iterator[type[Any]]:
    """The registered classes that a model's configuration names, of these kinds or of all."""
    for kind in kinds or KINDS:
        names = getattr(config, kind) if kind != "tgt_embedding" or config.decoder else ()
        for name in (names,) if isinstance(names, str) else names or ():
            yield KINDS[kind][name]


def _module(what: str, feature: str, *kinds: str) -> Need:
    """The need of a module of some kinds. Its class says in `features` which needs it meets; one that says
    nothing may meet any, and so may those that are not yet named.
    """

    def met(config: Any) -> bool:
        modules = list(modules_named(config, *kinds))
        return not modules or any(feature in getattr(module, "features", (feature,)) for module in modules)

    return Need(what, met)


A_DECODER = Need("a decoder", lambda config: config.decoder is not None)
ATTENTION = _module("attention", "attention", "encoder", "decoder")
LAYERS = _module("transformer layers", "layers", "encoder", "decoder")
ENCODER_LAYERS = _module("an encoder of transformer layers", "layers", "encoder")
DIRECTIONS = _module("encoder rnn, lstm or gru", "directions", "encoder")
CONVOLUTIONS = _module("encoder gatedcnn", "convolutions", "encoder")
LM = _module("target lm", "next token", "target")
RELATIVE = Need("`relative_position_embedding`", lambda config: config.relative_position_embedding)
ROTATION = Need("`rotary_position_embedding`", lambda config: config.rotary_position_embedding)
SINUSOIDS = Need(
    "embedding sinusoidalpos",
    lambda config: {"sinusoidalpos", "dual"}.intersection((*config.embedding, *config.tgt_embedding)),
)
