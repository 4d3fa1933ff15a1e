"""Downstream tasks, by the name their programs give."""

from tencentpretrain.tasks import classification  # noqa: F401  registers
