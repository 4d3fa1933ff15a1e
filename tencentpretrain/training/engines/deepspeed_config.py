"""DeepSpeed's configuration file. What our options decide may be there too, with the same value or "auto"."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from tencentpretrain.errors import ConfigError, did_you_mean
from tencentpretrain.files import read_json

# What is handed to DeepSpeed; the rest of its options would change what is computed, or do nothing here.
SECTIONS = (
    "bf16", "comms_logger", "communication_data_type", "data_types", "flops_profiler", "fp16",
    "gradient_accumulation_steps", "gradient_clipping", "optimizer", "steps_per_print", "train_batch_size",
    "train_micro_batch_size_per_gpu", "wall_clock_breakdown", "zero_optimization",
)  # fmt: skip

_OBJECT = (dict, "an object ({…})")
_NUMBER = ((int, float), 'a number or "auto"')
_SWITCH = (bool, "true or false")
_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = dict.fromkeys(SECTIONS, _OBJECT) | {
    "bf16.enabled": _SWITCH,
    "communication_data_type": ((str, type(None)), "a string or null"),
    "fp16.enabled": _SWITCH,
    "gradient_accumulation_steps": _NUMBER,
    "gradient_clipping": _NUMBER,
    "optimizer.params": _OBJECT,
    "optimizer.type": (str, "a string"),
    "steps_per_print": ((int, float, type(None)), 'a number, null or "auto"'),
    "train_batch_size": _NUMBER,
    "train_micro_batch_size_per_gpu": _NUMBER,
    "wall_clock_breakdown": _SWITCH,
    "zero_optimization.stage": _NUMBER,
}


@dataclasses.dataclass(frozen=True)
class DeepSpeedSetup:
    """What DeepSpeed is told.

    Attributes:
        config: its configuration, without what follows from `precision`.
        precision: asked for by it or by --precision; auto: by neither.
    """

    config: dict[str, Any]
    precision: str

    @property
    def stage(self) -> int:
        """What the processes share out: 1 the optimizer's state, 2 gradients, 3 weights too; 0 nothing."""
        return int(self.config["zero_optimization"]["stage"])

    @property
    def title(self) -> str:
        """The engine in words; training states keep it."""
        return f"deepspeed, ZeRO stage {self.stage}"


def read_deepspeed_config(
    path: Path, decided: Mapping[str, tuple[Any, str]], precision: str, optimizer: str
) -> DeepSpeedSetup:
    """A configuration file, checked and completed.

    Args:
        decided: by name (`section.option`) the value that it must have, and which of our options says so.
        precision: --precision.
        optimizer: --optimizer.

    Raises:
        ConfigError: the file is no such configuration, or contradicts what is decided.
    """
    given = read_json(path)
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: expected an object ({{…}}).")
    problems = [
        f"{name}: not an option that can be used here{did_you_mean(name, SECTIONS)}."
        for name in given
        if name not in SECTIONS
    ]
    problems += _wrong_kinds(given)
    if problems:
        raise ConfigError([f"{path}: {problem}" for problem in problems])
    values = dict(_values(given))
    if values.get("optimizer.type", optimizer).lower() in (optimizer, optimizer.removesuffix("w")):
        values.pop("optimizer.type", None)
    for name, value in values.items():
        if name in decided and value != decided[name][0]:
            own, option = decided[name]
            problems.append(f'{name} is {value}, but {option} is {own}; make them equal, or write "auto".')
        elif name not in decided and name.startswith("optimizer."):
            problems.append(f"{name} is {value}, which does not go with --optimizer {optimizer}.")
    enabled = {name: values.pop(f"{name}.enabled", None) for name in ("bf16", "fp16")}
    asked = next((name for name, value in enabled.items() if value), "auto")
    if all(enabled.values()):
        problems.append("bf16 and fp16 are both enabled; expected one of them at most.")
    if "auto" not in (precision, asked) and asked != precision:
        problems.append(f"{asked} is enabled, but --precision is {precision}; leave one of them out.")
    if enabled.get(precision) is False:
        problems.append(f"{precision} is not enabled, but --precision is {precision}; leave one of them out.")
    for name, (value, _) in decided.items():
        if not name.startswith("optimizer."):
            values[name] = value
    values["gradient_clipping"] = 0.0  # see DeepSpeedEngine.clip
    config = _nested({name: value for name, value in values.items() if not name.startswith("optimizer.")})
    zero = config.setdefault("zero_optimization", {})
    problems += _zero_problems(zero)
    if not problems and zero.setdefault("stage", 0) > 0 and optimizer != "adamw":
        problems.append(
            f"--optimizer {optimizer} needs whole matrices, which ZeRO cuts into pieces; use adamw, or "
            "zero_optimization.stage 0."
        )
    if problems:
        raise ConfigError([f"{path}: {problem}" for problem in problems])
    return DeepSpeedSetup(config, precision if asked == "auto" else asked)


def load_deepspeed() -> Any:
    """The package, which is large and optional.

    Raises:
        ConfigError: it is not there.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it warns that it finds no GPU
    try:
        import deepspeed
    except ImportError:
        raise ConfigError("--engine deepspeed needs the package deepspeed: pip install deepspeed.") from None
    return deepspeed


def _wrong_kinds(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """What is a section where a value is expected, or the other way round, or another kind of value."""
    for name, value in config.items():
        kind, expected = _KINDS.get(prefix + name, (object, ""))
        fits = isinstance(value, kind) and not (isinstance(value, bool) and expected.startswith("a number"))
        if not fits and (value != "auto" or kind is dict):
            yield f"{prefix}{name} is {json.dumps(value)}; expected {expected}."
        elif isinstance(value, dict):
            yield from _wrong_kinds(value, f"{prefix}{name}.")


def _values(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is not "auto", with its full name."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _values(value, f"{prefix}{name}.")
        elif value != "auto":
            yield prefix + name, value


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for name, value in values.items():
        *sections, option = name.split(".")
        place = config
        for section in sections:
            place = place.setdefault(section, {})
        place[option] = value
    return config


def _zero_problems(zero: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the section that says what is shared out and where it lies."""
    load_deepspeed()
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    try:
        DeepSpeedZeroConfig(**zero)
    except ValidationError as error:
        for problem in error.errors():
            name = ".".join(["zero_optimization", *map(str, problem["loc"])])
            yield f"{name} is {problem['input']}: {problem['msg']}."
    for part in ("offload_optimizer", "offload_param"):
        if isinstance(zero.get(part), dict) and zero[part].get("device") not in (None, "none", "cpu"):
            yield f"zero_optimization.{part}.device is {zero[part]['device']}; expected cpu or none."
