"""Options in layers: default < what lies beside data or weights < JSON < command line; all errors at once."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from tencentpretrain.config.model import ModelConfig, idle_options
from tencentpretrain.config.options import Option, options_of
from tencentpretrain.errors import ConfigError, UserError, did_you_mean
from tencentpretrain.files import read_json
from tencentpretrain.registry import load_plugins

C = TypeVar("C")

# Legal in every JSON file and no options: for readers, and what write_description adds beside weights.
DOCUMENTARY = (
    "about", "best", "family", "labels", "special_tokens", "tgt_special_tokens", "tgt_tokenizer_fingerprint",
    "tgt_tokenizer_path", "tgt_vocab_size", "token_ids", "tokenizer_fingerprint", "tokenizer_path",
    "vocab_size",
)  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (--help lists the options)")


class Options:
    """What the user asked of a program, from all places where it can be said.

    Args:
        description: what the program does, in one line.
        concerns: the dataclasses whose options the program has; a name may occur in one of them only.
        arguments: the command line without the program's name; default: the process's.
    """

    def __init__(
        self, description: str, *concerns: type[Any], arguments: Sequence[str] | None = None
    ) -> None:
        self._options: dict[str, Option] = {}
        for concern in concerns:
            own = options_of(concern)
            twice = own.keys() & self._options.keys()
            assert not twice, f"{twice} declared by two concerns of one program"
            self._options |= own
        self._layers: list[tuple[str, dict[str, Any]]] = []
        self._problems: list[str] = []
        self.notes: list[str] = []  # options that were accepted and mean nothing any more
        obsolete = {
            name: why for concern in concerns for name, why in getattr(concern, "obsolete", {}).items()
        }
        self._command_line(description, concerns, obsolete, sys.argv[1:] if arguments is None else arguments)

    def _command_line(
        self,
        description: str,
        concerns: Sequence[type[Any]],
        obsolete: dict[str, str],
        arguments: Sequence[str],
    ) -> None:
        parser = _Parser(
            description=description,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog="Command line over --config_path over defaults. --x=1 and --x 1 mean the same.",
            usage="%(prog)s [--option value …]",
        )
        # First the groups with what must be given: the program's own.
        for concern in sorted(
            concerns, key=lambda concern: not any(o.required for o in options_of(concern).values())
        ):
            group = parser.add_argument_group(
                (concern.__doc__ or concern.__name__).split("\n")[0].rstrip(".")
            )
            for option in options_of(concern).values():
                shape: dict[str, Any] = {}
                if option.many or option.kind is dict:
                    shape["nargs"] = "*"
                elif option.kind is bool:
                    shape |= {"nargs": "?", "const": True}
                elif (alone := option.metadata["alone"]) is not None:
                    shape |= {"nargs": "?", "const": alone}
                names = [option.name, *option.metadata["former_names"]]
                flags = [f"--{name}" for name in names]
                group.add_argument(*flags, help=_help(option), metavar=_metavar(option), **shape)
        for name in obsolete:
            parser.add_argument(f"--{name}", nargs="*", help=argparse.SUPPRESS)
        given, unknown = parser.parse_known_args(list(arguments))
        said = vars(given)
        for name in [name for name in said if name in obsolete]:
            del said[name]
            self.notes.append(f"--{name} has no effect: {obsolete[name]}")
        after_option = False
        for word in unknown:
            if word.startswith("--"):
                after_option = True
                name = word[2:].partition("=")[0]
                self._problems.append(f"--{name}: unknown option{did_you_mean(name, self._options)}.")
            elif not after_option:  # else it is the value of the option that is unknown
                self._problems.append(f"'{word}' belongs to no option.")
        self._layers.append(("command line", said))
        if "plugins" in said:
            load_plugins(tuple(said["plugins"]))

    def add_layer(self, origin: str, values: Mapping[str, Any]) -> None:
        """Add values that the command line and the layers added before override."""
        self._layers.append((origin, dict(values)))

    def add_description(self, origin: str, values: Mapping[str, Any]) -> None:
        """Add what lies beside weights, but for options that would do nothing in the model that the layers
        before make of it: nobody asked for them here."""
        asked = {name for name in values if self.said(name)}
        self.add_layer(origin, values)
        added = self._layers[-1][1]
        model = types.SimpleNamespace(**{name: self.get(name) for name in options_of(ModelConfig)})
        while idle := {
            name: one for name, one in idle_options(model).items() if name in added.keys() - asked
        }:
            for name, one in idle.items():  # another may need it
                del added[name]
                setattr(model, name, one.default)

    def add_json(self, path: str | Path, known: Mapping[str, Option]) -> None:
        """Add a configuration file; keys that no part of the toolkit knows are errors."""
        values = read_model_json(Path(path))
        for name in values:
            if name not in known and name not in DOCUMENTARY:
                self._problems.append(f"{path}: {name}: unknown key{did_you_mean(name, known)}.")
        if "plugins" in values and not self.given("plugins"):
            load_plugins(known["plugins"].decode(values["plugins"]))
        self.add_layer(str(path), {name: value for name, value in values.items() if name in self._options})
        for name, value in values.items():  # of other programs: not used here, but not wrong either
            if name in known and name not in self._options:
                self._try_decode(known[name], value, str(path))

    def given(self, name: str) -> bool:
        """Whether the command line says it."""
        return name in self._layers[0][1]

    def said(self, name: str) -> bool:
        """Whether the command line or a layer added so far says it."""
        return any(name in values for _, values in self._layers)

    def get(self, name: str) -> Any:
        """The value in force so far; a wrong one raises at once."""
        for origin, values in self._layers:
            if name in values:
                try:
                    return self._options[name].decode(values[name])
                except ValueError as error:
                    raise ConfigError(f"{_path(origin, name)}: {error}.") from None
        if self._options[name].required:
            raise ConfigError(f"--{name} is required: {self._options[name].metadata['help']}")
        return self._options[name].default

    def paths_read(self, *written: str) -> dict[str, str | None]:
        """What options named *_path say, by option, but for those whose files are written."""
        names = [name for name in self._options if name.endswith("_path") and name not in written]
        return {name: path for name in names if not isinstance(path := self.get(name), tuple)}

    def build(self, *concerns: type[Any]) -> tuple[Any, ...]:
        """One instance of each concern.

        Raises:
            ConfigError: with every problem of every layer and every concern.
        """
        decoded = {name: self._resolve(option) for name, option in self._options.items()}
        built = []
        failed = {name for name, value in decoded.items() if value is _FAILED}
        for concern in concerns:
            values = {name: decoded[name] for name in options_of(concern)}
            if failed & values.keys():
                continue  # what else it would complain of may follow from these
            try:
                built.append(concern(**values))
            except ConfigError as error:
                self._problems += error.problems
        if self._problems:
            raise ConfigError(list(dict.fromkeys(self._problems)))
        return tuple(built)

    def _resolve(self, option: Option) -> Any:
        for origin, values in self._layers:
            if option.name in values:
                return self._try_decode(option, values[option.name], origin)
        if option.required:
            self._problems.append(f"--{option.name} is required: {option.metadata['help']}")
            return _FAILED
        return option.default

    def _try_decode(self, option: Option, value: Any, origin: str) -> Any:
        try:
            return option.decode(value)
        except ValueError as error:
            self._problems.append(f"{_path(origin, option.name)}: {error}.")
            return _FAILED


_FAILED = object()


def _path(origin: str, name: str) -> str:
    return f"--{name}" if origin == "command line" else f"{origin}: {name}"


def _metavar(option: Option) -> str:
    return {int: "N", float: "X", bool: "{true,false}", str: "TEXT", dict: "NAME=X", object: "JSON"}[
        option.kind
    ]


def _help(option: Option) -> str:
    text = option.metadata["help"]
    if option.choices is not None:
        text += f" One of: {', '.join(option.choices)}."
    if option.required:
        text += " Required."
    elif "default:" not in text:
        default = option.default
        if isinstance(default, tuple | dict):
            default = " ".join(map(str, default))
        elif isinstance(default, bool):
            default = str(default).lower()
        text += f" Default: {'none' if default in (None, '') else default}."
    return str(text).replace("%", "%%")


def read_model_json(path: Path) -> dict[str, Any]:
    """A configuration file, or the one that lies beside a weights file, as flat keys."""
    try:
        values = read_json(path)
    except UserError as error:
        raise ConfigError(str(error)) from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: expected an object of options ({{…}}), but is {type(values).__name__} instead."
        )
    return values


def load_config(path: str | Path, **overrides: Any) -> ModelConfig:
    """The model's part of a configuration file.

    Args:
        path: a JSON file of flat keys; those of data, tokenizer and training are checked and left out.
        overrides: model options by name, stronger than the file.

    Raises:
        ConfigError: with every unknown key, wrong type and impossible combination.
    """
    from tencentpretrain.config import json_options

    options = Options("", ModelConfig, arguments=[])
    unknown = [name for name in overrides if name not in options_of(ModelConfig)]
    options._problems += [
        f"{name}: not an option of the model{did_you_mean(name, options_of(ModelConfig))}."
        for name in unknown
    ]
    options.add_layer(
        "load_config", {name: value for name, value in overrides.items() if name not in unknown}
    )
    options.add_json(path, json_options())
    (config,) = options.build(ModelConfig)
    assert isinstance(config, ModelConfig)
    return config


def as_json(*configs: Any) -> dict[str, Any]:
    """Configurations as the flat keys of a JSON file; `load_config` of it gives an equal configuration."""
    merged: dict[str, Any] = {}
    for config in configs:
        for name, value in dataclasses.asdict(config).items():
            merged[name] = list(value) if isinstance(value, tuple) else value
    return merged
