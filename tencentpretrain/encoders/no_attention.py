"""What encoders without attention refuse."""

from __future__ import annotations

from collections.abc import Iterator

from tencentpretrain.config import ModelConfig


def mask_problems(config: ModelConfig, causal: bool) -> Iterator[str]:
    """A mask that would do nothing.

    Args:
        causal: whether the encoder sees the past only; `mask` may say so.
    """
    if config.mask not in ("fully_visible", "causal" if causal else ""):
        yield (
            f"encoder '{config.encoder}' has no attention that `mask` could restrict, but it is "
            f"{config.mask}; leave it out."
        )
