"""Any tokenizer that a `tokenizer.json` describes (T5, LLaMA, Qwen, BLOOM … as Transformers saves them)."""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tencentpretrain.config.tokenizer import TokenizerConfig
from tencentpretrain.errors import DataError
from tencentpretrain.registry import TOKENIZERS
from tencentpretrain.tokenizers.base import Ids, Lengths, Tokenizer, flatten, is_cjk, required_path
from tencentpretrain.tokenizers.bpe import continues_in_bytes, starts_of
from tencentpretrain.tokenizers.spm import SPACE
from tencentpretrain.tokenizers.vocabulary import check_parts, read_bytes

_RARE = "\U0001fae8"  # a character that few vocabularies have


@TOKENIZERS.register("hfpretrained")
class PretrainedTokenizer(Tokenizer):
    """What the file says, as the library that wrote it reads it; `vocab_path` may name its directory.

    Raises:
        DataError: no such file, or none of that library.
    """

    kind = "hfpretrained"
    file_names = MappingProxyType({"vocab_path": "tokenizer.json"})

    def __init__(self, config: TokenizerConfig) -> None:
        from tokenizers import Tokenizer as Rust

        path = required_path(config, "vocab_path")
        if path.is_dir():
            path /= "tokenizer.json"
        self._content = read_bytes(path, "a tokenizer.json")
        try:
            parts = json.loads(self._content)
            check_parts(path, parts)
            self._rust = Rust.from_buffer(self._content)
            added = parts.get("added_tokens") or []
            self._special_names = tuple(token["content"] for token in added if token["special"])
            self._plain = Rust.from_str(json.dumps(_without_special_tokens(parts, {*self._special_names})))
            self._plain.encode_batch_fast([_RARE])  # fails where there is no unknown token
        except DataError:
            raise
        except Exception as error:  # the library raises nothing more precise
            raise DataError(f"{path} is no tokenizer.json ({error}).") from None
        for rust in (self._rust, self._plain):
            rust.no_padding()
            rust.no_truncation()
        ids = self._rust.get_vocab(with_added_tokens=True)
        tokens = [""] * (max(ids.values()) + 1)
        for token, id in ids.items():
            tokens[id] = token
        self._in_bytes = '"ByteLevel"' in json.dumps([parts.get("pre_tokenizer"), parts.get("decoder")])
        self._in_words = (parts.get("model") or {}).get("type") == "WordPiece"
        super().__init__(config, tokens, {"vocab_path": path})

    def _usual_special_tokens(self) -> tuple[str, ...]:
        return self._special_names

    def _identity(self) -> bytes:
        return self._content

    def _write_file(self, option: str, path: Path) -> None:
        path.write_bytes(self._content)

    def _encode_batch(self, texts: Sequence[str], special_tokens: bool) -> tuple[Ids, Lengths]:
        rust = self._rust if special_tokens else self._plain
        encodings = rust.encode_batch_fast(list(texts), add_special_tokens=False)
        return flatten([encoding.ids for encoding in encodings])

    def token_starts(self, texts: Sequence[str]) -> Lengths:
        return starts_of(self._plain, texts)

    def decode(self, ids: Sequence[int]) -> str:
        return self._rust.decode(list(ids), skip_special_tokens=False)

    def _continues(self, token: str) -> bool:
        if self._in_bytes:
            return continues_in_bytes(token)
        if self._in_words:
            return token.startswith("##")
        return token[0] != SPACE and token[0].isalnum() and not is_cjk(token[0])


def _without_special_tokens(parts: dict[str, Any], special: Set[str]) -> dict[str, Any]:
    """The description of a tokenizer to which special tokens that a text spells out are text."""

    def hidden(token: str) -> str:
        # Ids go by order, so none may be left out; this starts with what is no character.
        return f"\uffff{token}" if token in special and token != model.get("unk_token") else token

    model = dict(parts["model"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {hidden(token): id for token, id in model["vocab"].items()}
    else:
        model["vocab"] = [[hidden(token), score] for token, score in model["vocab"]]
    if "merges" in model:
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [pair for pair in pairs if not {*pair, "".join(pair)} & special]
    added = [token | {"content": hidden(token["content"])} for token in parts.get("added_tokens") or []]
    return parts | {"added_tokens": added, "post_processor": None, "model": model}
