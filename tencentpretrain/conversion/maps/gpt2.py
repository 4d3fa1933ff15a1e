"""GPT-2 (Radford et al. 2019): `GPT2LMHeadModel`, `GPT2Model`."""

from __future__ import annotations

from tencentpretrain.conversion.family import Family, Rule, Setting, Shared
from tencentpretrain.conversion.maps.bert import ACTIVATIONS, norm
from tencentpretrain.conversion.steps import Split, Transpose

_LAYER = "transformer.h.{}"
_OURS = "encoder.transformer.{}"


def _linear(theirs: str, *ours: str) -> tuple[Rule, ...]:
    """Matrices lie transposed at theirs; several of ours are one of theirs."""
    fused = (Split(len(ours)),) if len(ours) > 1 else ()
    return (
        Rule(f"{theirs}.weight", tuple(f"{name}.weight" for name in ours), (Transpose(), *fused)),
        Rule(f"{theirs}.bias", tuple(f"{name}.bias" for name in ours), fused),
    )


GPT2 = Family(
    name="gpt2",
    prefix="transformer.",
    rules=(
        Rule("transformer.wte.weight", "embedding.word.embedding.weight"),
        Rule("transformer.wpe.weight", "embedding.pos.embedding.weight"),
        *norm(f"{_LAYER}.ln_1", f"{_OURS}.layer_norm_1"),
        *_linear(f"{_LAYER}.attn.c_attn", *(f"{_OURS}.self_attn.linear_layers.{part}" for part in range(3))),
        *_linear(f"{_LAYER}.attn.c_proj", f"{_OURS}.self_attn.final_linear"),
        *norm(f"{_LAYER}.ln_2", f"{_OURS}.layer_norm_2"),
        *_linear(f"{_LAYER}.mlp.c_fc", f"{_OURS}.feed_forward.linear_1"),
        *_linear(f"{_LAYER}.mlp.c_proj", f"{_OURS}.feed_forward.linear_2"),
        *norm("transformer.ln_f", "encoder.layer_norm"),
        Rule("lm_head.weight", "target.lm.output_layer.weight", part="lm"),
    ),
    shared=(Shared("lm_head.weight", "transformer.wte.weight"),),
    ignored=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",),
    settings=(
        Setting(("hidden_size", "emb_size"), "n_embd", 768),
        Setting("layers_num", "n_layer", 12),
        Setting("heads_num", "n_head", 12),
        Setting("feedforward_size", "n_inner", lambda theirs: 4 * theirs.get("n_embd", 768)),
        Setting("hidden_act", "activation_function", "gelu_new", ACTIVATIONS),
        Setting("max_seq_length", "n_positions", 1024),
        *(Setting("dropout", name, 0.1) for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")),
        Setting("layernorm_eps", "layer_norm_epsilon", 1e-5),
        Setting("tie_weights", "tie_word_embeddings", True),
    ),
    fixed_ours={
        "embedding": ("word", "pos"),
        "mask": "causal",
        "layernorm_positioning": "pre",
        "remove_embedding_layernorm": True,
    },
    fixed_theirs={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    types={"lm": ("lm",)},
    architectures={("lm",): "GPT2LMHeadModel", (): "GPT2Model"},
    tokenizer_class="GPT2Tokenizer",
    tokenizer_files={"vocab_path": "vocab.json", "merges_path": "merges.txt"},
    token_ids={"bos_token_id": "cls", "eos_token_id": "sep"},
)
