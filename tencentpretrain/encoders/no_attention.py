"""What encoders without attention refuse."""

from __future__ import annotations

from collections.abc import Iterator

from tencentpretrain.config import ModelConfig

OPTIONS = (
    "has_residual_attention",
    "has_qk_norm",
    "has_qkv_bias",
    "local_kv_heads_num",
    "attention_head_size",
    "remove_attention_scale",
    "sliding_window",
    "relative_position_embedding",
    "rotary_position_embedding",
    "alibi_position_embedding",
)


def attention_problems(config: ModelConfig, causal: bool) -> Iterator[str]:
    """Options of attention that would do nothing.

    Args:
        causal: whether the encoder sees the past only; `mask` may say so.
    """
    if config.mask not in ("fully_visible", "causal" if causal else ""):
        yield (
            f"encoder '{config.encoder}' has no attention that `mask` could restrict, but it is "
            f"{config.mask}; leave it out."
        )
    if config.decoder in (None, "lstm"):  # another decoder attends
        for name in OPTIONS:
            if getattr(config, name):
                yield f"`{name}` is about attention, which encoder '{config.encoder}' does not have."
