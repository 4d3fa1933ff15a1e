"""Every option, declared once, by concern."""

from __future__ import annotations

from tencentpretrain.config.data import DataConfig, PreprocessConfig
from tencentpretrain.config.inspection import (
    ContextConfig,
    FeaturesConfig,
    NeighboursConfig,
    WordEmbeddingsConfig,
)
from tencentpretrain.config.load import Options, as_json, load_config
from tencentpretrain.config.model import ModelConfig
from tencentpretrain.config.optimization import OptimizationConfig
from tencentpretrain.config.options import Option, option, options_of
from tencentpretrain.config.tokenizer import TargetTokenizerConfig, TokenizerConfig
from tencentpretrain.config.training import (
    AdversarialConfig,
    ClassifierConfig,
    ClassifierInferConfig,
    DeepSpeedConfig,
    FinetuneConfig,
    InferConfig,
    PretrainConfig,
    RunConfig,
)

CONCERNS = (
    ModelConfig, TokenizerConfig, TargetTokenizerConfig, DataConfig, OptimizationConfig, RunConfig,
    PretrainConfig, DeepSpeedConfig, FinetuneConfig,
    AdversarialConfig, ClassifierConfig, InferConfig, ClassifierInferConfig, PreprocessConfig,
    FeaturesConfig, NeighboursConfig, ContextConfig, WordEmbeddingsConfig,
)  # fmt: skip

__all__ = [
    "CONCERNS", "AdversarialConfig", "ClassifierConfig", "ClassifierInferConfig", "ContextConfig",
    "DataConfig", "DeepSpeedConfig", "FeaturesConfig", "FinetuneConfig", "InferConfig", "ModelConfig",
    "NeighboursConfig", "OptimizationConfig", "Option", "Options", "PreprocessConfig", "PretrainConfig",
    "RunConfig",
    "TargetTokenizerConfig", "TokenizerConfig", "WordEmbeddingsConfig", "as_json", "json_options",
    "load_config", "option",
    "options_of",
]  # fmt: skip


def json_options() -> dict[str, Option]:
    """Every option that may stand in a configuration file, whichever program it is for."""
    return {name: option for concern in reversed(CONCERNS) for name, option in options_of(concern).items()}
