"""Conversion programs of LLaMA, whose options differ from those of other families."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tencentpretrain.config import Options, load_config, option
from tencentpretrain.conversion import huggingface, meta
from tencentpretrain.conversion.engine import to_theirs
from tencentpretrain.conversion.maps.llama import LLAMA
from tencentpretrain.conversion.program import ConversionConfig, VerificationConfig, check_layers, publish
from tencentpretrain.conversion.verification import check_verifiable, verify
from tencentpretrain.errors import ConfigError, WeightsError
from tencentpretrain.files import check_not_input
from tencentpretrain.state_dict import save_weights
from tencentpretrain.weights import open_weights

SIZES = ("7B", "13B", "33B", "65B")


@dataclasses.dataclass(frozen=True)
class LlamaConversionConfig:
    """Conversion."""

    input_model_path: str = option("models/llama-7b/", "Weights to convert: a directory or a file.")
    output_model_path: str = option("models/llama-7b.bin", "Where the result goes.")
    type: str = option(
        "7B", "Size of the model where no config.json says it: one of models/llama.", choices=SIZES
    )


def from_huggingface(models: Path) -> None:
    """Read a LLaMA of Hugging Face; write weights of ours and their description.

    Args:
        models: directory with the configurations of LLaMA's sizes.
    """
    concerns = (LlamaConversionConfig, VerificationConfig)
    config, verification = Options(
        "Convert a Hugging Face llama to weights of this toolkit.", *concerns
    ).build(*concerns)
    source, target = Path(config.input_model_path), Path(config.output_model_path)
    check_not_input(target, "--output_model_path", {"input_model_path": config.input_model_path})
    if verification.verify:
        check_verifiable(source)
    size = models / f"{config.type.lower()}_config.json"
    model = huggingface.read(source, wanted=LLAMA, known=dataclasses.asdict(load_config(size)))
    if model.family is not LLAMA:
        raise ConfigError(f"--input_model_path: {source} is a {model.family.name} model, not llama.")
    publish(model, source, target)
    if verification.verify:
        verify(target, source)


def from_meta() -> None:
    """Read a LLaMA as Meta publishes it; write weights of ours, and what params.json says of them."""
    (config,) = Options(
        "Convert a LLaMA as Meta publishes it to weights of this toolkit: the directory with "
        "consolidated.*.pth and params.json, or one of its files.",
        ConversionConfig,
    ).build(ConversionConfig)
    source, target = Path(config.input_model_path), Path(config.output_model_path)
    check_not_input(target, "--output_model_path", {"input_model_path": config.input_model_path})
    model = meta.read(source)
    check_layers(source, model.tensors, config)
    publish(model, source, target)


def to_meta() -> None:
    """Read a LLaMA of ours; write one file under Meta's names (its consolidated.00.pth)."""
    (config,) = Options(
        "Convert LLaMA weights of this toolkit to one file with Meta's names.", ConversionConfig
    ).build(ConversionConfig)
    source, target = Path(config.input_model_path), Path(config.output_model_path)
    check_not_input(target, "--output_model_path", {"input_model_path": config.input_model_path})
    tensors, _ = open_weights(source)
    check_layers(source, tensors, config)
    try:
        done = to_theirs(meta.META, tensors)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from None
    save_weights(done.tensors, target)
    print(f"{target}: {len(done.tensors)} tensors converted")
