"""How text becomes token ids."""

from __future__ import annotations

import dataclasses

from tencentpretrain.config.options import option
from tencentpretrain.registry import TOKENIZERS


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Tokenizer."""

    tokenizer: str = option("bert", "Kind of tokenizer.", choices=lambda: TOKENIZERS)
    vocab_path: str | None = option(None, "Vocabulary: one token a line, or GPT-2's JSON.")
    merges_path: str | None = option(None, "Merges of a byte-level BPE vocabulary.")
    spm_model_path: str | None = option(None, "SentencePiece model; replaces vocab_path (marian: needs it).")
    do_lower_case: bool = option(True, "Lower-case the text and strip accents (WordPiece).")
    special_tokens_map_path: str | None = option(
        None,
        "JSON with the names of the special tokens; default: the map beside the vocabulary, else BERT's.",
    )


@dataclasses.dataclass(frozen=True)
class TargetTokenizerConfig:
    """Tokenizer of the decoder's side, where it is another one (mt)."""

    tgt_tokenizer: str = option("bert", "Kind of tokenizer.", choices=lambda: TOKENIZERS)
    tgt_vocab_path: str | None = option(None, "Vocabulary; default: one tokenizer for both sides.")
    tgt_merges_path: str | None = option(None, "Merges of a byte-level BPE vocabulary.")
    tgt_spm_model_path: str | None = option(
        None, "SentencePiece model; replaces tgt_vocab_path (marian: needs it)."
    )
    tgt_do_lower_case: bool = option(True, "Lower-case the text and strip accents (WordPiece).")

    def as_tokenizer_config(self) -> TokenizerConfig | None:
        """The options under the names of the source's; None: there is one tokenizer for both sides."""
        if self.tgt_vocab_path is None and self.tgt_spm_model_path is None:
            return None
        return TokenizerConfig(
            **{name.removeprefix("tgt_"): value for name, value in dataclasses.asdict(self).items()}
        )
