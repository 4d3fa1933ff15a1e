"""What is in a token store: counts, lengths, and examples as a model sees them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tencentpretrain.config import DataConfig
from tencentpretrain.config.options import option
from tencentpretrain.config.shared import PLUGINS
from tencentpretrain.data.store import SIDES, Array, TokenStore
from tencentpretrain.errors import UserError
from tencentpretrain.files import complete_file
from tencentpretrain.registry import PROCESSORS

if TYPE_CHECKING:
    from tencentpretrain.tokenizers.base import Tokenizer

BINS_OF_OCTAVE = 4  # bars of the histogram from a length to its double
AT_ONCE = 1 << 20  # documents whose lengths are in memory
LABELS_SHOWN = 20  # the most frequent ones
IGNORED_MARK = "·"  # where nothing is predicted


@dataclasses.dataclass(frozen=True)
class InspectConfig:
    """Looking into a token store."""

    dataset_path: str = option("dataset.pt", "Token store made by preprocess.py.")
    output_path: str | None = option(
        None, "PNG of the lengths of documents; default: <dataset_path>-lengths.png."
    )
    examples: int = option(
        3, "Rows of the first batch that are shown, at most those of an epoch; 0: none.", minimum=0
    )
    verify_dataset: bool = option(False, "Compare every file with its checksum.")
    plugins: tuple[str, ...] = PLUGINS()


class Lengths:
    """How long the documents of a store are, in tokens, counted in bins whose borders grow geometrically."""

    def __init__(self, store: TokenStore) -> None:
        self.shortest, self.longest, self.total = np.inf, 0, 0
        octaves = int(max(store.tokens_num, 1)).bit_length() * BINS_OF_OCTAVE
        self.borders = np.unique(np.round(2 ** (np.arange(octaves + 1) / BINS_OF_OCTAVE)).astype(np.int64))
        self.borders = np.concatenate(([0], self.borders))
        self.counts = np.zeros(len(self.borders), np.int64)
        for lengths in _lengths(store):
            self.shortest = min(self.shortest, int(lengths.min()))
            self.longest = max(self.longest, int(lengths.max()))
            bins = np.searchsorted(self.borders, lengths, side="right") - 1
            self.counts += np.bincount(bins, minlength=len(self.counts))

    def at_most(self, share: float) -> int:
        """The border of bins under which a share of the documents is."""
        reached = np.searchsorted(np.cumsum(self.counts), share * self.counts.sum())
        return min(int(np.append(self.borders, self.longest + 1)[reached + 1]) - 1, self.longest)

    def draw(self, path: Path, title: str) -> None:
        """A histogram, as PNG."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4))
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        used = slice(None, int(self.counts.nonzero()[0].max(initial=0)) + 1)
        widths = np.diff(np.append(self.borders, 2 * self.borders[-1]))
        axes.bar(self.borders[used], self.counts[used], widths[used], align="edge", edgecolor="white")
        axes.set_xscale("symlog", base=2, linthresh=1)
        # Names of files need not be Unicode, and a dollar in them begins no formula.
        axes.set_title(title.encode("utf-8", "backslashreplace").decode("utf-8"), parse_math=False)
        axes.set_xlabel("tokens of a document")
        axes.set_ylabel("documents")
        axes.grid(alpha=0.3)
        with complete_file(path) as temporary:
            figure.savefig(temporary, dpi=100, format="png")


def _lengths(store: TokenStore) -> Iterator[Array]:
    for first in range(0, store.documents_num, AT_ONCE):
        documents = np.arange(first, min(first + AT_ONCE, store.documents_num))
        starts = store.sentence_starts(store.document_starts(documents))
        yield store.sentence_ends(store.document_ends(documents) - 1) - starts


def describe(store: TokenStore, lengths: Lengths) -> str:
    """Counts, and what the store was made from, in lines."""
    size = sum(file["size"] for entry in store.meta["shards"] for file in entry["files"].values())
    lines = [
        f"{store.path}: layout '{store.layout}', {np.dtype(store.meta['dtype']).itemsize} bytes a token, "
        f"{len(store.shards)} shards, {size / 1e6:,.1f} MB"
    ]
    for side in SIDES:
        if side in store.meta:
            tokenizer = store.meta[side]
            lines.append(f"{side}: {tokenizer['kind']}, {tokenizer['vocab_size']:,} tokens")
    if store.has_words:
        lines.append(f"words: {store.meta['words']['kind']}")
    lines.append(
        f"{store.documents_num:,} documents, {store.sentences_num:,} sentences, {store.tokens_num:,} tokens"
    )
    if store.documents_num:
        mean = store.tokens_num / store.documents_num
        quantiles = ", ".join(f"{share:.0%} at most {lengths.at_most(share):,}" for share in (0.5, 0.9, 0.99))
        lines.append(
            f"tokens of a document: {lengths.shortest:,} to {lengths.longest:,}, mean {mean:,.1f}, "
            + quantiles
        )
    if store.layout == "labelled":
        counts = np.zeros(store.labels_num, np.int64)
        for shard in store.shards:
            counts += np.bincount([] if shard.labels is None else shard.labels, minlength=store.labels_num)
        occurring = np.flatnonzero(counts)
        shown = occurring[np.argsort(-counts[occurring], kind="stable")][:LABELS_SHOWN]
        more = [f"{len(occurring) - len(shown):,} more"] if len(occurring) > len(shown) else []
        lines.append("labels: " + ", ".join([*(f"{label}: {counts[label]:,}" for label in shown), *more]))
    corpus = store.meta["corpus"]
    if part := corpus.get("part"):
        lines.append(f"part {part['number']} of {part['of']} of the corpus")
    names = {
        "lines_num": "lines",
        "bad_lines_num": "lines that could not be used",
        "empty_num": "texts without a token",
        "duplicates_num": "documents that were there before",
    }
    found = [f"{corpus[name]:,} {words}" for name, words in names.items() if corpus.get(name)]
    files = corpus.get("files", [])
    lines.append(f"made from {len(files)} files: " + ", ".join([*found, *files[:3]]))
    if store.options:
        lines.append("options: " + ", ".join(f"{name} {value}" for name, value in store.options.items()))
    return "\n".join(lines)


def examples(store: TokenStore, config: DataConfig, rows_num: int) -> Iterator[str]:
    """Rows of the first batch of a training with these options, in lines; no more than an epoch has.

    Raises:
        DataError: the data processor cannot use the store.
    """
    from tencentpretrain.data.loader import Loader, is_sequence  # needs torch

    processor = PROCESSORS[config.data_processor](store, config, store.tokenizer)
    rows_num = min(rows_num, Loader(processor, rows_num).rows_num())
    batch = next(Loader(processor, rows_num).batches()).batch
    for row in range(rows_num):
        lines = [f"example {row + 1}"]
        for name, values in batch.items():
            if values.shape[0] == rows_num and not name.endswith("_positions"):
                decoder = name.startswith("decoder_") or (
                    name.endswith("_labels") and "decoder_input_ids" in batch
                )
                tokenizer = store.tgt_tokenizer if decoder else store.tokenizer
                value = values[row].numpy()
                if is_sequence(name):
                    segments = batch.get("decoder_segment_ids" if decoder else "segment_ids")
                    used = None if segments is None else int(segments[row].count_nonzero())
                    lines.append(f"  {name}: {_show(name, value[:used], tokenizer)}")
                else:
                    lines.append(f"  {name}: {value}")
        yield "\n".join(lines)


def _show(name: str, row: Array, tokenizer: Tokenizer) -> str:
    if name.endswith("input_ids"):
        return " ".join(tokenizer.tokens[id] for id in row)
    if not name.endswith("_labels"):
        return " ".join(f"{value}×{len(list(group))}" for value, group in itertools.groupby(row.tolist()))
    return " | ".join(_show_labels(column, tokenizer) for column in np.atleast_2d(row.T))


def _show_labels(labels: Array, tokenizer: Tokenizer) -> str:
    """All of them, or where they are few those that are, with their positions."""
    tokens = [IGNORED_MARK if label < 0 else tokenizer.tokens[label] for label in labels]
    places = np.flatnonzero(labels >= 0)
    if len(places) < len(labels) / 3:
        return ", ".join(f"{place} {tokens[place]}" for place in places)
    return " ".join(tokens)


def inspect(config: InspectConfig, data: DataConfig) -> Sequence[str]:
    """Look into a store, and draw the lengths of its documents.

    Returns:
        What was found, in paragraphs.

    Raises:
        UserError: a file was changed, the processor cannot use the store, or the picture would lie in it.
    """
    store = TokenStore.open(config.dataset_path)
    path = Path(config.output_path or f"{store.path}-lengths.png")
    if path.resolve().is_relative_to(store.path.resolve()):
        raise UserError(f"--output_path {path} is in the token store {store.path}; give another path.")
    if config.verify_dataset:
        store.verify()
    store.check_borders()
    lengths = Lengths(store)
    found = [describe(store, lengths)]
    if config.verify_dataset:
        found.append("Every file has its checksum, and the tokenizer is the one it was made with.")
    lengths.draw(path, store.path.name)
    found.append(f"{path}: lengths of documents.")
    return found + (list(examples(store, data, config.examples)) if config.examples else [])
