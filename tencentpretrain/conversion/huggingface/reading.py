"""A directory or a weights file of Transformers, read: tensors, configuration, labels, special tokens."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tencentpretrain.config import ModelConfig, Option
from tencentpretrain.conversion import sentence_transformers
from tencentpretrain.conversion.engine import to_ours
from tencentpretrain.conversion.family import Family
from tencentpretrain.conversion.huggingface.common import (
    CONFIG,
    HEADS_WITH_LABELS,
    LAYERS,
    OPTIONS,
    fixed_options,
    unnamed,
    what_is_shared,
)
from tencentpretrain.conversion.huggingface.tokenizers import has_tokenizer
from tencentpretrain.conversion.maps import FAMILIES, REFUSED, families_of
from tencentpretrain.conversion.steps import PadRows
from tencentpretrain.errors import ConfigError, WeightsError, weights_of
from tencentpretrain.files import read_json, read_object
from tencentpretrain.state_dict import WHOLE, read_tensors, strip_wrappers
from tencentpretrain.tokenizers.load import has_two_sides

_MALFORMED = (TypeError, ValueError, AttributeError, KeyError, IndexError, ArithmeticError)
_MOST_LABELS = 10**6


@dataclasses.dataclass(frozen=True)
class TheirModel:
    """A model of another library that was read.

    Attributes:
        tensors: under our names.
        values: our configuration values; without a configuration only those that the tensors show.
        parts: targets whose tensors are all there.
        ignored: names of theirs that carry nothing for us.
        notes: what a user should know, a line each.
        has_config: whether its configuration is known.
        labels: names of the classes of a fine-tuned model.
        token_ids: ids of special tokens, under their names in config.json.
    """

    family: Family
    tensors: Mapping[str, Tensor]
    values: dict[str, Any]
    parts: tuple[str, ...]
    ignored: list[str]
    notes: list[str]
    has_config: bool
    labels: list[str] | None = None
    token_ids: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def is_model_directory(path: Path) -> bool:
    """Whether a directory has a config.json that names a `model_type`; WeightsError where it is no name."""
    if not (path / CONFIG).is_file():
        return False
    config = read_object(path / CONFIG)
    if "model_type" not in config:
        return False
    if not isinstance(config["model_type"], str):
        raise WeightsError(f"{path / CONFIG}: `model_type` is {config['model_type']!r}, expected a name.")
    return True


def read(
    path: Path,
    tensors: Mapping[str, Tensor] | None = None,
    parts: Sequence[str] | None = None,
    wanted: Family | None = None,
    known: Mapping[str, Any] | None = None,
) -> TheirModel:
    """A model directory, or a weights file (with the config.json beside it if it is named as in one).

    Args:
        tensors: the file's, where they have been read already.
        parts: the targets wanted; default: all that are there.
        wanted: the family where the file fits several, such as RoBERTa and XLM-RoBERTa, and the head it has;
            default: the first, and, with all parts, the head that config.json or the tensors tell.
        known: our configuration values where there is no config.json that says them.

    Raises:
        WeightsError: no known family, a configuration that is not supported, tensors that are not all there.
    """
    home = path if path.is_dir() else path.parent
    has_config = (path.is_dir() or path.name in WHOLE) and is_model_directory(home)
    config = read_json(home / CONFIG) if has_config else {}
    theirs = strip_wrappers(read_tensors(path)) if tensors is None else tensors
    family = _find_family(path, theirs, config, wanted)
    if wanted is not None and wanted.head is not None and wanted.name == family.name:
        family = wanted
    elif parts is None:
        told = bool(config.get("architectures"))
        family = _with_head(family, config) if told else family.with_head_in(theirs, ours=False)
    values = our_values(family, config, home / CONFIG) if has_config else dict(known or {})
    with weights_of(path):
        converted = to_ours(family, theirs, values, parts)
    for stack, layers in converted.layers.items():
        name = LAYERS[stack]
        if values.setdefault(name, layers) != layers:
            said = home / CONFIG if has_config else "the configuration"
            raise WeightsError(f"{said} says {values[name]} layers of {stack}, but {path} has {layers}.")
    shared = what_is_shared(family, theirs, values)
    notes = [*converted.notes, *_left_out(family, theirs)]
    labels = _labels(family, config)
    if has_config and labels is not None and converted.parts:
        outputs = len(converted.tensors[family.rules[-1].names(ours=True)[0]])
        if len(labels) != outputs:
            raise WeightsError(
                f"{home / CONFIG} has {len(labels)} labels (`id2label`, `num_labels`), but {path} has "
                f"{outputs} outputs; correct the one that is wrong."
            )
    problem = config.get("problem_type")
    if family.head == "classification" and problem not in (None, "single_label_classification"):
        notes.append(
            f"`problem_type` is {problem} in {home / CONFIG} and is not kept: classifiers here, and what "
            "they are converted to, choose one class of several"
        )
    if family.head is not None and not (converted.parts or converted.incomplete):
        named = family.architectures[(family.head,)] in (config.get("architectures") or ())
        which = f", which {home / CONFIG} names" * named
        notes.append(f"there is no {family.head.replace('_', ' ')} head in the weights{which}")
    if values.get("tie_weights", False) and not shared["tie_weights"]:
        notes.append(
            f"{home / CONFIG} says that the word embeddings are tied, but they differ; taken as untied"
        )
    return TheirModel(
        family,
        converted.tensors,
        values | shared,
        converted.parts,
        converted.ignored,
        notes,
        has_config or known is not None,
        labels,
        _token_ids(family, config),
    )


def _left_out(family: Family, theirs: Mapping[str, Tensor]) -> Iterator[str]:
    """Rows with values that ours has no place for, a line for each tensor."""
    for name in theirs:
        place = family.place(family.canonical(name), ours=False)
        for step in () if place is None else family.rules[place[0]].steps:
            if isinstance(step, PadRows) and (rows := step.left_out(theirs[name])):
                yield (
                    f"rows {' and '.join(map(str, rows))} of {name}, which no text here reads, are left out; "
                    "on the way back they are zeros"
                )


def _with_head(family: Family, config: Mapping[str, Any]) -> Family:
    """The family with the head that the configuration names, if it names one."""
    names = config.get("architectures") or ()
    if not isinstance(names, list | tuple):
        raise WeightsError(f"{CONFIG}: `architectures` is {names}, expected a list of names.")
    for head in family.heads:
        if head.architecture in names:
            return family.with_head(head.name)
    return family


def _labels(family: Family, config: Mapping[str, Any]) -> list[str] | None:
    """Names of the classes, where the family has a head with classes."""
    if family.head not in HEADS_WITH_LABELS:
        return None
    names, count = config.get("id2label"), config.get("num_labels", 2)
    if not names:
        if type(count) is not int or not 1 <= count <= _MOST_LABELS:
            raise WeightsError(f"{CONFIG}: `num_labels` is {count!r}, expected 1 to {_MOST_LABELS}.")
        return unnamed(count)
    numbers = [str(number) for number in range(len(names) if isinstance(names, dict) else 0)]
    if (
        not numbers
        or {*numbers} != {*names}
        or not all(isinstance(name, str | int) for name in names.values())
    ):
        raise WeightsError(f"{CONFIG}: `id2label` must give each number from 0 on a name, but is {names!r}.")
    return [str(names[number]) for number in numbers]


def _token_ids(family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the configuration says of special tokens; several may end a text."""
    ids = {name: config[name] for name in family.token_ids if config.get(name) is not None}
    for name, value in ids.items():
        several = value if isinstance(value, list) and name == "eos_token_id" else [value]
        if not all(type(id) is int for id in several):
            raise WeightsError(f"{CONFIG}: `{name}` is {value!r}, expected the id of a token.")
    return ids


def _find_family(
    path: Path, theirs: Mapping[str, Tensor], config: Mapping[str, Any], wanted: Family | None = None
) -> Family:
    """The family of their tensors (where there are any) and their configuration (likewise)."""
    model_type = config.get("model_type")
    candidates = families_of(theirs, model_type)
    if candidates:
        fitting = [family for family in candidates if not _read_settings(family, config)[1]] or candidates
        return next((one for one in fitting if wanted and one.name == wanted.name), fitting[0])
    if model_type in REFUSED:
        raise WeightsError(f"{path} is a {model_type} model: {REFUSED[model_type]}.")
    if any(name.startswith("embedding.word") for name in theirs):
        raise WeightsError(f"{path} is already in this toolkit's format; it needs no conversion.")
    what = (
        f"of model_type '{model_type}'"
        if model_type
        else f"with tensors such as '{next(iter(theirs), 'none')}'"
    )
    raise WeightsError(
        f"{path}: no conversion is known for a model {what}; known: "
        f"{', '.join(dict.fromkeys(name for family in FAMILIES for name in family.known_as))}."
    )


def our_values(family: Family, config: Mapping[str, Any], origin: Path) -> dict[str, Any]:
    """Our configuration values from their config.json.

    Raises:
        WeightsError: with every value that our model cannot express, or that is malformed.
    """
    values, problems = _read_settings(family, config)
    if config.get("quantization_config"):
        problems = [*problems, "`quantization_config`: quantized weights are not read, dequantize them"]
    if problems:
        raise WeightsError(f"{origin}: {'; '.join(problems)}.")
    values = fixed_options(family) | values | sentence_transformers.settings(origin.parent)
    _check_together(family, values, origin)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _check_together(family: Family, values: Mapping[str, Any], origin: Path) -> None:
    """Refuse values that contradict each other, under the names that their file has for them."""
    known = {name: values[name] for name in OPTIONS if values.get(name) is not None}
    try:
        ModelConfig(**known | {"target": ()})
    except ConfigError as error:
        named = {
            name: one.theirs for one in family.settings for name in one.options if one.theirs is not None
        }
        problems = [
            re.sub(r"`(\w+)`", lambda found: f"`{named.get(found[1], found[1])}`", problem)
            for problem in error.problems
        ]
        raise WeightsError(f"{origin}: {' '.join(problems)}") from None


def _read_settings(family: Family, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Our values that their configuration gives, and what of it our model cannot express."""
    problems = [
        f"`{name}` is {config[name]}, only {value} is supported"
        for name, value in family.fixed_theirs.items()
        if config.get(name, value) != value
    ]
    values: dict[str, Any] = {}
    for setting in family.settings:
        try:
            value = setting.to_ours(config)
            values = {name: _decoded(OPTIONS[name], value) for name in setting.options} | values
        except WeightsError as error:
            problems.append(str(error))
        except _MALFORMED as error:
            problems.append(f"`{setting.theirs or ' '.join(setting.options)}` cannot be read ({error})")
    return values, list(dict.fromkeys(problems))


def _decoded(option: Option, value: Any) -> Any:
    """A value of ours as the option holds it; None: it is not known yet. ValueError where it is malformed."""
    if value is None:
        return None
    if isinstance(value, str) and option.kind in (int, float):  # which a command line has
        raise ValueError(f"expected {option.expected}, but is {value!r} instead")
    return option.decode(value)


def describe(directory: Path) -> dict[str, Any]:
    """What config.json and the tokenizer files say, as a weights description of ours (`description.py`).

    Raises:
        WeightsError: a family or a value that is not supported.
    """
    config = read_json(directory / CONFIG)
    family = _with_head(_find_family(directory, {}, config), config)
    values = our_values(family, config, directory / CONFIG)
    if None in (values["tie_weights"], values.get("share_embedding", False)):  # only the tensors say
        values |= what_is_shared(family, strip_wrappers(read_tensors(directory)), values)
    for parts, name in family.architectures.items():
        if parts and family.head is None and name in (config.get("architectures") or ()):
            values["target"] = list(parts)
    values["family"] = family.name
    labels = _labels(family, config)
    if labels is not None:
        values |= {"labels": labels, "labels_num": len(labels)}
    for name in ("vocab_size", "decoder_vocab_size"):
        if config.get(name) is not None and (type(config[name]) is not int or not 1 <= config[name] < 2**31):
            raise WeightsError(
                f"{directory / CONFIG}: `{name}` is {config[name]!r}, expected a number of tokens."
            )
    if config.get("vocab_size") is not None:
        values["vocab_size"] = config["vocab_size"]
    if config.get("decoder_vocab_size") not in (None, values.get("vocab_size")):
        values["tgt_vocab_size"] = config["decoder_vocab_size"]
    if has_tokenizer(directory):
        values["tokenizer_path"] = str(directory.resolve())
    if has_two_sides(directory):
        values["tgt_tokenizer_path"] = values["tokenizer_path"]
        values.setdefault("tgt_vocab_size", values.get("vocab_size"))
    return values
