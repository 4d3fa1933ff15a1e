"""Marian (Junczys-Dowmunt et al. 2018), which is the Transformer of Vaswani et al. 2017: `MarianMTModel`,
`MarianModel`."""

from __future__ import annotations

from tencentpretrain.conversion.family import Family, Setting
from tencentpretrain.conversion.maps.bart import (
    IGNORED,
    POSITIONS,
    SCALED,
    SEQUENCE_TO_SEQUENCE,
    SHARED,
    says_shared,
    sinusoids,
    sizes,
    stacks,
)
from tencentpretrain.conversion.steps import Values


def _says_shared(theirs: Values) -> bool | None:
    if theirs.get("share_encoder_decoder_embeddings") is False:
        return False
    return says_shared(theirs)


MARIAN = Family(
    name="marian",
    prefix="model.",
    rules=stacks(),
    shared=SHARED,
    implied=sinusoids,
    sizes={"decoder_vocab_size": "model.decoder.embed_tokens.weight"},
    ignored=(*IGNORED, POSITIONS.format("(en|de)coder").replace(".", r"\.")),
    settings=(
        *sizes(),
        Setting(("embedding", "tgt_embedding"), "scale_embedding", False, SCALED),
        Setting("share_embedding", "share_encoder_decoder_embeddings", True, read=_says_shared),
        # Without a tokenizer; theirs would be those of a vocabulary of 58101 tokens.
        Setting((), "pad_token_id", write=lambda config: None),
        Setting((), "decoder_start_token_id", write=lambda config: 0),
    ),
    fixed_ours={
        "decoder": "transformer",
        "remove_embedding_layernorm": True,
        "sinusoidal_variant": "marian",
    },
    fixed_theirs=SEQUENCE_TO_SEQUENCE,
    types={"marian": ("lm",)},
    architectures={("lm",): "MarianMTModel", (): "MarianModel"},
    tokenizer_class="MarianTokenizer",
    tokenizer_files={"spm_model_path": "source.spm", "vocab_path": "vocab.json"},
    tgt_tokenizer_files={"spm_model_path": "target.spm", "vocab_path": "target_vocab.json"},
    token_ids={
        "pad_token_id": "pad",
        "eos_token_id": "sep",
        "forced_eos_token_id": "sep",
        "decoder_start_token_id": "pad",
    },
)
