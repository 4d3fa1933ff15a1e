"""Models of a decoder alone."""

from __future__ import annotations

from typing import Any

from reference import Case, randomised


def gpt2(**changes: Any) -> Any:
    import transformers

    sizes = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    ends = {"bos_token_id": 1, "eos_token_id": 1}
    return randomised(transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**sizes, **ends, **changes})))


def llama(kind: str = "Llama", rope: dict[str, Any] | None = None, **changes: Any) -> Any:
    """LLaMA or a relative; three layers, so that a window or bias of only some would show."""
    import transformers

    sizes = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default", **(rope or {})},
    }
    config = getattr(transformers, f"{kind}Config")(**{**sizes, **changes})
    return randomised(getattr(transformers, f"{kind}ForCausalLM")(config))


def qwen(kind: str, **changes: Any) -> Any:
    return llama(kind, **{"num_key_value_heads": 2, "max_window_layers": 3, **changes})


def bloom(**changes: Any) -> Any:
    import transformers

    sizes = {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 8}
    return randomised(transformers.BloomForCausalLM(transformers.BloomConfig(**{**sizes, **changes})))


LLAMA3 = {
    "rope_theta": 500000.0,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}

CASES = [
    Case("gpt2", "gpt2", gpt2, "causal"),
    Case(
        "gpt2-untied",
        "gpt2",
        lambda: gpt2(
            n_inner=50, activation_function="relu", layer_norm_epsilon=1e-3, tie_word_embeddings=False
        ),
        "causal",
    ),
    Case("llama", "llama", llama, "causal"),
    Case("llama-wide-heads-tied", "llama", lambda: llama(head_dim=12, tie_word_embeddings=True), "causal"),
    Case("llama3", "llama", lambda: llama(rope=LLAMA3, num_key_value_heads=2), "causal"),
    Case("llama-linear", "llama", lambda: llama(rope={"rope_type": "linear", "factor": 2.5}), "causal"),
    # Both shorter and longer than the length trained on.
    Case(
        "llama-dynamic",
        "llama",
        lambda: llama(rope={"rope_type": "dynamic", "factor": 2.0}, max_position_embeddings=10),
        "causal",
    ),
    Case("llama-yarn", "llama", lambda: llama(rope=YARN), "causal"),
    Case("mistral", "mistral", lambda: llama("Mistral", num_key_value_heads=2, sliding_window=5), "causal"),
    Case("mistral-without-window", "mistral", lambda: llama("Mistral", sliding_window=None), "causal"),
    Case("qwen2", "qwen2", lambda: qwen("Qwen2", tie_word_embeddings=True), "causal"),
    Case(
        "qwen2-window",
        "qwen2",
        lambda: qwen("Qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=0),
        "causal",
    ),
    Case("qwen3", "qwen3", lambda: qwen("Qwen3", head_dim=12), "causal"),
    Case("bloom", "bloom", bloom, "causal"),
    Case(
        "bloom-6-heads",
        "bloom",
        lambda: bloom(hidden_size=24, n_head=6, layer_norm_epsilon=1e-3, tie_word_embeddings=False),
        "causal",
    ),
]
