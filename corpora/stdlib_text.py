"""English text that is on every machine with Python: its language reference and its library's docstrings.

    python corpora/stdlib_text.py --output_directory demo

writes `corpus.txt` (a sentence a line, an empty line between documents) and `train.tsv`, `dev.tsv`,
`test.tsv` (docstrings labelled with the module they come from) with `labels.txt` (the modules' names). The
library is read, never imported.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import random
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

SKIPPED = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "pydoc_data", "__pycache__"}
SENTENCE_END = re.compile(r"(?<=[.!?:])\s+(?=[A-Z\"'`(])")


def docstrings() -> Iterator[tuple[str, str]]:
    """(top-level module, docstring) of every module, class and function of the standard library."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        if SKIPPED & set(relative.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield relative.parts[0].removesuffix(".py"), text


def reference() -> list[str]:
    """The topics of Python's language reference."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return [topics[name] for name in sorted(topics)]


def sentences(text: str) -> list[str]:
    """The sentences of a text, each on one line, without the underlines and indents of its markup."""
    paragraphs = re.split(r"\n\s*\n", text)
    joined = (" ".join(paragraph.split()) for paragraph in paragraphs)
    parts = [part for paragraph in joined for part in SENTENCE_END.split(paragraph)]
    return [part for part in parts if re.search(r"\w", part)]


def one_line(text: str) -> str:
    return " ".join(text.split())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output_directory", type=Path, required=True)
    parser.add_argument("--labels_num", type=int, default=8, help="modules with the most docstrings")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    directory: Path = options.output_directory
    directory.mkdir(parents=True, exist_ok=True)

    found = [(module, text) for module, text in docstrings() if len(text) >= 40]
    modules = [module for module, _ in Counter(module for module, _ in found).most_common(options.labels_num)]
    (directory / "labels.txt").write_text("\n".join(modules) + "\n", encoding="utf-8")
    # As a dictionary: a docstring that occurs twice would be in training and test.
    rows = list(
        {one_line(text): modules.index(module) for module, text in found if module in modules}.items()
    )
    random.Random(options.seed).shuffle(rows)
    fifth = len(rows) // 5
    for name, part in (
        ("test", rows[:fifth]),
        ("dev", rows[fifth : 2 * fifth]),
        ("train", rows[2 * fifth :]),
    ):
        lines = ["label\ttext_a", *(f"{label}\t{text}" for text, label in part)]
        (directory / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")

    held_out = {text for text, _ in rows[: 2 * fifth]}  # pre-training sees no text that is scored later
    documents = [sentences(text) for text in reference()]
    documents += [sentences(text) for _, text in found if one_line(text) not in held_out]
    corpus = "\n\n".join("\n".join(document) for document in documents if document) + "\n"
    (directory / "corpus.txt").write_text(corpus, encoding="utf-8")
    print(
        f"{directory}/corpus.txt: {len(documents)} documents, {len(corpus) / 1e6:.1f} million characters; "
        f"{len(rows)} labelled docstrings: {', '.join(modules)}"
    )


if __name__ == "__main__":
    main()
