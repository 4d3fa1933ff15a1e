"""A tokenizer from options, or from the directory where one is kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from tencentpretrain.config.tokenizer import TokenizerConfig
from tencentpretrain.errors import DataError
from tencentpretrain.files import read_json
from tencentpretrain.registry import TOKENIZERS
from tencentpretrain.tokenizers.base import DESCRIPTION_NAME, Tokenizer
from tencentpretrain.tokenizers.vocabulary import MAP_NAME, check_parts

MARIAN_FILES = {"src": "source.spm", "tgt": "target.spm"}  # SentencePiece models, by side


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer that the options describe. A SentencePiece model replaces a vocabulary, as published,
    but where a tokenizer has both.

    Raises:
        ConfigError: no such tokenizer, or it needs a file that no option names.
        DataError: a file that is not what it should be.
    """
    kind = config.tokenizer
    if config.spm_model_path is not None and kind not in ("xlmroberta", "marian"):
        kind = "sentencepiece"
    tokenizer: Tokenizer = TOKENIZERS[kind](dataclasses.replace(config, tokenizer=kind))
    return tokenizer


def load_tokenizer(source: str | Path | TokenizerConfig, side: Literal["src", "tgt"] = "src") -> Tokenizer:
    """A tokenizer from where one is kept.

    Args:
        source: a directory that `Tokenizer.save` wrote; a Hugging Face directory; a weights file of ours,
            or the description `<weights>.json` beside it; or the options.
        side: "tgt" for that of the decoder's side, which weights may have another of; else one is for both.

    Raises:
        DataError: nothing of the kind there, or its files were changed after it was saved.
    """
    if isinstance(source, TokenizerConfig):
        return build_tokenizer(source)
    path = Path(source)
    if path.is_dir():
        return _load_saved(path) if (path / DESCRIPTION_NAME).is_file() else _load_huggingface(path, side)
    description = path if path.suffix == ".json" else path.with_name(f"{path.name}.json")
    if not description.is_file():
        absent = "" if path.exists() else "no such file or directory; "
        raise DataError(
            f"{path}: {absent}expected a directory with a tokenizer, or weights and '{description.name}'."
        )
    value = _read_object(description)
    key = "tgt_tokenizer_path" if side == "tgt" and "tgt_vocab_size" in value else "tokenizer_path"
    if not isinstance(value.get(key), str):
        raise DataError(f"{description} names no tokenizer (key '{key}').")
    return load_tokenizer(description.parent / value[key], side)


def has_two_sides(directory: Path) -> bool:
    """Whether a Hugging Face directory has a tokenizer for the decoder's side too."""
    return (directory / MARIAN_FILES["tgt"]).is_file()


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected an object ({{…}}), but is {type(value).__name__} instead.")
    return value


def _load_saved(directory: Path) -> Tokenizer:
    value = _read_object(directory / DESCRIPTION_NAME)
    fields = {field.name for field in dataclasses.fields(TokenizerConfig)}
    options: dict[str, Any] = {name: given for name, given in value.items() if name in fields}
    options |= {name: str(directory / str(file)) for name, file in options.items() if name.endswith("_path")}
    options["special_tokens_map_path"] = str(directory / MAP_NAME)
    tokenizer = build_tokenizer(TokenizerConfig(**options))
    if tokenizer.fingerprint != value.get("fingerprint"):
        raise DataError(
            f"{directory}: files of the tokenizer were changed after it was saved; copy it again."
        )
    return tokenizer


def _load_huggingface(directory: Path, side: str) -> Tokenizer:
    """The tokenizer of a Hugging Face directory: one of ours where it gives the same ids, else as its
    tokenizer.json says.

    Raises:
        DataError: no file of a tokenizer, or one that splits text in a way that ours do not and that no
            tokenizer.json describes.
    """
    settings_path = directory / "tokenizer_config.json"
    settings = _read_object(settings_path) if settings_path.is_file() else {}
    parts = _read_object(directory / "tokenizer.json") if (directory / "tokenizer.json").is_file() else {}
    check_parts(directory / "tokenizer.json", parts)
    try:
        own = build_tokenizer(_own_options(directory, settings, parts, side))
    except DataError:
        if not parts:
            raise
    else:
        added = settings.get("added_tokens_decoder") or {}
        ids_apply = side == "src" or not settings.get("separate_vocabs")  # a MarianTokenizer's source
        strange = any(
            token["content"] not in own.ids or (ids_apply and str(own.ids[token["content"]]) != id)
            for id, token in added.items()
        )
        if not parts and (strange or (directory / "added_tokens.json").is_file()):
            where = "tokenizer_config.json" if strange else "added_tokens.json"
            raise DataError(
                f"{directory}: tokens of {where} are read from a tokenizer.json only; save the "
                "tokenizer anew with Transformers."
            )
        if all(own.ids.get(token["content"]) == token["id"] for token in parts.get("added_tokens") or []):
            return own
    # Slower than those of ours, but it is what the file says.
    return build_tokenizer(TokenizerConfig("hfpretrained", vocab_path=str(directory / "tokenizer.json")))


def _own_options(
    directory: Path, settings: dict[str, Any], parts: dict[str, Any], side: str
) -> TokenizerConfig:
    """Options of a tokenizer of ours that gives the same ids; DataError where there is none."""
    of_marian = any((directory / name).is_file() for name in MARIAN_FILES.values())
    if of_marian or settings.get("tokenizer_class") == "MarianTokenizer":
        return _like_marian(directory, settings, side)
    for name in ("sentencepiece.bpe.model", "spiece.model", "tokenizer.model"):
        if (directory / name).is_file():
            kind = "xlmroberta" if name == "sentencepiece.bpe.model" else "sentencepiece"
            theirs = settings.get("tokenizer_class") or "XLMRobertaTokenizer"
            if kind == "xlmroberta" and "XLMRoberta" not in theirs:
                raise DataError(f"{directory}: there is no tokenizer for {theirs} here.")
            if "Albert" in theirs:  # which changes the text before the model sees it, unless told not to
                given = {"do_lower_case": True, "keep_accents": False} | settings
                ours = {"do_lower_case": False, "keep_accents": True}
                _check(directory, {"settings": given}, "settings", ours)
            return TokenizerConfig(tokenizer=kind, spm_model_path=str(directory / name))
    model = (parts.get("model") or {}).get("type")
    if model == "WordPiece" or (not parts and (directory / "vocab.txt").is_file()):
        return _like_bert(directory, settings, parts)
    if model == "BPE" or (not parts and (directory / "vocab.json").is_file()):
        return _like_gpt2(directory, settings, parts)
    raise DataError(
        f"{directory}: no tokenizer in it (vocab.txt, vocab.json and merges.txt, tokenizer.json, "
        "sentencepiece.bpe.model, spiece.model or tokenizer.model)."
    )


def _like_marian(directory: Path, settings: dict[str, Any], side: str) -> TokenizerConfig:
    separate = bool(settings.get("separate_vocabs"))
    needed = [*MARIAN_FILES.values(), "vocab.json", *["target_vocab.json"] * separate]
    if missing := [name for name in needed if not (directory / name).is_file()]:
        raise DataError(
            f"{directory}: a MarianTokenizer consists of {', '.join(needed)}; {', '.join(missing)} "
            f"{'are' if len(missing) > 1 else 'is'} missing, copy them from where the model is from."
        )
    vocabulary = "target_vocab.json" if separate and side == "tgt" else "vocab.json"
    spm_model_path = str(directory / MARIAN_FILES[side])
    return TokenizerConfig("marian", spm_model_path=spm_model_path, vocab_path=str(directory / vocabulary))


def _like_gpt2(directory: Path, settings: dict[str, Any], parts: dict[str, Any]) -> TokenizerConfig:
    byte_level = {"add_prefix_space": False, "use_regex": True}
    _check(directory, parts, "normalizer", {"type": None})
    _check(directory, parts, "pre_tokenizer", {"type": "ByteLevel", **byte_level})
    _check(directory, {"settings": settings}, "settings", {"add_prefix_space": False})
    vocab_path, merges_path = directory / "vocab.json", directory / "merges.txt"
    if parts:
        vocab_path = merges_path = directory / "tokenizer.json"
    return TokenizerConfig("bpe", vocab_path=str(vocab_path), merges_path=str(merges_path))


def _like_bert(directory: Path, settings: dict[str, Any], parts: dict[str, Any]) -> TokenizerConfig:
    lower = settings.get("do_lower_case", (parts.get("normalizer") or {}).get("lowercase", True))
    ours = {
        "clean_text": True,
        "handle_chinese_chars": True,
        "lowercase": lower,
        "strip_accents": (None, lower),
    }
    _check(directory, parts, "normalizer", {"type": "BertNormalizer", **ours})
    _check(directory, parts, "pre_tokenizer", {"type": "BertPreTokenizer"})
    _check(directory, parts, "model", {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100})
    ours = {"tokenize_chinese_chars": True, "strip_accents": (None, lower)}
    _check(directory, {"settings": settings}, "settings", ours)
    path = directory / ("tokenizer.json" if parts else "vocab.txt")
    return TokenizerConfig(tokenizer="bert", vocab_path=str(path), do_lower_case=bool(lower))


def _check(directory: Path, parts: dict[str, Any], part: str, expected: dict[str, Any]) -> None:
    """Refuse what would give other ids; a setting that is not there is as expected."""
    given = parts.get(part, {})
    if given is None:  # a tokenizer.json that has no such part
        given = {"type": None}
    for name, value in expected.items():
        allowed = value if isinstance(value, tuple) else (value,)
        if given.get(name, allowed[0]) not in allowed:
            raise DataError(
                f"{directory}: its tokenizer has {part} {name} {given[name]!r}; ours is {allowed[-1]!r}."
            )
