"""Siamese models (Sentence-BERT, Reimers & Gurevych 2019): one encoder under the names of two streams."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tencentpretrain.errors import WeightsError
from tencentpretrain.state_dict import renamed, same

# A pre-training model calls its dual embedding `embedding.dual`, a siamese one `embedding`.
_NAME = re.compile(r"(embedding|encoder)\.(?:dual\.)?\1_([01])\.(.+)")


def is_siamese(names: Mapping[str, Any]) -> bool:
    return any(map(_NAME.fullmatch, names))


def two_streams(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Embedding and encoder under the names of both streams, one tensor under two names."""
    names: dict[str, str] = {}
    for name in tensors:
        part, _, rest = name.partition(".")
        if part in ("embedding", "encoder"):
            names |= {f"{part}.{part}_{stream}.{rest}": name for stream in (0, 1)}
        else:
            names[name] = name
    return renamed(tensors, names)


def one_stream(path: Path, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The inverse of `two_streams`; what is in no stream keeps its name.

    Args:
        path: that the tensors are from, for messages.

    Raises:
        WeightsError: the streams differ, or are normalised once more than a single model is.
    """
    names: dict[str, str] = {}
    for name in tensors:
        found = _NAME.fullmatch(name)
        new = f"{found[1]}.{found[3]}" if found else name
        if re.search(r"\bstream_[01]_layer_norm\.", name):
            raise WeightsError(
                f"{path}: {name} normalises a stream once more, which a model of one stream does not do."
            )
        if new in names and not same(tensors[name], tensors[names[new]]):
            raise WeightsError(
                f"{path}: {names[new]} and {name} differ, but a model of one stream has one of them."
            )
        names.setdefault(new, name)
    return renamed(tensors, names)


def siamese_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of two tied streams, each as `values` says."""
    stream = {name: values[name] for name in ("embedding", "encoder")}
    return {
        **values,
        "stream_0": stream,
        "stream_1": stream,
        "embedding": ["dual"],
        "encoder": "dual",
        "tie_weights": True,
        "remove_stream_layernorm": True,
        "target": [],
    }
