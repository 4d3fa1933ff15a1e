"""What a model is made of."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Iterator
from typing import Any

from tencentpretrain.config import needs
from tencentpretrain.config.options import Option, names_in, option, options_of
from tencentpretrain.errors import ConfigError, did_you_mean
from tencentpretrain.registry import DECODERS, EMBEDDINGS, ENCODERS, TARGETS

LAYERS = "tencentpretrain.layers"
LARGEST = 2**24  # of a size: the product of two is a number of parameters that can still be counted


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Model: modules and sizes."""

    embedding: tuple[str, ...] = option(
        ("word",), "Embeddings that are added up.", choices=lambda: EMBEDDINGS
    )
    encoder: str = option("transformer", "Encoder.", choices=lambda: ENCODERS)
    tgt_embedding: tuple[str, ...] = option(
        ("word",),
        "Embeddings of the decoder's input, where there is a decoder.",
        choices=lambda: EMBEDDINGS,
        needs=needs.A_DECODER,
    )
    decoder: str | None = option(
        None, "Decoder, which attends to the encoder's states; default: none.", choices=lambda: DECODERS
    )
    target: tuple[str, ...] = option(("mlm",), "Pre-training targets.", choices=lambda: TARGETS)
    target_weights: dict[str, float] = option(
        {}, "Weight of each target in the loss, as mlm=1.0 sp=0.5; targets not named weigh 1."
    )
    hidden_size: int = option(768, "Width of the encoder.", minimum=1, maximum=LARGEST)
    emb_size: int = option(768, "Width of the embeddings.", minimum=1, maximum=LARGEST)
    feedforward_size: int = option(
        3072, "Inner width of the feed-forward layers.", minimum=1, maximum=LARGEST
    )
    hidden_act: str = option(
        "gelu",
        "Activation of the feed-forward layers.",
        choices=names_in(f"{LAYERS}.activations", "ACTIVATIONS"),
    )
    heads_num: int = option(12, "Attention heads.", minimum=1, maximum=LARGEST)
    attention_head_size: int | None = option(
        None,
        "Width of one attention head; without it hidden_size / heads_num.",
        minimum=1,
        maximum=LARGEST,
        needs=needs.ATTENTION,
    )
    local_kv_heads_num: int | None = option(
        None,
        "Heads of keys and values, shared by groups of heads; default: heads_num.",
        minimum=1,
        maximum=LARGEST,
        needs=needs.ATTENTION,
    )
    layers_num: int = option(12, "Encoder layers.", minimum=1)
    decoder_layers_num: int | None = option(
        None,
        "Decoder layers, where there is a decoder; default: layers_num.",
        minimum=1,
        needs=needs.A_DECODER,
    )
    max_seq_length: int = option(
        512, "Longest sequence the position embeddings cover, in tokens.", minimum=1, maximum=2**31
    )
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
        "post", "Normalise after or before each sub-layer.", choices=("post", "pre"), needs=needs.LAYERS
    )
    layernorm_eps: float = option(1e-6, "Added to the variance in layer normalisation.", minimum=0)
    feed_forward: str = option(
        "dense", "Kind of feed-forward layer.", choices=("dense", "gated"), needs=needs.LAYERS
    )
    remove_embedding_layernorm: bool = option(False, "No layer normalisation after the embeddings.")
    remove_transformer_bias: bool = option(
        False, "No biases in the transformer's linear layers.", needs=needs.LAYERS
    )
    remove_attention_scale: bool = option(
        False, "Do not divide attention scores by the root of the head size.", needs=needs.ATTENTION
    )
    has_qkv_bias: bool = option(
        False,
        "Biases in the projections to queries, keys and values where other biases are removed (Qwen2).",
        needs=needs.ATTENTION,
    )
    has_qk_norm: bool = option(
        False, "Queries and keys of each head are normalised (Qwen3).", needs=needs.ATTENTION
    )
    has_residual_attention: bool = option(
        False,
        "Each encoder layer's attention scores are added to the next one's (RealFormer).",
        needs=needs.ATTENTION,
    )
    sliding_window: int | None = option(
        None,
        "How many positions back a position attends to, itself included; default: all.",
        minimum=1,
        needs=needs.ATTENTION,
    )
    relative_position_embedding: bool = option(
        False, "Attention scores get a learned bias by bucketed distance (T5).", needs=needs.ATTENTION
    )
    relative_attention_buckets_num: int = option(
        32, "Buckets of distances of that bias.", minimum=2, maximum=LARGEST, needs=needs.RELATIVE
    )
    relative_attention_max_distance: int = option(
        128, "Distance, in tokens, from which on all are in the last bucket.", minimum=2, needs=needs.RELATIVE
    )
    rotary_position_embedding: bool = option(
        False, "Queries and keys are rotated by their position (RoFormer; LLaMA).", needs=needs.ATTENTION
    )
    rope_theta: float = option(
        10000.0, "Base of the rotation's wavelengths.", minimum=1, needs=needs.ROTATION
    )
    rope_scaling: dict[str, Any] = option(
        {},
        "Stretching of the rotation to longer texts: an object with rope_type (linear, dynamic, yarn, "
        "llama3), factor and what else the type needs, named as in Transformers.",
        needs=needs.ROTATION,
    )
    alibi_position_embedding: bool = option(
        False,
        "Attention scores fall linearly with distance, with a slope per head (ALiBi; BLOOM).",
        needs=needs.ATTENTION,
    )
    layer_number_scale: bool = option(
        False,
        "Accepted in published configurations: a rescaling for fp16 that cancels out; scores are exact.",
    )
    sinusoidal_variant: str = option(
        "auto",
        "Sinusoidal positions: interleaved sines and cosines (auto for text), concatenated (auto for "
        "speech), or as Marian and Pegasus have them in Transformers.",
        choices=("auto", "interleaved", "concatenated", "marian"),
        needs=needs.SINUSOIDS,
    )
    bidirectional: bool = option(
        False, "Recurrent encoders read in both directions, each with half the width.", needs=needs.DIRECTIONS
    )
    kernel_size: int = option(
        4,
        "Positions a convolution of the encoder gatedcnn covers.",
        minimum=1,
        maximum=LARGEST,
        needs=needs.CONVOLUTIONS,
    )
    block_size: int = option(
        2, "Layers of a residual block of the encoder gatedcnn.", minimum=1, needs=needs.CONVOLUTIONS
    )
    stream_0: dict[str, Any] = option(
        {}, "What differs in the first stream of embedding and encoder 'dual': an object of model options."
    )
    stream_1: dict[str, Any] = option({}, "The same for the second stream.")
    remove_stream_layernorm: bool = option(
        False, "No second layer normalisation after the embeddings of a stream of 'dual'."
    )
    share_embedding: bool = option(
        False, "Encoder and decoder share their word embedding.", needs=needs.A_DECODER
    )
    parameter_sharing: bool = option(
        False, "All encoder layers share their parameters (ALBERT).", needs=needs.ENCODER_LAYERS
    )
    factorized_embedding_parameterization: bool = option(
        False, "Embeddings of width emb_size are projected to hidden_size (ALBERT)."
    )
    tie_weights: bool = option(
        False, "The vocabulary layer of the target shares the word embedding's weights."
    )
    has_lmtarget_bias: bool = option(False, "The vocabulary layer of the lm target has a bias.")
    scale_tied_output: bool = option(
        False, "States are divided by the root of hidden_size before the vocabulary layer of lm (T5)."
    )
    label_smoothing: float = option(
        0.0,
        "Probability that the lm target spreads evenly over the other tokens.",
        minimum=0,
        maximum=1,
        needs=needs.LM,
    )
    ignore_index: bool = option(
        False, "Accepted in published configurations: padding never counts in a loss here."
    )
    prefix_lm_loss: bool = option(
        False, "The lm target counts the second segment only (with mask causal_with_prefix).", needs=needs.LM
    )
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

    @property
    def kv_heads_num(self) -> int:
        return self.local_kv_heads_num or self.heads_num

    @property
    def decoder_depth(self) -> int:
        return self.decoder_layers_num or self.layers_num

    def encoder_alone(self) -> ModelConfig:
        """The same model without its decoder and what only a decoder has; `target` is what suits it then."""
        changes: dict[str, Any] = {"decoder": None, "target": ("mlm",), "tie_weights": False}
        while idle := idle_options(types.SimpleNamespace(**vars(self) | changes)):  # one may need another
            changes |= {name: declared.default for name, declared in idle.items()}
        return dataclasses.replace(self, **changes)

    @property
    def is_dual(self) -> bool:
        return self.encoder == "dual"

    @functools.cached_property
    def streams(self) -> tuple[ModelConfig, ModelConfig]:
        """Configurations of the two streams of a dual model: what the stream says, over what is said outside.

        Raises:
            ConfigError: with every problem of both, each with its path.
        """
        built, problems = [], []
        for name in ("stream_0", "stream_1"):
            try:
                built.append(self._stream(name))
            except ConfigError as error:
                problems += [f"{name}: {problem}" for problem in error.problems]
        if problems:
            raise ConfigError(problems)
        return built[0], built[1]

    def _stream(self, name: str) -> ModelConfig:
        values: dict[str, Any] = {"stream_0": {}, "stream_1": {}, "target_weights": {}, "target": ()}
        problems = []
        known = options_of(ModelConfig)
        for key, value in getattr(self, name).items():
            if key == "vocab_size":  # the tokenizer knows it
                continue
            if key not in known:
                problems.append(f"{key}: not an option of the model{did_you_mean(key, known)}.")
                continue
            try:
                values[key] = known[key].decode(value)
            except ValueError as error:
                problems.append(f"{key}: {error}.")
        if problems:
            raise ConfigError(problems)
        if values.get("encoder", "dual") == "dual":
            raise ConfigError("`encoder` must name the stream's own encoder, which cannot be dual.")
        return dataclasses.replace(self, **values)

    def _problems(self) -> Iterator[str]:
        for name, idle in idle_options(self).items():
            what, default = idle.metadata["needs"].what, idle.default
            remedy = "leave it out"
            if isinstance(default, str | int | float):  # which also overrides what a JSON file says
                remedy += f", or give --{name} {str(default).lower()}"
            yield f"`{name}` is about {what}, which the model does not have; {remedy}."
        if self.is_dual != (self.embedding == ("dual",)):
            yield (
                "embedding 'dual' and encoder 'dual' need each other, but `embedding` is "
                f"{' '.join(self.embedding)} and `encoder` is {self.encoder}."
            )
            return
        if self.is_dual:
            yield from self._stream_problems()
        elif self.stream_0 or self.stream_1:
            yield "`stream_0` and `stream_1` are for encoder 'dual', but `encoder` is " + self.encoder + "."
        if self.decoder is not None and self.is_dual:
            yield f"decoder '{self.decoder}' reads one sequence of states, but encoder 'dual' gives two."
        if self.emb_size != self.hidden_size and not (
            self.factorized_embedding_parameterization or getattr(ENCODERS[self.encoder], "any_width", False)
        ):
            yield (
                f"`emb_size` ({self.emb_size}) must equal `hidden_size` ({self.hidden_size}) unless "
                "`factorized_embedding_parameterization` is true, or the encoder recurrent or convolutional."
            )
        words = self.embedding if self.decoder is None else self.tgt_embedding
        if self.tie_weights and not self.is_dual and "word" not in words:
            yield (
                f"`tie_weights` needs the embedding 'word', but "
                f"`{'embedding' if self.decoder is None else 'tgt_embedding'}` is {' '.join(words)}."
            )
        for kind in ("embedding", "tgt_embedding"):
            if getattr(self, kind) and set(getattr(self, kind)) <= {"pos", "seg", "sinusoidalpos"}:
                yield f"`{kind}` says where a token is, but not which ({' '.join(getattr(self, kind))})."
        if self.share_embedding and self.decoder is not None:
            for name in ("embedding", "tgt_embedding"):
                if "word" not in getattr(self, name):
                    yield (
                        f"`share_embedding` needs the embedding 'word', but `{name}` is "
                        f"{' '.join(getattr(self, name))}."
                    )
        if {"cls", "sp"}.intersection(self.target):
            yield from self.pooling_problems()
        for kind in ("embedding", "target", "tgt_embedding"):
            names = getattr(self, kind)
            if not names and kind != "target":
                yield f"`{kind}` names nothing; expected at least one."
            if len(set(names)) < len(names):
                yield f"`{kind}` names a module twice: {' '.join(names)}."
        for name, weight in self.target_weights.items():
            if name not in self.target:
                yield f"`target_weights` names '{name}', but `target` is {' '.join(self.target)}."
            if not 0 <= weight < float("inf"):
                yield f"`target_weights`: the weight of '{name}' must be 0 or more, but is {weight} instead."
        for module in needs.modules_named(self):
            yield from module.problems(self) if hasattr(module, "problems") else ()

    def pooling_problems(self) -> Iterator[str]:
        """Why the vector of a text would not be about the text."""
        sees = getattr(ENCODERS[self.encoder], "is_causal", lambda config: False)
        if (
            self.pooling == "first"
            and self.decoder is None
            and self.mask != "causal_with_prefix"
            and sees(self)
        ):
            yield (
                "`pooling` is first, but the first position sees nothing of the text that follows; use last "
                "or mean."
            )

    def _stream_problems(self) -> Iterator[str]:
        try:
            one, other = self.streams
        except ConfigError as error:
            yield from error.problems
            return
        if self.tie_weights and one != other:
            yield "`tie_weights` makes the streams one, but `stream_0` and `stream_1` differ."


def idle_options(config: Any) -> dict[str, Option]:
    """Options of a model that have another value than the default, but not what they need to do anything."""
    return {
        name: declared
        for name, declared in options_of(ModelConfig).items()
        if (need := declared.metadata["needs"]) is not None
        and getattr(config, name) != declared.default
        and not need.met(config)
    }
