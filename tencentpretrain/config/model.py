"""What a model is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from tencentpretrain.config.options import names_in, option
from tencentpretrain.errors import ConfigError
from tencentpretrain.registry import EMBEDDINGS, ENCODERS, TARGETS

LAYERS = "tencentpretrain.layers"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Model: modules and sizes."""

    embedding: tuple[str, ...] = option(
        ("word",), "Embeddings that are added up.", choices=lambda: EMBEDDINGS
    )
    encoder: str = option("transformer", "Encoder.", choices=lambda: ENCODERS)
    target: tuple[str, ...] = option(("mlm",), "Pre-training targets.", choices=lambda: TARGETS)
    target_weights: dict[str, float] = option(
        {}, "Weight of each target in the loss, as mlm=1.0 sp=0.5; targets not named weigh 1."
    )
    hidden_size: int = option(768, "Width of the encoder.", minimum=1)
    emb_size: int = option(768, "Width of the embeddings.", minimum=1)
    feedforward_size: int = option(3072, "Inner width of the feed-forward layers.", minimum=1)
    hidden_act: str = option(
        "gelu",
        "Activation of the feed-forward layers.",
        choices=names_in(f"{LAYERS}.activations", "ACTIVATIONS"),
    )
    heads_num: int = option(12, "Attention heads.", minimum=1)
    attention_head_size: int | None = option(
        None, "Width of one attention head; without it hidden_size / heads_num.", minimum=1
    )
    layers_num: int = option(12, "Encoder layers.", minimum=1)
    max_seq_length: int = option(512, "Longest sequence the position embeddings cover, in tokens.", minimum=1)
    dropout: float = option(0.1, "Dropout probability of hidden states and attention.", minimum=0, maximum=1)
    mask: str = option(
        "fully_visible",
        "What a position may attend to.",
        choices=names_in(f"{LAYERS}.masks", "MASKS"),
        aliases={"prefix": "causal_with_prefix"},
    )
    layernorm: str = option(
        "normal", "Kind of layer normalisation.", choices=names_in(f"{LAYERS}.norm", "NORMS")
    )
    layernorm_positioning: str = option(
        "post", "Normalise after or before each sub-layer.", choices=("post", "pre")
    )
    layernorm_eps: float = option(1e-6, "Added to the variance in layer normalisation.", minimum=0)
    feed_forward: str = option("dense", "Kind of feed-forward layer.", choices=("dense", "gated"))
    remove_embedding_layernorm: bool = option(False, "No layer normalisation after the embeddings.")
    remove_transformer_bias: bool = option(False, "No biases in the transformer's linear layers.")
    remove_attention_scale: bool = option(
        False, "Do not divide attention scores by the root of the head size."
    )
    parameter_sharing: bool = option(False, "All encoder layers share their parameters (ALBERT).")
    factorized_embedding_parameterization: bool = option(
        False, "Embeddings of width emb_size are projected to hidden_size (ALBERT)."
    )
    tie_weights: bool = option(
        False, "The vocabulary layer of the target shares the word embedding's weights."
    )
    has_lmtarget_bias: bool = option(False, "The vocabulary layer of the lm target has a bias.")
    pooling: str = option(
        "first", "How a sequence becomes one vector.", choices=("mean", "max", "first", "last")
    )

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ConfigError(problems)

    @property
    def head_size(self) -> int:
        return self.attention_head_size or self.hidden_size // self.heads_num

    def _problems(self) -> Iterator[str]:
        if self.attention_head_size is None and self.hidden_size % self.heads_num:
            yield (
                f"`heads_num` must divide `hidden_size` ({self.hidden_size}), "
                f"but is {self.heads_num} instead."
            )
        if self.emb_size != self.hidden_size and not self.factorized_embedding_parameterization:
            yield (
                f"`emb_size` ({self.emb_size}) must equal `hidden_size` ({self.hidden_size}) unless "
                "`factorized_embedding_parameterization` is true."
            )
        if "word" not in self.embedding and self.tie_weights:
            yield (
                "`tie_weights` needs the embedding 'word', but `embedding` is "
                + " ".join(self.embedding)
                + "."
            )
        if "lm" in self.target and self.encoder == "transformer" and self.mask == "fully_visible":
            yield (
                "target 'lm' needs `mask` causal or causal_with_prefix; with fully_visible every position "
                "sees the token it is to predict."
            )
        if "lm" in self.target and self.tie_weights and self.emb_size != self.hidden_size:
            yield (
                f"`tie_weights` with target 'lm' needs `emb_size` ({self.emb_size}) equal to `hidden_size` "
                f"({self.hidden_size})."
            )
        for kind in ("embedding", "target"):
            names = getattr(self, kind)
            if not names:
                yield f"`{kind}` names nothing; expected at least one."
            if len(set(names)) < len(names):
                yield f"`{kind}` names a module twice: {' '.join(names)}."
        for name, weight in self.target_weights.items():
            if name not in self.target:
                yield f"`target_weights` names '{name}', but `target` is {' '.join(self.target)}."
            if not 0 <= weight < float("inf"):
                yield f"`target_weights`: the weight of '{name}' must be 0 or more, but is {weight} instead."
