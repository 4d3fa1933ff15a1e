"""Pre-training targets, by the names in `"target"`."""

from tencentpretrain.targets import bilm, cls, lm, mlm, sp  # noqa: F401  registers
