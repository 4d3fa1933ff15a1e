"""Conversion between our parameter names and another library's, from one table of rules, in both directions.

"Ours" are the published names (contract §3), "theirs" those of the other library. A name may hold `{}` for a
number (of a layer, of an expert); a rule then stands for every number that occurs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from tencentpretrain.conversion.steps import Step, Values
from tencentpretrain.errors import WeightsError
from tencentpretrain.state_dict import StateDict, same


@dataclasses.dataclass(frozen=True)
class Rule:
    """Tensors of theirs that are tensors of ours.

    Attributes:
        theirs, ours: names, one or several.
        steps: what to do with the tensors on the way to ours; undone in reverse order on the way back.
        part: what the tensors belong to that a model may lack (a target, biases); None: every model has them.
    """

    theirs: str | tuple[str, ...]
    ours: str | tuple[str, ...]
    steps: tuple[Step, ...] = ()
    part: str | None = None

    def apply(self, tensors: list[Tensor], config: Values, to_ours: bool) -> list[Tensor]:
        for step in self.steps if to_ours else reversed(self.steps):
            tensors = step.to_ours(tensors, config) if to_ours else step.to_theirs(tensors, config)
        return tensors

    def names(self, ours: bool) -> tuple[str, ...]:
        names = self.ours if ours else self.theirs
        return (names,) if isinstance(names, str) else names


@dataclasses.dataclass(frozen=True)
class Shared:
    """A tensor of theirs that may be stored once: `name` is `source` unless it is there itself."""

    name: str
    source: str


@dataclasses.dataclass(frozen=True)
class Setting:
    """A configuration value under our names and theirs.

    Attributes:
        default: what theirs is where their file leaves it out, or a function of their values that says it.
        words: their word to ours where the spelling differs; the way back takes the first.
    """

    ours: tuple[str, ...]
    theirs: str
    default: Any
    words: Mapping[str, str] | None = None


@dataclasses.dataclass(frozen=True)
class Family:
    """A model family of another library, as data.

    Attributes:
        name: what the other library's configuration file calls it (`model_type`).
        rules: every tensor, exactly once.
        prefix: goes before the names of a file of the bare encoder.
        shared: tensors that may be stored under one of two names.
        spellings: older names (a pattern and its replacement).
        ignored: patterns of names that carry no weights of this model: buffers, heads of other tasks.
        settings: configuration values that vary.
        fixed_ours, fixed_theirs: configuration values that must be so; an absent one counts as being so.
        types: value of a conversion program's --type to the parts it converts.
        architectures: the parts that a model has, to the name of its class at theirs.
        tokenizer_class: the name of its tokenizer at theirs.
        tokenizer_files: our option that names a vocabulary file, to the file's name at theirs.
        token_ids: their configuration values that are the id of a special token, to its role at ours.
    """

    name: str
    rules: tuple[Rule, ...]
    settings: tuple[Setting, ...]
    fixed_ours: Mapping[str, Any]
    fixed_theirs: Mapping[str, Any]
    types: Mapping[str, tuple[str, ...]]
    architectures: Mapping[tuple[str, ...], str]
    tokenizer_class: str
    tokenizer_files: Mapping[str, str]
    token_ids: Mapping[str, str]
    prefix: str = ""
    shared: tuple[Shared, ...] = ()
    spellings: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(rule.part for rule in self.rules if rule.part is not None))

    @cached_property
    def _matchers(self) -> dict[bool, list[tuple[re.Pattern[str], int, int]]]:
        return {
            ours: [
                (re.compile(re.escape(name).replace(r"\{\}", r"(\d{1,6})")), number, place)
                for number, rule in enumerate(self.rules)
                for place, name in enumerate(rule.names(ours))
            ]
            for ours in (True, False)
        }

    def place(self, name: str, ours: bool) -> tuple[int, int, tuple[str, ...]] | None:
        """Number of the rule a name belongs to, its place in the rule, the numbers in the name."""
        for pattern, number, place in self._matchers[ours]:
            if found := pattern.fullmatch(name):
                return number, place, found.groups()
        return None

    def is_ignored(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)

    def canonical(self, name: str) -> str:
        """Their name in today's spelling, with the prefix."""
        for pattern, replacement in self.spellings:
            name = re.sub(pattern, replacement, name)
        known = {shared.source for shared in self.shared}
        if self.prefix and name not in known and self.place(name, ours=False) is None:
            longer = self.prefix + name
            if self.place(longer, ours=False) is not None or self.is_ignored(longer):
                return longer
        return name

    def strangers(self, names: Iterable[str]) -> list[str]:
        """Their names that have no place in this family."""
        known = {shared.source for shared in self.shared}
        found = []
        for name in names:
            full = self.canonical(name)
            if not (full in known or self.place(full, ours=False) or self.is_ignored(full)):
                found.append(name)
        return found


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What a conversion made of a state dict.

    Attributes:
        tensors: under the other names.
        parts: optional parts that are complete.
        incomplete: optional parts of which something was there, with what was not.
        ignored: names of the source that were left out on purpose.
        layers: numbered stack of ours (`encoder.transformer`) to its layers.
    """

    tensors: StateDict
    parts: tuple[str, ...]
    incomplete: dict[str, list[str]]
    ignored: list[str]
    layers: dict[str, int]


def to_ours(
    family: Family,
    theirs: Mapping[str, Tensor],
    config: Values | None = None,
    parts: Sequence[str] | None = None,
) -> Conversion:
    """Their tensors under our names.

    Args:
        config: our configuration values, for steps that need one.
        parts: the optional parts wanted; default: all.

    Raises:
        WeightsError: a tensor has no place, is there twice, is missing, or a layer is.
    """
    source: StateDict = {}
    ignored = []
    for name, tensor in theirs.items():
        full = family.canonical(name)
        if family.is_ignored(full):
            ignored.append(name)
        elif full in source:
            raise WeightsError(f"'{full}' is there twice, once as '{name}'.")
        else:
            source[full] = tensor
    _fill_shared(family, source)
    return _convert(family, source, config or {}, parts, ignored, ours=False)


def to_theirs(
    family: Family,
    ours: Mapping[str, Tensor],
    config: Values | None = None,
    parts: Sequence[str] | None = None,
) -> Conversion:
    """Our tensors under their names; the inverse of `to_ours`. Shared tensors are there under both names."""
    done = _convert(family, dict(ours), config or {}, parts, [], ours=True)
    for shared in family.shared:
        if shared.name in done.tensors:
            done.tensors.setdefault(shared.source, done.tensors[shared.name])
    return done


def without_copies(family: Family, theirs: Mapping[str, Tensor]) -> StateDict:
    """Their tensors with shared ones under one name only, where they are equal."""
    if not is_tied(family, theirs):
        return dict(theirs)
    copies = {shared.name for shared in family.shared}
    return {name: tensor for name, tensor in theirs.items() if name not in copies}


def is_tied(family: Family, theirs: Mapping[str, Tensor]) -> bool:
    """Whether every shared tensor that is there under both names is one and the same."""
    pairs = [(theirs.get(shared.name), theirs.get(shared.source)) for shared in family.shared]
    return all(one is None or other is None or same(one, other) for one, other in pairs)


def _fill_shared(family: Family, source: StateDict) -> None:
    """Put shared tensors under every name that has a rule, and under no other."""
    there = {rule.part for name in source if (rule := _rule(family, name)) is not None}
    copies = {shared.name for shared in family.shared}
    for shared in family.shared:
        rule = _rule(family, shared.name)
        assert rule is not None, f"{shared.name} has no rule"
        if _rule(family, shared.source) is None:
            if shared.source in source:
                tensor = source.pop(shared.source)
                source.setdefault(shared.name, tensor)
        elif shared.source not in source:
            if shared.name in source:
                source[shared.source] = source[shared.name]
        elif rule.part in there or all(
            other.theirs in copies for other in family.rules if other.part == rule.part
        ):
            # The part is there, or it consists of shared tensors only and cannot be told from an absent one.
            source.setdefault(shared.name, source[shared.source])


def _rule(family: Family, name: str) -> Rule | None:
    place = family.place(name, ours=False)
    return None if place is None else family.rules[place[0]]


def _convert(
    family: Family,
    source: StateDict,
    config: Values,
    parts: Sequence[str] | None,
    ignored: list[str],
    *,
    ours: bool,
) -> Conversion:
    groups: dict[tuple[int, tuple[str, ...]], dict[int, str]] = {}
    strangers = []
    for name in source:
        place = family.place(name, ours)
        if place is None:
            strangers.append(name)
        else:
            groups.setdefault((place[0], place[2]), {})[place[1]] = name
    if strangers:
        raise WeightsError(
            f"not a {family.name} model, or with parts that are not converted: {len(strangers)} of "
            f"{len(source)} tensors have no place, such as {', '.join(strangers[:3])}."
        )
    layers, missing = _completeness(family, groups, ours)
    if missing[None]:
        raise WeightsError(
            f"not a complete {family.name} model: {len(missing[None])} tensors are missing, such as "
            f"{', '.join(missing[None][:3])}."
        )
    wanted = family.parts if parts is None else parts
    tensors: StateDict = {}
    for (number, digits), places in groups.items():
        rule = family.rules[number]
        names = list(places.values())
        if rule.part is not None and rule.part not in wanted:
            ignored += names
            continue
        sources = rule.names(ours)
        if len(places) < len(sources):  # of an optional part: `_completeness` has noted it
            ignored += names
            continue
        try:
            made = rule.apply([source[places[place]] for place in range(len(sources))], config, not ours)
        except WeightsError as error:
            raise WeightsError(f"{', '.join(names)}: {error}") from None
        for pattern, tensor in zip(rule.names(not ours), made, strict=True):
            tensors[pattern.format(*digits)] = tensor
    there = {family.rules[number].part for number, _ in groups} - {None}
    present = [part for part in family.parts if part in there and part in wanted]
    return Conversion(
        tensors,
        tuple(part for part in present if not missing[part]),
        {part: missing[part] for part in present if missing[part]},
        ignored,
        layers,
    )


def _completeness(
    family: Family, groups: Mapping[tuple[int, tuple[str, ...]], Mapping[int, str]], ours: bool
) -> tuple[dict[str, int], dict[str | None, list[str]]]:
    """Layers of each numbered stack of ours, and the names of the source that are missing, by part.

    A stack has layers 0 … n−1 where n − 1 is the largest number that occurs; every rule of it has them all.
    """
    last: dict[str, int] = {}
    for number, digits in groups:
        if digits:
            stack = _stack(family.rules[number]) or ""
            last[stack] = max(last.get(stack, 0), int(digits[0]))
    there: dict[int, set[tuple[str, ...]]] = {}
    for number, digits in groups:
        there.setdefault(number, set()).add(digits)
    missing: dict[str | None, list[str]] = {None: [], **{part: [] for part in family.parts}}
    for number, rule in enumerate(family.rules):
        numbered = _stack(rule)
        expected: set[tuple[str, ...]] = {()}
        if numbered is not None:
            # Rules with several numbers (layer and expert) are complete where the layer is there at all.
            further = {digits[1:] for digits in there.get(number, set())} or {()}
            # A damaged name with a huge number must not make us list every layer up to it.
            layers = min(last.get(numbered, 0), len(groups)) + 1
            expected = {(str(layer), *rest) for layer in range(layers) for rest in further}
        for digits in sorted(expected, key=lambda digits: [int(digit) for digit in digits]):
            found = groups.get((number, digits), {})
            missing[rule.part] += [
                name.format(*digits) if name.count("{}") == len(digits) else name
                for place, name in enumerate(rule.names(ours))
                if place not in found
            ]
    return {stack: number + 1 for stack, number in last.items()}, missing


def _stack(rule: Rule) -> str | None:
    """What is numbered, at ours: `encoder.transformer`; None without a number."""
    name = rule.names(True)[0]
    return name.partition(".{}")[0] if "{}" in name else None
