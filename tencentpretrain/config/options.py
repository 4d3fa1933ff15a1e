"""How an option is declared: once, as a field of a frozen dataclass, with a sentence and a default."""

from __future__ import annotations

import dataclasses
import importlib
import json
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

from tencentpretrain.config.needs import Need
from tencentpretrain.errors import did_you_mean


def names_in(module: str, table: str) -> Callable[[], Iterable[str]]:
    """Choices that are the names in a table of another module, which is imported when they are asked for."""
    return lambda: list(getattr(importlib.import_module(module), table))


Choices = Iterable[str] | Callable[[], Iterable[str]] | None


def option(
    default: Any,
    help: str,
    *,
    choices: Choices = None,
    minimum: float | None = None,
    maximum: float | None = None,
    aliases: dict[str, str] | None = None,
    former_names: tuple[str, ...] = (),
    alone: str | None = None,
    needs: Need | None = None,
) -> Any:
    """Declare an option. `default` may be `...`: the option is required.

    Args:
        help: one sentence, with the unit where there is one.
        choices: the names allowed, or a function that gives them (a registry's names).
        aliases: further spellings of a choice, replaced by the name they stand for.
        former_names: further names of the option on the command line.
        alone: what the option means that is given without a value.
        needs: without it, another value than the default would do nothing.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "aliases": aliases or {},
        "former_names": former_names,
        "alone": alone,
        "needs": needs,
    }
    if default is ...:
        return dataclasses.field(metadata=metadata)
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Option:
    """An option as declared, and the rules that turn JSON or command-line text into its value."""

    name: str
    kind: Any  # int, float, bool, str, dict (name=number pairs) or object (a JSON object)
    many: bool  # a tuple of `kind`
    optional: bool  # None is a value
    default: Any  # dataclasses.MISSING: required
    metadata: dict[str, Any]

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def choices(self) -> list[str] | None:
        given = self.metadata["choices"]
        return None if given is None else list(given() if callable(given) else given)

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        if self.choices is not None:
            words = "one of " + ", ".join(self.choices)
            return f"{words}, or several" if self.many else words
        words = {
            int: "a whole number",
            float: "a number",
            bool: "true or false",
            str: "text",
            dict: "name=number pairs",
            object: "an object ({…})",
        }[self.kind]
        low, high = self.metadata["minimum"], self.metadata["maximum"]
        if low is not None and high is not None:
            words += f" from {low} to {high}"
        elif low is not None:
            words += f" of at least {low}"
        return f"a list, each {words}" if self.many else words

    def decode(self, value: Any) -> Any:
        """The value as the attribute holds it.

        Raises:
            ValueError: with what was given and what was expected.
        """
        if value is None and self.optional:
            return None
        if self.kind is dict:
            return self._decode_pairs(value)
        if self.kind is object:
            return self._decode_object(value)
        if not self.many:
            return self._decode_one(value)
        return tuple(
            self._decode_one(item) for item in (value if isinstance(value, list | tuple) else [value])
        )

    def _decode_one(self, value: Any) -> Any:
        wrong = ValueError(f"expected {self.expected}, but is {value!r} instead")
        if self.kind is bool:
            if isinstance(value, str):
                value = {"true": True, "false": False}.get(value.lower(), value)
            if not isinstance(value, bool):
                raise wrong
            return value
        if self.kind is str:
            if not isinstance(value, str):
                raise wrong
            value = self.metadata["aliases"].get(value, value)
            choices = self.choices
            if choices is not None and value not in choices:
                raise ValueError(str(wrong) + did_you_mean(value, choices))
            return value
        if isinstance(value, bool):
            raise wrong
        try:
            number = self.kind(value)
        except (TypeError, ValueError, OverflowError):
            raise wrong from None
        low, high = self.metadata["minimum"], self.metadata["maximum"]
        too_small, too_large = low is not None and number < low, high is not None and number > high
        whole = self.kind is float or isinstance(value, str) or number == value
        if not whole or number != number or too_small or too_large:
            raise wrong
        return number

    def _decode_pairs(self, value: Any) -> dict[str, float]:
        if isinstance(value, list | tuple):
            value = dict(item.partition("=")[::2] for item in value if isinstance(item, str))
        try:
            return {str(name): float(number) for name, number in value.items()}
        except (AttributeError, TypeError, ValueError):
            raise ValueError(f"expected {self.expected}, but is {value!r} instead") from None

    def _decode_object(self, value: Any) -> dict[str, Any]:
        given = value
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                value = None
        if not isinstance(value, dict):
            raise ValueError(f"expected {self.expected}, but is {given!r} instead")
        return value


def options_of(concern: type[Any]) -> dict[str, Option]:
    """The options a dataclass declares, in order."""
    hints = typing.get_type_hints(concern)
    found = {}
    for field in dataclasses.fields(concern):
        kind, optional, many = hints[field.name], False, False
        if typing.get_origin(kind) in (typing.Union, types.UnionType):
            kind = next(part for part in typing.get_args(kind) if part is not type(None))
            optional = True
        if typing.get_origin(kind) is tuple:
            kind, many = typing.get_args(kind)[0], True
        if typing.get_origin(kind) is dict:
            kind = object if typing.get_args(kind)[1] is Any else dict
        make = field.default_factory
        default = field.default if make is dataclasses.MISSING else make()
        found[field.name] = Option(field.name, kind, many, optional, default, dict(field.metadata))
    return found
