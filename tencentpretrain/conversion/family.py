"""A model family of another library as data: what its tensors and configuration values are at ours.

"Ours" are the published names (contract §3), "theirs" those of the other library. A name may hold `{}` for a
number (of a layer, of an expert); a rule then stands for every number that occurs.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from tencentpretrain.config import ModelConfig
from tencentpretrain.conversion.steps import Step, Values
from tencentpretrain.errors import WeightsError


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
                (re.compile(name_pattern(name)), number, place)
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
            ignored=(*self.ignored, *(name_pattern(name) for name in sorted(targets))),
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


def name_pattern(name: str) -> str:
    """A regular expression with a group for each number in the name."""
    return re.escape(name).replace(r"\{\}", r"(\d{1,6})")
