"""Data processors: how the examples of an objective are built from a token store."""

from tencentpretrain.data.processors import albert, bart, bert, gsg, lm, mlm, t5, texts  # noqa: F401  registers
from tencentpretrain.data.processors.base import Processor

__all__ = ["Processor"]
