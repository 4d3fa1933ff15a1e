"""Conversion programs of LLaMA, whose options differ from those of other families."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tencentpretrain.config import Options, load_config, option
from tencentpretrain.conversion import meta
from tencentpretrain.conversion.engine import to_theirs
from tencentpretrain.conversion.maps.llama import LLAMA
from tencentpretrain.conversion.program import (
    ConversionConfig,
    VerificationConfig,
    bring,
    bring_from_huggingface,
    check_layers,
    checked_paths,
)
from tencentpretrain.errors import weights_of
from tencentpretrain.weights import open_weights, publish_undescribed

SIZES = ("7B", "13B", "33B", "65B")


@dataclasses.dataclass(frozen=True)
class LlamaConversionConfig(ConversionConfig):
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
    size = load_config(models / f"{config.type.lower()}_config.json")
    bring_from_huggingface(config, verification, LLAMA, known=dataclasses.asdict(size))


def from_meta() -> None:
    """Read a LLaMA as Meta publishes it; write weights of ours, and what params.json says of them."""
    (config,) = Options(
        "Convert a LLaMA as Meta publishes it to weights of this toolkit: the directory with "
        "consolidated.*.pth and params.json, or one of its files.",
        ConversionConfig,
    ).build(ConversionConfig)
    bring(config, meta.read)


def to_meta() -> None:
    """Read a LLaMA of ours; write one file under Meta's names (its consolidated.00.pth)."""
    (config,) = Options(
        "Convert LLaMA weights of this toolkit to one file with Meta's names.", ConversionConfig
    ).build(ConversionConfig)
    source, target = checked_paths(config)
    tensors, _ = open_weights(source)
    check_layers(source, tensors, config)
    with weights_of(source):
        done = to_theirs(meta.META, tensors)
    removed = publish_undescribed(done.tensors, target)
    print(f"{target}: {len(done.tensors)} tensors converted", *removed, sep="\n")
