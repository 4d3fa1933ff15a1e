"""Models of Hugging Face Transformers as files: config.json, weights and tokenizer, read and written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tencentpretrain.config import ModelConfig
from tencentpretrain.conversion.engine import Family, is_tied, to_ours, to_theirs, without_copies
from tencentpretrain.conversion.maps import FAMILIES, family_of
from tencentpretrain.errors import WeightsError
from tencentpretrain.files import complete_directory, read_json, write_json
from tencentpretrain.state_dict import WHOLE, StateDict, read_tensors, save_weights, strip_wrappers

if TYPE_CHECKING:
    from tencentpretrain.tokenizers import Tokenizer

CONFIG = "config.json"
LAYERS = {"encoder.transformer": "layers_num", "decoder.transformer_decoder": "decoder_layers_num"}
_TOKENIZER_FILES = ("vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.json")


@dataclasses.dataclass(frozen=True)
class HuggingFaceModel:
    """A model that was read.

    Attributes:
        tensors: under our names.
        values: our configuration values; without a config.json only those that the tensors show.
        parts: targets whose tensors are all there.
        ignored: names of theirs that carry nothing for us.
        notes: what a user should know, a line each.
    """

    family: Family
    tensors: StateDict
    values: dict[str, Any]
    parts: tuple[str, ...]
    ignored: list[str]
    notes: list[str]
    has_config: bool


def is_model_directory(path: Path) -> bool:
    """Whether a directory has a config.json that names a `model_type`."""
    if not (path / CONFIG).is_file():
        return False
    config = read_json(path / CONFIG)
    return isinstance(config, dict) and isinstance(config.get("model_type"), str)


def is_file_name(path: Path) -> bool:
    """Whether an output path names a weights file rather than a directory."""
    return path.suffix in (".bin", ".pt", ".safetensors")


def read(
    path: Path, tensors: StateDict | None = None, parts: Sequence[str] | None = None
) -> HuggingFaceModel:
    """A model directory, or a weights file (with the config.json beside it if it is named as in one).

    Args:
        tensors: the file's, where they have been read already.
        parts: the targets wanted; default: all that are there.

    Raises:
        WeightsError: no known family, a configuration that is not supported, tensors that are not all there.
    """
    home = path if path.is_dir() else path.parent
    has_config = (path.is_dir() or path.name in WHOLE) and is_model_directory(home)
    config = read_json(home / CONFIG) if has_config else {}
    theirs = strip_wrappers(read_tensors(path)) if tensors is None else tensors
    family = _find_family(path, theirs, config.get("model_type"))
    values = our_values(family, config, home / CONFIG) if has_config else {}
    try:
        converted = to_ours(family, theirs, values, parts)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    for stack, layers in converted.layers.items():
        name = LAYERS[stack]
        if values.setdefault(name, layers) != layers:
            raise WeightsError(
                f"{home / CONFIG} says {values[name]} layers of {stack}, but {path} has {layers}."
            )
    canonical = {family.canonical(name): tensor for name, tensor in theirs.items()}
    tied = is_tied(family, canonical) and values.get("tie_weights", True)
    notes = [
        f"{part} is incomplete, without {', '.join(names)}" for part, names in converted.incomplete.items()
    ]
    if values.get("tie_weights", False) and not tied:
        notes.append(
            f"{home / CONFIG} says that the word embeddings are tied, but they differ; taken as untied"
        )
    return HuggingFaceModel(
        family,
        converted.tensors,
        values | {"tie_weights": tied},
        converted.parts,
        converted.ignored,
        notes,
        has_config,
    )


def _find_family(path: Path, theirs: StateDict, model_type: str | None) -> Family:
    family = family_of(theirs, model_type)
    if family is not None:
        return family
    known = [family for family in FAMILIES if family.name == model_type]
    if known:  # the right name, but tensors without a place: the engine says which
        return known[0]
    if any(name.startswith("embedding.word") for name in theirs):
        raise WeightsError(f"{path} is already in this toolkit's format; it needs no conversion.")
    what = (
        f"of model_type '{model_type}'"
        if model_type
        else f"with tensors such as '{next(iter(theirs), 'none')}'"
    )
    raise WeightsError(
        f"{path}: no conversion is known for a model {what}; known: "
        f"{', '.join(family.name for family in FAMILIES)}."
    )


def our_values(family: Family, config: Mapping[str, Any], origin: Path) -> dict[str, Any]:
    """Our configuration values from their config.json.

    Raises:
        WeightsError: with every value that our model cannot express.
    """
    problems = [
        f"`{name}` is {config[name]}, only {value} is supported"
        for name, value in family.fixed_theirs.items()
        if config.get(name, value) != value
    ]
    values: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in family.fixed_ours.items()
    }
    for setting in family.settings:
        value = config.get(setting.theirs)
        if value is None:
            value = setting.default(config) if callable(setting.default) else setting.default
        if setting.words is not None:
            if value not in setting.words:
                problems.append(f"`{setting.theirs}` is {value}, expected one of {', '.join(setting.words)}")
                continue
            value = setting.words[value]
        for name in setting.ours:
            values.setdefault(name, value)
    if problems:
        raise WeightsError(f"{origin}: {'; '.join(problems)}.")
    return values


def describe(directory: Path) -> dict[str, Any]:
    """What config.json and the tokenizer files say, as a weights description of ours (`description.py`).

    Raises:
        WeightsError: a family or a value that is not supported.
    """
    config = read_json(directory / CONFIG)
    family = _find_family(directory, {}, config["model_type"])
    values = our_values(family, config, directory / CONFIG)
    for parts, name in family.architectures.items():
        if parts and name in (config.get("architectures") or ()):
            values["target"] = list(parts)
    if isinstance(config.get("vocab_size"), int):
        values["vocab_size"] = config["vocab_size"]
    if has_tokenizer(directory):
        values["tokenizer_path"] = str(directory.resolve())
    return values


def has_tokenizer(directory: Path) -> bool:
    return any((directory / name).is_file() for name in _TOKENIZER_FILES)


def their_config(
    family: Family, config: ModelConfig, tensors: StateDict, parts: Sequence[str], tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """Content of config.json.

    Raises:
        WeightsError: with every option of ours that their model cannot express.
    """
    problems = [
        f"`{name}` is {getattr(config, name)}, only {value} is possible"
        for name, value in family.fixed_ours.items()
        if getattr(config, name) != value
    ]
    architecture = family.architectures.get(tuple(parts))
    if architecture is None:
        problems.append(f"there is no class for the targets {' '.join(parts)}")
    values: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": family.name,
        **family.fixed_theirs,
    }
    for setting in family.settings:
        value = getattr(config, setting.ours[0])
        if setting.words is not None:
            words = [theirs for theirs, ours in setting.words.items() if ours == value]
            if not words:
                problems.append(f"`{setting.ours[0]}` is {value}, which they do not have")
                continue
            value = words[0]
        values[setting.theirs] = value
    if problems:
        raise WeightsError(f"not a {family.name} model of Hugging Face: {'; '.join(problems)}.")
    word = tensors["embedding.word.embedding.weight"]
    values |= {"vocab_size": word.shape[0], "dtype": str(word.dtype).removeprefix("torch.")}
    if tokenizer is not None:
        roles = {name: getattr(tokenizer, f"{role}_id") for name, role in family.token_ids.items()}
        values |= {name: number for name, number in roles.items() if number is not None}
    return values


def write(
    path: Path,
    family: Family,
    tensors: StateDict,
    config: ModelConfig | None,
    tokenizer: Tokenizer | None,
    parts: Sequence[str],
) -> list[str]:
    """Our tensors as a model of theirs: a directory, or the weights alone where `path` is named like a file.

    Args:
        config: needed for a directory.
        parts: the targets wanted, of those that are there.

    Returns:
        Names of ours that were left out.

    Raises:
        WeightsError: the model is none of theirs.
    """
    done = to_theirs(family, tensors, {} if config is None else dataclasses.asdict(config), parts)
    if is_file_name(path):
        save_weights(done.tensors, path)
        return done.ignored
    assert config is not None
    theirs = without_copies(family, done.tensors)
    config = dataclasses.replace(config, tie_weights=is_tied(family, done.tensors))
    values = their_config(family, config, tensors, done.parts, tokenizer)
    with complete_directory(path) as temporary:
        write_json(temporary / CONFIG, values)
        if tokenizer is not None:
            _write_tokenizer(temporary, family, config, tokenizer)
        save_weights(theirs, temporary / "model.safetensors")
    return done.ignored


def _write_tokenizer(directory: Path, family: Family, config: ModelConfig, tokenizer: Tokenizer) -> None:
    tokenizer.write_files(directory, family.tokenizer_files)
    special = {f"{role}_token": token for role, token in tokenizer.special_tokens.items()}
    write_json(directory / "special_tokens_map.json", special)
    write_json(
        directory / "tokenizer_config.json",
        {"tokenizer_class": family.tokenizer_class, "model_max_length": config.max_seq_length}
        | tokenizer.options
        | special,
    )
