"""What sentence-transformers keeps beside a model of Transformers: how a text becomes one vector."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tencentpretrain.errors import WeightsError
from tencentpretrain.files import read_json, read_object, write_json

MODULES = "modules.json"
SENTENCES = ("normalize_features", "seq_length")  # of our descriptions, beside the model's `pooling`
_SETTINGS = "sentence_bert_config.json"
_POOLING = {"cls": "first", "mean": "mean", "max": "max", "lasttoken": "last"}  # theirs to ours
_FLAGS = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "lasttoken": "lasttoken"}
_FLAG = "pooling_mode_"
_UNLIMITED = 10**6  # a tokenizer without a limit has 10^30


def settings(directory: Path) -> dict[str, Any]:
    """Options of ours that a directory of sentence-transformers says, beside those of its model; else none.

    Args:
        directory: the one of the model: where modules.json lies, or the part of it that holds the model.

    Raises:
        WeightsError: modules that we do not have, or in an order that we do not have.
    """
    home = directory if (directory / MODULES).is_file() else directory.parent
    if not (home / MODULES).is_file():
        return {}
    modules = [(entry["type"].rpartition(".")[2], home / entry["path"]) for entry in _read(home / MODULES)]
    if modules and modules[0][1].resolve() != directory.resolve():
        return {}  # beside another model
    kinds = tuple(kind for kind, _ in modules)
    if kinds not in (("Transformer", "Pooling"), ("Transformer", "Pooling", "Normalize")):
        raise WeightsError(
            f"{home / MODULES} has the modules {', '.join(kinds)}; supported are Transformer, Pooling and "
            "perhaps Normalize."
        )
    values = {"pooling": _pooling(modules[1][1] / "config.json"), "normalize_features": len(kinds) == 3}
    files = (directory / _SETTINGS, directory / "tokenizer_config.json")
    sentences, tokenizer = (read_object(path) if path.is_file() else {} for path in files)
    if sentences.get("do_lower_case") and not tokenizer.get("do_lower_case", True):
        raise WeightsError(
            f"{directory / _SETTINGS}: `do_lower_case` is true, but the tokenizer keeps case; that is not "
            "supported."
        )
    for path, name, content in zip(
        files, ("max_seq_length", "model_max_length"), (sentences, tokenizer), strict=True
    ):
        length = content.get(name)
        if length is None:
            continue
        if isinstance(length, bool) or not isinstance(length, int | float) or not length >= 1:
            raise WeightsError(f"{path}: `{name}` is {length!r}, expected a number of tokens.")
        if length < _UNLIMITED:
            values["seq_length"] = int(length)
        break
    return values


def _read(path: Path) -> list[dict[str, str]]:
    modules = read_json(path)
    for entry in modules if isinstance(modules, list) else [None]:
        if not isinstance(entry, dict) or not all(
            isinstance(entry.get(name), str) for name in ("type", "path")
        ):
            raise WeightsError(f"{path}: expected a list of modules, each with 'type' and 'path', two texts.")
    return list(modules)


def _pooling(path: Path) -> str:
    """From `pooling_mode`, or from flags of which one is set."""
    values = read_object(path)
    modes: list[Any] = [
        name.removeprefix(_FLAG) for name, value in values.items() if name.startswith(_FLAG) and value
    ]
    modes = [next((mode for mode, flag in _FLAGS.items() if flag == name), name) for name in modes]
    if "pooling_mode" in values:
        modes = [values["pooling_mode"]]
    if len(modes) != 1 or modes[0] not in [*_POOLING]:
        raise WeightsError(
            f"{path}: pooling is {' and '.join(map(str, modes)) or 'none'}; supported is one of "
            f"{', '.join(_POOLING)}."
        )
    return _POOLING[modes[0]]


def write(directory: Path, width: int, description: Mapping[str, Any]) -> None:
    """Make a directory with a model of Transformers one of sentence-transformers.

    Args:
        width: of the vectors.
        description: has `pooling`; `normalize_features` and `seq_length` where they are known.
    """
    types = {"": "Transformer", "1_Pooling": "Pooling"}
    if description.get("normalize_features"):
        types["2_Normalize"] = "Normalize"
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(types.items())
    ]
    write_json(directory / MODULES, modules)
    flags = {f"{_FLAG}{flag}": _POOLING[mode] == description["pooling"] for mode, flag in _FLAGS.items()}
    write_json(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": width} | flags)
    write_json(
        directory / _SETTINGS, {"max_seq_length": description.get("seq_length"), "do_lower_case": False}
    )
