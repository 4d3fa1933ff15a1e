"""Conversion between our parameter names and another library's, from one table of rules, in both directions.

"Ours" are the published names (contract §3), "theirs" those of the other library. A name may hold `{}` for a
number (of a layer, of an expert); a rule then stands for every number that occurs.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tencentpretrain.config import ModelConfig
from tencentpretrain.conversion.steps import Step, Values
from tencentpretrain.errors import WeightsError
from tencentpretrain.state_dict import LazyTensors, origin, renamed, same


@dataclasses.dataclass(frozen=True)
class Rule:
    """Tensors of theirs that are tensors of ours.

    Attributes:
        theirs, ours: names, one or several.
        steps: what to do with the tensors on the way to ours; undone in reverse order on the way back.
        part: what the tensors belong to that a model may lack (a target, biases); None: every model has them.
        optional: the part is complete without them; those of no part are of models without a head.
    """

    theirs: str | tuple[str, ...]
    ours: str | tuple[str, ...]
    steps: tuple[Step, ...] = ()
    part: str | None = None
    optional: bool = False

    def apply(self, tensors: list[Tensor], config: Values, to_ours: bool) -> list[Tensor]:
        for step in self.steps if to_ours else reversed(self.steps):
            tensors = step.to_ours(tensors, config) if to_ours else step.to_theirs(tensors, config)
        return tensors

    def names(self, ours: bool) -> tuple[str, ...]:
        names = self.ours if ours else self.theirs
        return (names,) if isinstance(names, str) else names


@dataclasses.dataclass(frozen=True)
class Shared:
    """A tensor of theirs that may be stored once: `name` is `source` unless it is there itself.

    Attributes:
        always: in every model (the embeddings of encoder and decoder), not only where weights are tied.
    """

    name: str
    source: str
    always: bool = False


@dataclasses.dataclass(frozen=True)
class Setting:
    """A configuration value under our names and theirs.

    Attributes:
        ours: one option of ours or several, which then must be equal.
        theirs: None: nothing is written (the value is a part of another one of theirs).
        default: what theirs is where their file leaves it out, or a function of their values that says it.
        words: their word to ours where the spelling differs; the way back takes the first.
        read: our value from all of theirs, where it takes more than looking one up (nested values).
        write: their value from our configuration, likewise. Both may raise WeightsError.
        fixed: theirs is always the default; another value of ours is converted all the same, and told.
    """

    ours: str | tuple[str, ...]
    theirs: str | None
    default: Any = None
    words: Mapping[Any, Any] | None = None
    read: Callable[[Values], Any] | None = None
    write: Callable[[ModelConfig], Any] | None = None
    fixed: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    def to_ours(self, theirs: Values) -> Any:
        """Our value; WeightsError where there is none."""
        if self.read is not None:
            return self.read(theirs)
        value = None if self.theirs is None else theirs.get(self.theirs)
        if value is None:
            value = self.default(theirs) if callable(self.default) else self.default
        if self.words is None:
            return value
        for theirs_word, ours in self.words.items():
            if theirs_word == value:
                return ours
        known = ", ".join(map(str, self.words))
        raise WeightsError(
            f"`{self.theirs}` is {value}, only {known} {'are' * (len(self.words) > 1) or 'is'} supported"
        )

    def to_theirs(self, config: ModelConfig) -> Any:
        """Their value; WeightsError where there is none."""
        if self.write is not None:
            return self.write(config)
        if self.fixed:
            return self.default
        first, *others = self.options
        value = getattr(config, first)
        for other in others:
            if getattr(config, other) != value:
                raise WeightsError(f"`{other}` is {getattr(config, other)}, but `{first}` is {value}")
        if self.words is None:
            return value
        for theirs, ours in self.words.items():
            if ours == value:
                return theirs
        raise WeightsError(f"`{first}` is {value}, which they do not have")


@dataclasses.dataclass(frozen=True)
class Head:
    """The head of a fine-tuned model, which has it in place of its family's targets.

    Attributes:
        name: of the part that its rules are; the same at all families.
        architecture: the name of its class at theirs.
    """

    name: str
    architecture: str
    rules: tuple[Rule, ...]


@dataclasses.dataclass(frozen=True)
class Family:
    """A model family of another library, as data.

    Attributes:
        name: ours for it, unique; where `model_types` is empty, also what their configuration file says.
        model_types: what their configuration file may say; the first is what is written.
        rules: every tensor, exactly once.
        prefix: goes before the names of a file of the bare encoder.
        shared: tensors that may be stored under one of two names; those that are always shared come first.
        copies: the same for ours; `{}` in the name stands for every layer.
        implied: what makes tensors of theirs that files may leave out, from the others and our configuration.
        spellings: older names (a pattern and its replacement).
        ignored: patterns of names that carry no weights of this model, such as buffers.
        settings: configuration values that vary.
        fixed_ours: our options that must have a value other than their default. Every further option that
            shapes the network and that no setting names must have its default.
        fixed_theirs: their configuration values that must be so; an absent one counts as being so.
        types: value of a conversion program's --type to the parts it converts.
        architectures: the parts that a model has, to the name of its class at theirs.
        tokenizer_class: the name of its tokenizer at theirs.
        tokenizer_files: our option that names a vocabulary file, to the file's name at theirs.
        tgt_tokenizer_files: the same for the decoder's side, where that tokenizer is two; the vocabulary only
            if it is another.
        tokenizer_options: what tells that tokenizer to do as ours does.
        fixed_tokenizer: the class that AutoTokenizer takes for them, whatever the files say.
        token_ids: their configuration values that are the id of a special token, to its role at ours.
        sizes: their configuration values that are the number of rows of a tensor of theirs, to its name.
        unused_positions: how many of the positions no text can have.
        heads: of fine-tuned models; where the tensors alone must tell, the first that is all there.
        head: the name of the one that this family has (`with_head`).
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
    model_types: tuple[str, ...] = ()
    fixed_tokenizer: str | None = None
    tgt_tokenizer_files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tokenizer_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sizes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unused_positions: int = 0
    prefix: str = ""
    shared: tuple[Shared, ...] = ()
    copies: tuple[Shared, ...] = ()
    implied: Callable[[Mapping[str, Tensor], Values], Mapping[str, Callable[[], Tensor]]] | None = None
    spellings: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    heads: tuple[Head, ...] = ()
    head: str | None = None

    @property
    def known_as(self) -> tuple[str, ...]:
        """Every `model_type` it has."""
        return self.model_types or (self.name,)

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(rule.part for rule in self.rules if rule.part is not None))

    @functools.cached_property
    def _matchers(self) -> dict[bool, list[tuple[re.Pattern[str], int, int]]]:
        return {
            ours: [
                (re.compile(_pattern(name)), number, place)
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
        return self.place(name, ours=False) is None and any(
            re.fullmatch(pattern, name) for pattern in (*self.ignored, _HEADS)
        )

    def with_head(self, name: str) -> Family:
        """The family of fine-tuned models: this head in place of targets, whose tensors are ignored."""
        (head,) = (head for head in self.heads if head.name == name)
        body = tuple(rule for rule in self.rules if rule.part is None and not rule.optional)
        kept = {name for rule in body for name in rule.names(ours=False)}
        shared = tuple(shared for shared in self.shared if shared.name in kept)
        targets = {name for rule in self.rules for name in rule.names(ours=False)} - kept
        targets |= {one.source for one in self.shared} - kept - {one.source for one in shared}
        return dataclasses.replace(
            self,
            rules=(*body, *head.rules),
            shared=shared,
            ignored=(*self.ignored, *(_pattern(name) for name in sorted(targets))),
            types={name: (name,)},
            architectures={(name,): head.architecture, (): self.architectures[()]},
            heads=(),
            head=name,
        )

    def with_head_in(self, names: Iterable[str], ours: bool) -> Family:
        """The family with the first head whose tensors are all there; itself where there is none."""
        there = set(names) if ours else {self.canonical(name) for name in names}
        for head in self.heads:
            if there.issuperset(name for rule in head.rules for name in rule.names(ours)):
                return self.with_head(head.name)
        return self

    def canonical(self, name: str) -> str:
        """Their name in today's spelling, with the prefix."""
        for pattern, replacement in self.spellings:
            name = re.sub(pattern, replacement, name)
        if (
            self.prefix
            and not self._has_place(name)
            and (self._has_place(self.prefix + name) or self.is_ignored(self.prefix + name))
        ):
            return self.prefix + name
        return name

    def _has_place(self, name: str) -> bool:
        return self.place(name, ours=False) is not None or any(name == one.source for one in self.shared)

    def has_stranger(self, names: Iterable[str]) -> bool:
        """Whether one of their names has no place in this family."""
        full = map(self.canonical, names)
        return any(not (self._has_place(name) or self.is_ignored(name)) for name in full)


# Heads that are none of the family's: of fine-tuned models, whose body is converted.
_HEADS = r"(score|classifier|classification_head|multiple_choice_head|qa_outputs)\..*"


def _pattern(name: str) -> str:
    """A regular expression with a group for each number in the name."""
    return re.escape(name).replace(r"\{\}", r"(\d{1,6})")


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
        for name in [name for name in names if re.fullmatch(_pattern(copy.name), name)]:
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
