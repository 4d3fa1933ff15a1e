"""Encoders, by the name in `"encoder"`."""

from tencentpretrain.encoders import dual, fnet, gatedcnn, recurrent, transformer  # noqa: F401  registers
