"""Which family of another library weights of ours can become."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from tencentpretrain.conversion.family import Family
from tencentpretrain.conversion.huggingface import OurModel, as_theirs
from tencentpretrain.conversion.huggingface.common import OPTIONS
from tencentpretrain.conversion.huggingface.tokenizers import their_tokenizer
from tencentpretrain.conversion.maps import FAMILIES
from tencentpretrain.errors import WeightsError


def detect(ours: OurModel, families: Sequence[Family], came_from: str | None) -> Family:
    """The family that weights of ours fit, with its head.

    Args:
        came_from: name of the family that they were converted from, where that is known.

    Raises:
        WeightsError: none; with what is in the way of the nearest ones, the one they came from first.
    """
    fitting = []
    problems: dict[str, str] = {}
    for family in families:
        family = family.with_head_in(ours.tensors, ours=True)
        try:
            as_theirs(family, ours, family.parts)
        except WeightsError as error:
            problems[family.name] = str(error)
        else:
            fitting.append(family)
    if not fitting:
        raise WeightsError(_why_none(ours, problems, came_from))
    original = [family for family in fitting if family.name == came_from]
    if original:
        fitting = original
    elif (tokenizer := ours.tokenizer) is not None:
        usual = [
            family
            for family in fitting
            if (their_tokenizer(family, tokenizer, ours.tgt_tokenizer) or [None])[0] == family.tokenizer_class
        ]
        fitting = usual or fitting
    family = fitting[0]
    if len(fitting) > 1:
        others = ", ".join(other.name for other in fitting[1:])
        print(f"taken as {family.name}; {others} would fit too (--family chooses)")
    unnamed = family.head == "token_classification" and ours.labels is None
    if unnamed and len(ours.tensors["output_layer.bias"]) == 2:
        # One layer of two outputs without names: the first and the last word of an answer.
        print("taken as question answering, as the two outputs have no labels")
        base = next(one for one in families if one.name == family.name)
        return base.with_head("question_answering")
    return family


def _why_none(ours: OurModel, problems: Mapping[str, str], came_from: str | None) -> str:
    """What is in the way.

    Args:
        problems: by name of a family.
    """
    for kind in ("encoder", "decoder"):
        known = dict.fromkeys(family.fixed_ours.get(kind, OPTIONS[kind].default) for family in FAMILIES)
        if ours.config is not None and (given := getattr(ours.config, kind)) not in known:
            theirs = ", ".join(filter(None, known)) or "none"
            return (
                f"`{kind}` is {given}, which no family of Hugging Face here has (theirs: {theirs}); only the "
                "programs of this toolkit can use the weights."
            )
    distances = {name: _distance(problem) for name, problem in problems.items()}
    # Where options are all that is in the way of some, families with other tensors are no help.
    near = [name for name in problems if not distances[name][0]] or list(problems)
    told = [name for name in problems if name in near or name == came_from]
    alike: dict[str, list[str]] = {}  # what is in the way, to the families that it keeps from fitting
    for name in sorted(told, key=lambda name: (name != came_from, distances[name])):
        alike.setdefault(problems[name].replace(f" {name} ", " {} ", 1), []).append(name)
    nearest = [problem.replace("{}", " or ".join(names), 1) for problem, names in alike.items()]
    return "\n  ".join(["no family fits; the nearest:", *nearest[:3]])


def _distance(problem: str) -> tuple[bool, int]:
    """How far a family is: tensors that do not fit are further than options, which a message joins by ';'."""
    tensors = re.search(r"(\d+) (of \d+ )?tensors", problem)
    return tensors is not None, int(tensors[1]) if tensors else problem.count(";")
