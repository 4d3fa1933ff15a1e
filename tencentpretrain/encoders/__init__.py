"""Encoders, by the name in `"encoder"`."""

from tencentpretrain.encoders import transformer  # noqa: F401  registers
