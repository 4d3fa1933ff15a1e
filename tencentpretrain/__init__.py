"""Config-driven pre-training of text models; later of images, audio and their combinations.

The names below are the stable interface (docs/extending.md); each is imported at its first use,
so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "load_config": "tencentpretrain.config",
    "ModelConfig": "tencentpretrain.config",
    "build_model": "tencentpretrain.model",
    "load_weights": "tencentpretrain.weights",
    "load_tokenizer": "tencentpretrain.tokenizers",
    "encode": "tencentpretrain.tokenizers",
    "UserError": "tencentpretrain.errors",
    "ConfigError": "tencentpretrain.errors",
    "DataError": "tencentpretrain.errors",
    "WeightsError": "tencentpretrain.errors",
    "EMBEDDINGS": "tencentpretrain.registry",
    "ENCODERS": "tencentpretrain.registry",
    "TARGETS": "tencentpretrain.registry",
}
__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from tencentpretrain.config import ModelConfig as ModelConfig
    from tencentpretrain.config import load_config as load_config
    from tencentpretrain.errors import ConfigError as ConfigError
    from tencentpretrain.errors import DataError as DataError
    from tencentpretrain.errors import UserError as UserError
    from tencentpretrain.errors import WeightsError as WeightsError
    from tencentpretrain.model import build_model as build_model
    from tencentpretrain.registry import EMBEDDINGS as EMBEDDINGS
    from tencentpretrain.registry import ENCODERS as ENCODERS
    from tencentpretrain.registry import TARGETS as TARGETS
    from tencentpretrain.tokenizers import encode as encode
    from tencentpretrain.tokenizers import load_tokenizer as load_tokenizer
    from tencentpretrain.weights import load_weights as load_weights


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tencentpretrain' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
