"""The mean of several weights files of one model."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tencentpretrain.config.options import option

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class AverageConfig:
    """Averaging weights."""

    model_list_path: tuple[str, ...] = option(..., "Weights of one model: the last steps of a run, say.")
    output_model_path: str = option(..., "Their mean is written here.")


def average_models(config: AverageConfig) -> str:
    """Write the mean of every tensor, summed in fp64, one tensor in memory at a time, and the description.

    Raises:
        WeightsError: names, shapes or types differ, or tensors of whole numbers do.
        ConfigError: they were made with different options or tokenizers.
    """
    from tencentpretrain.description import (
        carried,
        check_against_description,
        complete_weights,
        described_config,
        read_description,
    )
    from tencentpretrain.errors import ConfigError, WeightsError
    from tencentpretrain.files import check_not_input
    from tencentpretrain.state_dict import LazyTensors, in_words, origin, write_tensors
    from tencentpretrain.weights import open_weights, publish_undescribed

    paths, output = [Path(path) for path in config.model_list_path], Path(config.output_model_path)
    if len(paths) < 2:
        raise ConfigError(f"--model_list_path names {len(paths)} file; a mean needs two.")
    for path in paths:
        check_not_input(output, "--output_model_path", {"model_list_path": str(path)})
    models = [open_weights(path)[0] for path in paths]
    first = models[0]
    for path, model in zip(paths[1:], models[1:], strict=True):
        if different := sorted(first.keys() ^ model.keys()):
            raise WeightsError(
                f"{paths[0]} and {path} are not of one model: {len(different)} tensors are in one of them "
                f"only ({', '.join(different[:3])}{' …' if len(different) > 3 else ''})."
            )
        for name in first:
            here, there = ((each[name].shape, each[name].dtype) for each in (first, model))
            if here != there:
                raise WeightsError(
                    f"{name} is {in_words(here[0])} ({here[1]}) in {paths[0]}, but {in_words(there[0])} "
                    f"({there[1]}) in {path}; only weights of one model have a mean."
                )
    description = dict(read_description(paths[0]) or {})
    for path in paths[1:]:
        other = read_description(path)
        if description and other:
            check_against_description(described_config(path, other), description, paths[0])
            for key in ("tokenizer_fingerprint", "tgt_tokenizer_fingerprint"):
                prints = {each[key] for each in (description, other) if key in each}
                if len(prints) > 1:
                    raise ConfigError(f"{paths[0]} and {path} were made with different tokenizers.")

    def mean(name: str) -> Tensor:
        tensor = first[name]
        if not tensor.is_floating_point():
            if any(not tensor.equal(model[name]) for model in models[1:]):
                raise WeightsError(f"{name} holds whole numbers that differ, which have no mean.")
            return tensor
        total = tensor.double()
        for model in models[1:]:
            total = total + model[name]
        return (total / len(models)).to(tensor.dtype)

    makers: dict[str, tuple[Hashable, Any]] = {}
    for name in first:
        makers[name] = (origin(first, name), lambda name=name: mean(name))
    means: Mapping[str, Tensor] = LazyTensors(makers)
    lines = [f"{output}: the mean of {len(paths)} models, {len(first)} tensors"]
    if not description:
        lines += publish_undescribed(means, output)
    else:
        with complete_weights(output, carried(description, paths[0], output)) as beside:
            write_tensors(means, beside, output)
    return "\n".join(lines)
