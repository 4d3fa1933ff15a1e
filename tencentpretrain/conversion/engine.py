"""Conversion between our tensors and another library's, in both directions, by the rules of a family."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
from torch import Tensor

from tencentpretrain.conversion.family import Family, Rule, Shared, name_pattern
from tencentpretrain.conversion.steps import Values
from tencentpretrain.errors import WeightsError
from tencentpretrain.state_dict import LazyTensors, origin, renamed, same


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What a conversion made of a state dict.

    Attributes:
        tensors: under the other names, each made when it is asked for.
        parts: optional parts that are complete.
        incomplete: optional parts of which something was there, with what was not.
        ignored: names of the source that were left out on purpose.
        layers: numbered stack of ours (`encoder.transformer`) to its layers.
    """

    tensors: Mapping[str, Tensor]
    parts: tuple[str, ...]
    incomplete: dict[str, list[str]]
    ignored: list[str]
    layers: dict[str, int]

    @property
    def notes(self) -> list[str]:
        """What a user should know, a line each."""
        return [
            f"{part} is incomplete, without {', '.join(names)}" for part, names in self.incomplete.items()
        ]


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
    names: dict[str, str] = {}
    ignored = []
    for name in theirs:
        full = family.canonical(name)
        if family.is_ignored(full):
            ignored.append(name)
        elif full in names:
            raise WeightsError(f"'{full}' is there twice, once as '{name}'.")
        else:
            names[full] = name
    _fill_shared(family, names, tied=(config or {}).get("tie_weights") is not False)
    for shared in family.shared:
        if _rule(family, shared.source) is None:
            names.pop(shared.source, None)
    named = renamed(theirs, names)
    if family.implied is not None:
        _check_computed(
            family.implied(named, config or {}), renamed(theirs, {family.canonical(n): n for n in ignored})
        )
    source = _with_implied(family, named, config or {}, ours=False)
    done = _convert(family, source, config or {}, parts, ignored, ours=False)
    copied = {
        copy.name.format(layer): copy.source
        for copy in family.copies
        for layer in range(done.layers[copy.name.partition(".{}")[0]])
    }
    names = {name: name for name in done.tensors} | copied
    return dataclasses.replace(done, tensors=renamed(done.tensors, names))


def _check_computed(makers: Mapping[str, Callable[[], Tensor]], ignored: Mapping[str, Tensor]) -> None:
    """Refuse tensors that our model computes where they have other values: positions that were trained."""
    for name in makers.keys() & ignored.keys():
        stored, computed = ignored[name].float(), makers[name]().float()
        shorter = min(len(stored), len(computed))
        # Half precision rounds to three digits.
        if not torch.allclose(stored[:shorter], computed[:shorter], rtol=0, atol=1e-2):
            raise WeightsError(f"'{name}' was trained, while it is computed here.")


def to_theirs(
    family: Family,
    ours: Mapping[str, Tensor],
    config: Values | None = None,
    parts: Sequence[str] | None = None,
) -> Conversion:
    """Our tensors under their names; the inverse of `to_ours`. Shared tensors are there under both names."""
    source = renamed(ours, _without_our_copies(family, ours))
    done = _convert(family, source, config or {}, parts, [], ours=True)
    tensors = done.tensors
    copies = {
        shared.source: shared.name
        for shared in family.shared
        if shared.name in tensors and shared.source not in tensors and _agree(family, tensors, shared)
    }
    names = {name: name for name in tensors} | copies
    tensors = _with_implied(family, renamed(tensors, names), config or {}, ours=True)
    return dataclasses.replace(done, tensors=tensors)


def _without_our_copies(family: Family, ours: Mapping[str, Tensor]) -> dict[str, str]:
    """Names that have a rule, to what they are in the file.

    Raises:
        WeightsError: a copy is another tensor.
    """
    names = {name: name for name in ours}
    for copy in family.copies:
        for name in [name for name in names if re.fullmatch(name_pattern(copy.name), name)]:
            stored = names.setdefault(copy.source, name)
            if origin(ours, stored) != origin(ours, name) and not same(ours[stored], ours[name]):
                raise WeightsError(
                    f"'{name}' differs from '{stored}'; a {family.name} model has them as one."
                )
            del names[name]
    return names


def _agree(family: Family, theirs: Mapping[str, Tensor], shared: Shared) -> bool:
    """Whether all that may be stored under one name with it is one tensor, where that is not for sure."""
    if not shared.always:
        return True
    others = [other.name for other in family.shared if other.source == shared.source]
    first = theirs[shared.name]
    return all(same(first, theirs[name]) for name in others if name in theirs)


def _with_implied(
    family: Family, theirs: Mapping[str, Tensor], config: Values, ours: bool
) -> Mapping[str, Tensor]:
    """And what files may leave out; coming from them only what means something to us."""
    if family.implied is None:
        return theirs
    makers = {
        name: make
        for name, make in family.implied(theirs, config).items()
        if name not in theirs and (ours or family.place(name, ours=False) is not None)
    }
    if not isinstance(theirs, LazyTensors):
        return {**theirs, **{name: make() for name, make in makers.items()}}
    return LazyTensors({**theirs.makers, **{name: ((name,), make) for name, make in makers.items()}})


def without_copies(family: Family, theirs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Their tensors with shared ones under one name only, where they are equal."""
    tied = is_tied(family, theirs)
    # A model of theirs that ties nothing reads every one from the file, unless it shares some regardless.
    one = {False: tied, True: tied or bool(family.fixed_ours.get("share_embedding"))}
    if one[True]:
        one[True] = is_tied(family, theirs, always=True)
    copies = {shared.name for shared in family.shared if one[shared.always] and shared.source in theirs}
    return renamed(theirs, {name: name for name in theirs if name not in copies})


def is_tied(family: Family, theirs: Mapping[str, Tensor], always: bool = False) -> bool:
    """Whether every shared tensor that is there under both names is one and the same.

    Args:
        always: of those that every model shares, rather than those that it may share.
    """
    names = {name: name for name in theirs}
    _fill_shared(family, names)
    pairs = [
        (names.get(shared.name), names.get(shared.source))
        for shared in family.shared
        if shared.always is always
    ]
    return all(
        one is None or other is None or one == other or same(theirs[one], theirs[other])
        for one, other in pairs
    )


def _fill_shared(family: Family, source: dict[str, str], tied: bool = True) -> None:
    """Put shared tensors under every name they may have.

    Args:
        source: names of theirs as they should be, to what they are in the file.
        tied: whether a part that consists of shared tensors only may be left out of the file.
    """
    there = {rule.part for name in source if (rule := _rule(family, name)) is not None}
    copies = {shared.name for shared in family.shared}
    for always in (True, False):
        group = [shared for shared in family.shared if shared.always is always]
        for shared in group:
            if shared.name in source:
                source.setdefault(shared.source, source[shared.name])
        for shared in group:
            rule = _rule(family, shared.name)
            assert rule is not None, f"{shared.name} has no rule"
            if shared.source in source and (
                rule.part is None
                or rule.part in there
                or _rule(family, shared.source) is None
                or (tied and all(other.theirs in copies for other in family.rules if other.part == rule.part))
            ):
                # The part is there, or it consists of shared tensors only and is never seen to be absent.
                source.setdefault(shared.name, source[shared.source])


def _rule(family: Family, name: str) -> Rule | None:
    place = family.place(name, ours=False)
    return None if place is None else family.rules[place[0]]


def _convert(
    family: Family,
    source: Mapping[str, Tensor],
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

    @functools.lru_cache(maxsize=1)  # a rule's tensors are asked for one after the other
    def made(rule: Rule, *sources: str) -> list[Tensor]:
        try:
            return rule.apply([source[name] for name in sources], config, not ours)
        except WeightsError as error:
            raise WeightsError(f"{', '.join(sources)}: {error}") from None

    def make(rule: Rule, sources: tuple[str, ...], place: int) -> Tensor:
        return made(rule, *sources)[place]

    makers: dict[str, tuple[Hashable, Callable[[], Tensor]]] = {}
    for (number, digits), places in groups.items():
        rule = family.rules[number]
        count = len(rule.names(ours))
        # Of an incomplete rule, which only an optional part has, `_completeness` has taken note.
        if len(places) < count or (rule.part is not None and rule.part not in wanted):
            ignored += places.values()
            continue
        sources = tuple(places[index] for index in range(count))
        for index, pattern in enumerate(rule.names(not ours)):
            name = pattern.format(*digits)
            same_as = (name,) if rule.steps else origin(source, sources[index])
            makers[name] = (same_as, functools.partial(make, rule, sources, index))
    there = {family.rules[number].part for number, _ in groups} - {None}
    present = [part for part in family.parts if part in there and part in wanted]
    return Conversion(
        LazyTensors(makers),
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
                if place not in found and not rule.optional
            ]
    return {stack: number + 1 for stack, number in last.items()}, missing


def _stack(rule: Rule) -> str | None:
    """What is numbered, at ours: `encoder.transformer`; None without a number."""
    name = rule.names(True)[0]
    return name.partition(".{}")[0] if "{}" in name else None
