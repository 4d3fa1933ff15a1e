"""Decoders, by the name in `"decoder"`."""

from tencentpretrain.decoders import transformer  # noqa: F401  registers
