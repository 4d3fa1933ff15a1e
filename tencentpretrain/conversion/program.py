"""The conversion programs: what `scripts/convert_*` share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from tencentpretrain.config import ModelConfig, Options, TokenizerConfig, load_config, option
from tencentpretrain.conversion import huggingface
from tencentpretrain.conversion.engine import Family
from tencentpretrain.description import (
    described_config,
    description_path,
    make_description,
    read_description,
)
from tencentpretrain.errors import ConfigError, DataError, WeightsError
from tencentpretrain.files import check_not_input
from tencentpretrain.model import build_model
from tencentpretrain.state_dict import StateDict, save_weights
from tencentpretrain.tokenizers import Tokenizer, build_tokenizer, load_tokenizer
from tencentpretrain.weights import check_fit, layers_of, publish_weights, read_state_dict


@dataclasses.dataclass(frozen=True)
class ConversionConfig:
    """Conversion."""

    input_model_path: str = option("models/input_model.bin", "Weights to convert: a file or a directory.")
    output_model_path: str = option("models/output_model.bin", "Where the result goes.")
    layers_num: int | None = option(
        None, "Encoder layers; counted in the weights, checked where given.", minimum=1
    )


@dataclasses.dataclass(frozen=True)
class DescriptionConfig:
    """What weights without a description need for a Hugging Face directory."""

    config_path: str | None = option(
        None, "Model configuration, JSON; default: what lies beside the weights."
    )


def _type_concern(family: Family) -> type[Any]:
    """The option --type with the family's choices."""
    help = "Targets that are converted: " + "; ".join(
        f"{name}: {' '.join(parts) or 'none'}" for name, parts in family.types.items()
    )
    first = next(iter(family.types))
    field = ("type", str, option(first, f"{help}.", choices=tuple(family.types)))
    return dataclasses.make_dataclass("TypeConfig", [field], frozen=True, namespace={"__doc__": "Targets."})


def from_huggingface(family: Family) -> None:
    """Read a Hugging Face directory or weights file; write weights of ours and their description."""
    kind = _type_concern(family)
    concerns = (ConversionConfig, kind)
    config, chosen = Options(
        f"Convert a Hugging Face {family.name} to weights of this toolkit.", *concerns
    ).build(*concerns)
    source, target = Path(config.input_model_path), Path(config.output_model_path)
    check_not_input(target, "--output_model_path", {"input_model_path": config.input_model_path})
    model = huggingface.read(source, parts=family.types[chosen.type])
    if model.family is not family:
        raise ConfigError(f"--input_model_path: {source} is a {model.family.name} model, not {family.name}.")
    _check_layers(source, model.tensors, config.layers_num)
    lines = [*model.notes, f"ignored: {', '.join(model.ignored) or 'none'}"]
    if model.has_config:
        description, said = _describe(model, source, target)
        lines.append(said)
        publish_weights(model.tensors, target, description)
    else:
        save_weights(model.tensors, target)
        lines.append(
            f"{description_path(target)} is not written: there is no config.json with {source} that says "
            "what the model is; give the directory to have it written"
        )
    layers = ", ".join(f"{count} layers" for count in layers_of(model.tensors).values())
    print(
        f"{target}: {len(model.tensors)} tensors, {layers}, targets: {' '.join(model.parts) or 'none'}",
        *lines,
        sep="\n",
    )


def _describe(model: huggingface.HuggingFaceModel, source: Path, target: Path) -> tuple[dict[str, Any], str]:
    home = source if source.is_dir() else source.parent
    # A configuration names a target even if there is no head; its weights are left at random, and reported.
    targets = model.parts or next(iter(model.family.types.values()))[:1]
    config = described_config(source, model.values | {"target": list(targets)})
    vocab_size = _check_shapes(source, model.tensors, config)
    tokenizer, why = None, "no tokenizer files"
    if huggingface.has_tokenizer(home):
        try:
            tokenizer = load_tokenizer(home)
        except DataError as error:
            why = str(error)
    said = "configuration and tokenizer" if tokenizer is not None else f"configuration; {why}"
    description = make_description(target, config, tokenizer, vocab_size=vocab_size)
    return description, f"{description_path(target)}: {said}"


def to_huggingface(family: Family) -> None:
    """Read weights of ours; write a Hugging Face directory, or a file if the output is named as one."""
    kind = _type_concern(family)
    concerns = (ConversionConfig, kind, DescriptionConfig, TokenizerConfig)
    options = Options(
        f"Convert weights of this toolkit to a Hugging Face {family.name}: a directory, or "
        "its weights alone where the output ends in .bin, .pt or .safetensors.",
        *concerns,
    )
    config, chosen, described, tokenizer_config = options.build(*concerns)
    source, target = Path(config.input_model_path), Path(config.output_model_path)
    check_not_input(target, "--output_model_path", {"input_model_path": config.input_model_path})
    tensors = read_state_dict(source)
    _check_layers(source, tensors, config.layers_num)
    model_config, tokenizer = None, None
    if not huggingface.is_file_name(target):
        model_config = _model_config(source, described.config_path)
        _check_shapes(source, tensors, model_config)
        tokenizer = _tokenizer(source, tokenizer_config)
    try:
        ignored = huggingface.write(
            target, family, tensors, model_config, tokenizer, family.types[chosen.type]
        )
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from None
    print(
        f"{target}: {len(tensors) - len(ignored)} tensors converted",
        f"ignored: {', '.join(ignored) or 'none'}",
        sep="\n",
    )
    if model_config is not None and tokenizer is None:
        print("no tokenizer is written: none lies beside the weights (--vocab_path gives one)")


def _model_config(source: Path, config_path: str | None) -> ModelConfig:
    if config_path is not None:
        return load_config(config_path)
    description = read_description(source)
    if description is None:
        raise ConfigError(
            f"{source}: there is no {description_path(source).name} beside it that says what the model is, "
            "which config.json needs; give --config_path, or an output path that ends in .bin."
        )
    return described_config(source, description)


def _tokenizer(source: Path, config: TokenizerConfig) -> Tokenizer | None:
    if config.vocab_path is not None or config.spm_model_path is not None:
        return build_tokenizer(config)
    description = read_description(source)
    if description is None or "tokenizer_path" not in description:
        return None
    return load_tokenizer(
        source if source.is_dir() and huggingface.is_model_directory(source) else description_path(source)
    )


def _check_layers(source: Path, tensors: StateDict, layers_num: int | None) -> None:
    found = layers_of(tensors).get("encoder.transformer")
    if layers_num is not None and found is not None and layers_num != found:
        raise ConfigError(
            f"`layers_num` is {layers_num}, but {source} has {found} layers; leave the option out."
        )


def _check_shapes(source: Path, tensors: StateDict, config: ModelConfig) -> int:
    """Refuse a configuration that the tensors contradict; returns the size of the vocabulary."""
    vocab_size = tensors["embedding.word.embedding.weight"].shape[0]
    with torch.device("meta"):
        check_fit(source, tensors, build_model(config, vocab_size).state_dict())
    return vocab_size
