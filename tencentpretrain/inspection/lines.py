"""Lines of code that each further model costs, as in table 2 of TencentPretrain (Zhao et al. 2023, §5.1).

Counted are code lines (no comments, docstrings or blank lines) of the `nn.Module` classes that a model of the
configuration consists of, base classes included; of a model only those that no row above has. Beside them
stand the lines outside these classes in the files they need of `embeddings/`, `encoders/`, `decoders/`,
`targets/` and `layers/` (masks, rotations, the vocabulary loss …), without imports, which the paper does not
count.
"""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import tencentpretrain
from tencentpretrain.config import load_config
from tencentpretrain.sizes import DataSizes
from tencentpretrain.training.count import model_for_counting

PACKAGE = Path(tencentpretrain.__file__).parent
MODELS = PACKAGE.parent / "models"
PARTS = ("embeddings", "encoders", "decoders", "targets", "layers")
ROWS = {
    "Transformer": "transformer/base", "BERT": "bert/base", "RoBERTa": "roberta/base", "GPT-2": "gpt2/",
    "T5": "t5/base", "T5 v1.1, mT5": "t5-v1_1/base", "BART": "bart/base", "Pegasus": "pegasus/base",
    "Marian": "marian/base", "LLaMA": "llama/7b", "Llama 2 and 3": "llama3/8b", "Mistral": "mistral/7b",
    "Qwen2": "qwen2/7b", "Qwen3": "qwen3/8b", "BLOOM": "bloom/7b1", "XLM-R": "xlm-roberta/base",
    "ALBERT": "albert/base", "UniLM": "unilm/base", "Sentence-BERT": "sbert/base",
    "siamese LSTM": "rnn/siamese_lstm", "GPT with LSTM": "rnn/lstm", "GPT with GRU": "rnn/gru",
    "GPT with gated CNN": "cnn/gatedcnn_9", "ELMo": "rnn/bilstm", "InferSent": "infersent/bilstm",
    "Quick-Thoughts": "quick-thoughts/gru", "CoVe": "cove/lstm", "RealFormer": "realformer/base",
    "FNet": "fnet/base",
}  # fmt: skip
# TencentPretrain's and Transformers' in the paper.
THEIRS = {
    "Transformer": (795, 1135), "BERT": (149, 822), "RoBERTa": (0, 696), "GPT-2": (0, 688), "T5": (0, 1008),
}  # fmt: skip


class Row(NamedTuple):
    """What one model needs that no model above does.

    Attributes:
        classes: new module classes to their lines.
        alone: lines of those that no other model of the table has.
        beside: lines outside module classes in the files newly needed.
    """

    classes: dict[str, int]
    alone: int
    beside: int


def code_lines(text: str) -> set[int]:
    """Numbers of the lines with code."""
    skipped = (
        tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
    )  # fmt: skip
    lines = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in skipped
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            lines -= _span(node)
    return lines


def _span(node: ast.stmt) -> set[int]:
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
    return set(range(first, (node.end_lineno or node.lineno) + 1))


class SourceFile(NamedTuple):
    """Code lines of a file of ours, those of imports left out; a class's are among `others` too."""

    classes: dict[str, set[int]]
    others: set[int]
    imports: frozenset[str]


@cache
def source_file(module: str) -> SourceFile:
    text = (PACKAGE.parent / Path(*module.split("."))).with_suffix(".py").read_text(encoding="utf-8")
    lines, tree = code_lines(text), ast.parse(text)
    classes = {node.name: _span(node) & lines for node in tree.body if isinstance(node, ast.ClassDef)}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module or "" for node in imports if isinstance(node, ast.ImportFrom)}
    ours = frozenset(
        name for name in names if name.startswith(tuple(f"tencentpretrain.{part}." for part in PARTS))
    )
    return SourceFile(classes, lines.difference(*map(_span, imports)), ours)


def module_classes(config: str) -> set[type[nn.Module]]:
    """Classes of ours among a model's modules, and those they derive from."""
    name = f"{config}_config.json" if not config.endswith("/") else f"{config}config.json"
    with torch.device("meta"):
        model = model_for_counting(load_config(MODELS / name), DataSizes(100, 2))
    return {
        base
        for module in model.modules()
        for base in type(module).__mro__
        if issubclass(base, nn.Module) and base.__module__.startswith("tencentpretrain.")
    }


def files_of(classes: set[type[nn.Module]]) -> set[str]:
    """The files of these classes, and of what they import, in the packages that modules are made of."""
    found: set[str] = set()
    waiting = {kind.__module__ for kind in classes}
    while waiting:
        module = waiting.pop()
        found.add(module)
        waiting |= source_file(module).imports - found
    return {module for module in found if module.split(".")[1] in PARTS}


def lines_of(kind: type[nn.Module]) -> int:
    return len(source_file(kind.__module__).classes[kind.__name__])


def lines_beside(module: str) -> int:
    """Code lines outside module classes."""
    source = source_file(module)
    loaded = __import__(module, fromlist=["*"])
    modules = [
        lines for name, lines in source.classes.items() if issubclass(getattr(loaded, name), nn.Module)
    ]
    return len(source.others.difference(*modules))


def count() -> dict[str, Row]:
    needed = {name: module_classes(config) for name, config in ROWS.items()}
    known: set[type[nn.Module]] = set()
    files: set[str] = set()
    rows = {}
    for name, classes in needed.items():
        others = set().union(*(needed[other] for other in needed if other != name))
        new = sorted(classes - known, key=lambda kind: (kind.__module__, inspect.getsourcelines(kind)[1]))
        new_files = files_of(classes) - files
        rows[name] = Row(
            {kind.__name__: lines_of(kind) for kind in new},
            sum(lines_of(kind) for kind in classes - others),
            sum(map(lines_beside, new_files)),
        )
        known |= classes
        files |= new_files
    return rows


def table() -> str:
    """What each further model costs, as a table in Markdown."""
    lines = [
        "| model | lines | of them its own | beside | TencentPretrain | Transformers | new classes |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = count()
    for number, (name, row) in enumerate(rows.items()):
        sign = "+" if number else ""
        theirs = [f"{sign}{theirs}" for theirs in THEIRS.get(name, ())] or ["", ""]
        classes = ", ".join(row.classes)
        cells = [sign + name, f"{sign}{sum(row.classes.values())}", row.alone, row.beside, *theirs, classes]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    total = sum(sum(row.classes.values()) for row in rows.values())
    lines.append(f"| all | {total} | | {sum(row.beside for row in rows.values())} | | | |")
    return "\n".join(lines)
