"""Every option, declared once, by concern."""

from __future__ import annotations

from tencentpretrain.config.data import DataConfig, PreprocessConfig
from tencentpretrain.config.load import Options, as_json, load_config
from tencentpretrain.config.model import ModelConfig
from tencentpretrain.config.optimization import OptimizationConfig
from tencentpretrain.config.options import Option, option, options_of
from tencentpretrain.config.tokenizer import TokenizerConfig
from tencentpretrain.config.training import (
    AdversarialConfig,
    ClassifierConfig,
    ClassifierInferConfig,
    FinetuneConfig,
    InferConfig,
    PretrainConfig,
    RunConfig,
)

CONCERNS = (
    ModelConfig, TokenizerConfig, DataConfig, OptimizationConfig, RunConfig, PretrainConfig, FinetuneConfig,
    AdversarialConfig, ClassifierConfig, InferConfig, ClassifierInferConfig, PreprocessConfig,
)  # fmt: skip

__all__ = [
    "CONCERNS", "AdversarialConfig", "ClassifierConfig", "ClassifierInferConfig", "DataConfig",
    "FinetuneConfig", "InferConfig", "ModelConfig", "OptimizationConfig", "Option", "Options",
    "PreprocessConfig", "PretrainConfig", "RunConfig", "TokenizerConfig", "as_json", "json_options",
    "load_config", "option", "options_of",
]  # fmt: skip


def json_options() -> dict[str, Option]:
    """Every option that may stand in a configuration file, whichever program it is for."""
    return {name: option for concern in reversed(CONCERNS) for name, option in options_of(concern).items()}
