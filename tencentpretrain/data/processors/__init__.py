"""Data processors: how the examples of an objective are built from a token store."""

from __future__ import annotations

from tencentpretrain.data.processors.base import Processor
from tencentpretrain.data.processors.bert import BertProcessor
from tencentpretrain.data.processors.cls import ClsProcessor
from tencentpretrain.data.processors.lm import LmProcessor
from tencentpretrain.data.processors.mlm import MlmProcessor

__all__ = ["BertProcessor", "ClsProcessor", "LmProcessor", "MlmProcessor", "Processor"]
