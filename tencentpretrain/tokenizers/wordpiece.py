"""BERT's tokenizer: words and punctuation, then WordPiece (Devlin et al. 2019; Wu et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence

from tencentpretrain.config.tokenizer import TokenizerConfig
from tencentpretrain.registry import TOKENIZERS
from tencentpretrain.tokenizers.base import Ids, Lengths, Tokenizer, is_cjk, required_path
from tencentpretrain.tokenizers.vocabulary import read_added_tokens, read_vocabulary
from tencentpretrain.tokenizers.words import WordTable


@TOKENIZERS.register("bert")
class BertTokenizer(Tokenizer):
    """WordPiece as in BERT; equal to Transformers' BertTokenizer."""

    kind = "bert"

    def __init__(self, config: TokenizerConfig) -> None:
        from tokenizers import Tokenizer as Rust
        from tokenizers import decoders, models, normalizers, pre_tokenizers

        path = required_path(config, "vocab_path")
        super().__init__(
            config, read_vocabulary(path), {"vocab_path": path}, {"do_lower_case": config.do_lower_case}
        )
        self._rust = Rust(models.WordPiece(self.ids, unk_token=self.tokens[self.require("unk")]))
        self._rust.normalizer = normalizers.BertNormalizer(lowercase=config.do_lower_case)
        self._rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._rust.decoder = decoders.WordPiece(prefix="##")
        self._words = WordTable(self._rust)

    def _usual_special_tokens(self) -> tuple[str, ...]:
        return read_added_tokens(self.files["vocab_path"])

    def _encode_plain(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        return self._words.encode_batch(texts)

    def token_starts(self, texts: Sequence[str]) -> Lengths:
        return self._words.token_starts(texts)

    def decode(self, ids: Sequence[int]) -> str:
        return self._rust.decode(list(ids), skip_special_tokens=False)

    def _continues(self, token: str) -> bool:
        # '##' and an ideograph is in vocabularies, but no text gives it: every ideograph is a word.
        return token.startswith("##") and len(token) > 2 and not is_cjk(token[2])
