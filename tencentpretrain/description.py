"""What lies beside a weights file, `<file>.json`: enough to load it again without repeating an option."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tencentpretrain.config import ModelConfig, Options, as_json, options_of
from tencentpretrain.config.load import read_model_json
from tencentpretrain.errors import ConfigError, DataError
from tencentpretrain.files import complete_directory, complete_files, json_text, read_json, write_json

if TYPE_CHECKING:
    from tencentpretrain.tokenizers import Tokenizer

# These change nothing that a trained network computes: losses, or nothing at all.
TRAINING_ONLY = frozenset(
    {"dropout", "target_weights", "label_smoothing", "prefix_lm_loss", "ignore_index", "layer_number_scale"}
)
# These may differ from what the weights were made with: they belong to the target, or to training only.
CHANGEABLE = TRAINING_ONLY | {"target", "pooling", "tie_weights", "has_lmtarget_bias"}
OF_A_DECODER = frozenset({"decoder", "decoder_layers_num", "tgt_embedding", "share_embedding"})


def description_path(path: str | Path) -> Path:
    """Where the description of a weights file (or directory) lies."""
    path = Path(path)
    return path.with_name(f"{path.name}.json")


def make_description(
    path: str | Path,
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    labels: Sequence[Any] | None = None,
    plugins: Sequence[str] = (),
    *,
    labels_num: int | None = None,
    vocab_size: int | None = None,
    tgt_tokenizer: Tokenizer | None = None,
    tgt_vocab_size: int | None = None,
    further: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What `<path>.json` says; tokenizers are written beside it, to directories all steps of a run share.

    Args:
        labels: names of the classes, in the order of their numbers.
        labels_num: where the classes have no names.
        vocab_size: rows of the word embedding; default: the tokenizer's.
        tgt_tokenizer, tgt_vocab_size: the same of the decoder's side, where they are others.
        further: options that whoever loads the weights starts from.
    """
    path = Path(path)
    value = as_json(config)
    for prefix, one in (("", tokenizer), ("tgt_", tgt_tokenizer)):
        if one is not None:
            value |= _describe_tokenizer(path, prefix, one)
    known = {
        "vocab_size": vocab_size,
        "tgt_vocab_size": tgt_vocab_size,
        "labels_num": labels_num if labels is None else len(labels),
        "labels": None if labels is None else list(labels),
        "plugins": list(plugins) or None,
    }
    value |= {name: entry for name, entry in known.items() if entry is not None}
    return value | dict(further or {})


def _describe_tokenizer(path: Path, prefix: str, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        f"{prefix}tokenizer": tokenizer.kind,
        f"{prefix}tokenizer_path": _save_tokenizer(path, f"{prefix}tokenizer", tokenizer).name,
        f"{prefix}tokenizer_fingerprint": tokenizer.fingerprint,
        f"{prefix}special_tokens": dict(tokenizer.special_tokens),
        f"{prefix}vocab_size": tokenizer.vocab_size,
    }


def carried(description: Mapping[str, Any], source: Path, path: Path) -> dict[str, Any]:
    """The description of the weights at `source` for weights at `path`, with tokenizers beside them."""
    from tencentpretrain.tokenizers import load_tokenizer

    value = dict(description)
    value.pop("best", None)  # which those weights are, of a run; not what is made of them
    tokenizers = {  # all of them, before one is written
        prefix: load_tokenizer(source.parent / directory, "tgt" if prefix else "src")
        for prefix in ("", "tgt_")
        if (directory := value.pop(f"{prefix}tokenizer_path", None))
    }
    for prefix, tokenizer in tokenizers.items():
        value = _describe_tokenizer(path, prefix, tokenizer) | value
    return value


def write_description(path: str | Path, *arguments: Any, **keywords: Any) -> None:
    """Write `<path>.json`; arguments as `make_description`."""
    write_json(description_path(path), make_description(path, *arguments, **keywords))


@contextlib.contextmanager
def complete_weights(path: Path, description: Mapping[str, Any]) -> Iterator[Path]:
    """Give a temporary name to write weights to; they and `<path>.json` appear together, or neither does."""
    with complete_files(description_path(path), path) as (beside, weights):
        beside.write_text(json_text(description), encoding="utf-8")
        yield weights


def _save_tokenizer(path: Path, suffix: str, tokenizer: Tokenizer) -> Path:
    """A directory with the tokenizer: `<output>.<suffix>`, for `<output>` and every `<output>-<step>`.

    Where another tokenizer has that name (weights of an earlier run need it), the fingerprint is added.
    """
    from tencentpretrain.tokenizers.base import DESCRIPTION_NAME

    usual = path.with_name(re.sub(r"-(\d+|best)$", "", path.name) + f".{suffix}")
    for directory in (usual, usual.with_name(f"{usual.name}-{tokenizer.fingerprint[:8]}")):
        if not directory.exists():
            with complete_directory(directory) as temporary:
                tokenizer.save(temporary)
            return directory
        saved = directory / DESCRIPTION_NAME
        if saved.is_file() and read_json(saved).get("fingerprint") == tokenizer.fingerprint:
            return directory
    raise ConfigError(f"{usual} is not a tokenizer of this toolkit; move it away, its name is needed.")


def read_description(path: str | Path) -> dict[str, Any] | None:
    """What is known about weights, as flat options, from `<path>.json` or a Hugging Face config.json.

    Further keys are those of `make_description`. None: nothing is known (a plain file of another toolkit).

    Raises:
        UserError: the description cannot be read.
    """
    from tencentpretrain.conversion import huggingface

    path = Path(path)
    if huggingface.is_model_directory(path):
        return huggingface.describe(path)
    if description_path(path).is_file():
        return read_model_json(description_path(path))
    return None


def described_config(path: str | Path, description: Mapping[str, Any]) -> ModelConfig:
    """The model configuration in a description.

    Raises:
        ConfigError: a value of it is wrong.
    """
    options = Options("", ModelConfig, arguments=[])
    options.add_layer(str(description_path(path)), description)
    (config,) = options.build(ModelConfig)
    assert isinstance(config, ModelConfig)
    return config


def check_against_description(
    config: ModelConfig,
    description: Mapping[str, Any] | None,
    path: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    tgt_tokenizer: Tokenizer | None = None,
    labels_num: int | None = None,
    origin: Callable[[str], str | None] = lambda name: None,
) -> None:
    """Refuse options that contradict what the weights at `path` were made with.

    Args:
        config: the configuration in force; what may change (CHANGEABLE) is not compared, and a decoder may
            be left out.
        description: of `read_description`; None: nothing to contradict.
        tokenizer, tgt_tokenizer, labels_num: compared where given.
        origin: the option that a value in force comes from, by the value's name, where that is known.

    Raises:
        ConfigError: with every contradiction.
    """
    if description is None:
        return
    problems = []
    free = CHANGEABLE if config.decoder is not None else CHANGEABLE | OF_A_DECODER
    for name, option in options_of(ModelConfig).items():
        if name in free or name not in description:
            continue
        try:
            made_with = option.decode(description[name])
        except ValueError as error:
            problems.append(f"{path}: `{name}` of its description: {error}.")
            continue
        given = getattr(config, name)
        if given != made_with:
            known = f"`{name}` is {_words(given)}, but the weights {path} have {_words(made_with)}"
            source = origin(name)
            advice = "" if source is None else f"leave {source} out; "
            problems.append(f"{known}; {advice}it is known from {_known_from(path)}.")
    own = tgt_own = _fingerprint(description, "", tokenizer)
    if "tgt_vocab_size" in description:
        tgt_own = _fingerprint(description, "tgt_", tgt_tokenizer)
    elif tgt_tokenizer is tokenizer:
        tgt_tokenizer = None  # one for both sides, as the weights have
    for side, fingerprint, given in (
        ("", own, tokenizer),
        (" for the decoder's side", tgt_own, tgt_tokenizer),
    ):
        if given is not None and fingerprint not in (None, given.fingerprint):
            problems.append(
                f"the weights {path} were made with another tokenizer{side} than the one given; use the one "
                f"that {_known_from(path)} names."
            )
    if labels_num is not None and description.get("labels_num") not in (None, labels_num):
        problems.append(
            f"`labels_num` is {labels_num}, but the weights {path} have {description['labels_num']}."
        )
    if problems:
        raise ConfigError(problems)


def _fingerprint(description: Mapping[str, Any], side: str, tokenizer: Tokenizer | None) -> str | None:
    """What the description says; of a Hugging Face directory the tokenizer's own, if the one there has the
    same tokens; None: none is there.

    Args:
        side: "" or "tgt_", before the names of the decoder's side.
        tokenizer: the one to compare.
    """
    from tencentpretrain.tokenizers import load_tokenizer

    known: str | None = description.get(f"{side}tokenizer_fingerprint")
    directory = description.get(f"{side}tokenizer_path")
    if known is not None or directory is None or tokenizer is None:
        return known
    try:
        theirs = load_tokenizer(directory, "tgt" if side else "src")
    except DataError:
        return None
    common = min(len(theirs.tokens), len(tokenizer.tokens))
    return (
        tokenizer.fingerprint if theirs.tokens[:common] == tokenizer.tokens[:common] else theirs.fingerprint
    )


def _known_from(path: str | Path) -> Path:
    beside = description_path(path)
    return Path(path) / "config.json" if Path(path).is_dir() and not beside.is_file() else beside


def _words(value: Any) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)
