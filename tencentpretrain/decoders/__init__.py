"""Decoders, by the name in `"decoder"`."""

from tencentpretrain.decoders import lstm, transformer  # noqa: F401  registers
