"""Checkpoints of TensorFlow: the original BERT and ALBERT, read and written. Needs the package tensorflow."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tencentpretrain.config import Options, option
from tencentpretrain.conversion.engine import is_tied, to_ours, to_theirs, without_copies
from tencentpretrain.conversion.family import Family
from tencentpretrain.conversion.huggingface import TheirModel, our_values
from tencentpretrain.conversion.program import (
    ConversionConfig,
    bring,
    check_layers,
    checked_paths,
    type_concern,
)
from tencentpretrain.errors import ConfigError, WeightsError, weights_of
from tencentpretrain.files import complete_files, read_object
from tencentpretrain.state_dict import LazyTensors
from tencentpretrain.weights import open_weights

INDEX, DATA = ".index", ".data-00000-of-00001"  # of a checkpoint `name`, which itself is no file


@dataclasses.dataclass(frozen=True)
class FromOriginalConfig(ConversionConfig):
    """Conversion."""

    input_model_path: str = option(
        "models/input_model.ckpt", "Checkpoint to convert: what stands before .index, or its directory."
    )


@dataclasses.dataclass(frozen=True)
class ToOriginalConfig(ConversionConfig):
    """Conversion."""

    output_model_path: str = option("models/output_model.ckpt", "Checkpoint: what stands before .index.")


def _tensorflow() -> Any:
    """The package, imported when it is needed only.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import tensorflow
    except ImportError:
        raise ConfigError(
            "TensorFlow checkpoints need the package tensorflow, which is not installed: "
            "pip install tensorflow-cpu"
        ) from None
    return tensorflow


def read_checkpoint(path: Path) -> Mapping[str, Tensor]:
    """Tensors of a checkpoint by TensorFlow's names, each read when it is asked for.

    Args:
        path: what stands before `.index`, that file, or a directory with one checkpoint.

    Raises:
        ConfigError: tensorflow is not installed.
        WeightsError: there is no checkpoint, or it is damaged.
    """
    if path.is_dir():
        found = sorted(path.glob(f"*{INDEX}"))
        if len(found) != 1:
            there = ", ".join(file.name for file in found) or "none"
            raise WeightsError(f"{path}: expected one checkpoint, a file *{INDEX}, but there is {there}.")
        path = found[0]
    prefix = str(path).removesuffix(INDEX)
    if not Path(prefix + INDEX).is_file():
        raise WeightsError(
            f"{prefix}{INDEX}: no such file; give what stands before {INDEX}, as in bert_model.ckpt."
        )
    tensorflow = _tensorflow()
    damages = (IndexError, ValueError, tensorflow.errors.OpError)
    try:
        reader = tensorflow.train.load_checkpoint(prefix)
        names = sorted(reader.get_variable_to_shape_map())
    except damages as error:
        raise WeightsError(f"{prefix}: {error}") from None

    def read(name: str) -> Tensor:
        try:
            return torch.as_tensor(reader.get_tensor(name), device="cpu")
        except damages as error:
            raise WeightsError(f"{prefix}: {name}: {error}") from None

    return LazyTensors({name: ((name,), functools.partial(read, name)) for name in names})


def write_checkpoint(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Tensors as a checkpoint in fp32, which appears when it is complete.

    Raises:
        ConfigError: tensorflow is not installed.
    """
    tensorflow = _tensorflow()
    targets = tuple(path.with_name(path.name + ending) for ending in (DATA, INDEX))
    with complete_files(*targets) as temporaries, tempfile.TemporaryDirectory(dir=path.parent) as directory:
        prefix = str(Path(directory) / "checkpoint")
        tensorflow.raw_ops.SaveV2(
            prefix=prefix,
            tensor_names=list(tensors),
            shape_and_slices=[""] * len(tensors),
            tensors=[tensorflow.constant(tensor.float().numpy()) for tensor in tensors.values()],
        )
        for temporary, ending in zip(temporaries, (DATA, INDEX), strict=True):
            Path(prefix + ending).replace(temporary)


def from_original(family: Family) -> None:
    """Read a TensorFlow checkpoint; write weights of ours, described if its JSON lies beside it."""
    concerns = (FromOriginalConfig, type_concern((family,)))
    config, chosen = Options(
        f"Convert a TensorFlow checkpoint of the original {family.name} to weights of this toolkit.",
        *concerns,
    ).build(*concerns)
    bring(config, lambda source: _read(source, family, family.types[chosen.type]))


def _read(source: Path, family: Family, parts: Sequence[str]) -> TheirModel:
    tensors = read_checkpoint(source)
    described = (source if source.is_dir() else source.parent) / f"{family.name}_config.json"
    has_config = described.is_file()
    values = our_values(family, read_object(described), described) if has_config else {}
    values["tie_weights"] = True
    with weights_of(source):
        done = to_ours(family, tensors, values, parts)
    return TheirModel(family, done.tensors, values, done.parts, done.ignored, done.notes, has_config)


def to_original(family: Family) -> None:
    """Read weights of ours; write a TensorFlow checkpoint."""
    concerns = (ToOriginalConfig, type_concern((family,)))
    config, chosen = Options(
        f"Convert weights of this toolkit to a TensorFlow checkpoint of the original {family.name}.",
        *concerns,
    ).build(*concerns)
    source, target = checked_paths(config)
    ours, _ = open_weights(source)
    check_layers(source, ours, config)
    with weights_of(source):
        done = to_theirs(family, ours, parts=family.types[chosen.type])
        if not is_tied(family, done.tensors):
            raise WeightsError(
                f"its vocabulary layer is not its word embedding; {family.name} has one for both."
            )
    tensors = without_copies(family, done.tensors)
    write_checkpoint(tensors, target)
    print(
        f"{target}: {len(tensors)} variables, targets: {' '.join(done.parts) or 'none'}",
        f"ignored: {', '.join(done.ignored) or 'none'}",
        sep="\n",
    )
