"""Preprocessing: MB of text a second and a process, and peak memory, beside the tokenizer's library alone.

Each round tokenises the same lines with the library (`encode_batch_fast` of `tokenizers`; `sentencepiece`,
where there is a model; lines in memory, result thrown away) and with preprocess.py's function (file to
finished token store), one after the other, in processes of their own. Then the same text in other forms, and
corpora of growing size and of odd shape. Speed is MB of text, whatever form it has on disk, from the
beginning of the work to its end: starting the processes and filling their tables of words is part of it,
which the row of a single line shows, and which a corpus of 20 MB still feels. Memory is that of the main
process and of the largest worker.

    python benchmarks/data.py --megabytes 20 --rounds 3 --largest 200
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
LINES = 1000  # given to the library at once
Result = dict[str, float]


def sample(folder: Path, data_path: Path) -> tuple[bytes, Path]:
    """Text with a document a line, and a vocabulary: the shared sample, else CPython's reference."""
    corpus = data_path / "corpora" / "CLUECorpusSmall_sampled.txt"
    if corpus.is_file():
        return corpus.read_bytes(), data_path / "vocab" / "google_zh_vocab.txt"
    import pydoc_data.topics

    from tokenizers import BertWordPieceTokenizer

    text = "\n".join(" ".join(topic.split()) for topic in pydoc_data.topics.topics.values()) + "\n"
    trained = BertWordPieceTokenizer()
    trained.train_from_iterator(text.splitlines(), vocab_size=8000, show_progress=False)
    trained.save_model(str(folder))
    return text.encode(), folder / "vocab.txt"


def bare(corpus: Path, vocabulary: Path, _: int, __: str, ___: str) -> None:
    if is_sentencepiece(vocabulary):
        from sentencepiece import SentencePieceProcessor

        encode = partial(
            SentencePieceProcessor(model_file=str(vocabulary)).encode, out_type=int, num_threads=1
        )
    else:
        from tokenizers import BertWordPieceTokenizer

        rust = BertWordPieceTokenizer(str(vocabulary))._tokenizer
        encode = partial(rust.encode_batch_fast, add_special_tokens=False)
    lines = corpus.read_text(encoding="utf-8").splitlines()
    with measured():
        for start in range(0, len(lines), LINES):
            encode(lines[start : start + LINES])


def is_sentencepiece(vocabulary: Path) -> bool:
    return vocabulary.suffix == ".model"


def ours(corpus: Path, vocabulary: Path, processes_num: int, layout: str, dedup: str) -> None:
    from tencentpretrain.config import PreprocessConfig, TokenizerConfig
    from tencentpretrain.data.preprocess import preprocess
    from tencentpretrain.tokenizers import build_tokenizer

    option = "spm_model_path" if is_sentencepiece(vocabulary) else "vocab_path"
    kind = "sentencepiece" if is_sentencepiece(vocabulary) else "bert"
    tokenizer = build_tokenizer(TokenizerConfig(tokenizer=kind, **{option: str(vocabulary)}))
    config = PreprocessConfig(
        corpus_path=(str(corpus),),
        dataset_path=str(corpus.with_suffix(".store")),
        processes_num=processes_num,
        dedup=dedup or None,
    )
    with measured():
        preprocess(config, layout, tokenizer)


def own_peak() -> float:
    """MB of this program; `ru_maxrss` would count what the process held before it became this program."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


class measured:  # noqa: N801 (used as a statement)
    """Print time, CPU time and peak memory of what is inside, as JSON."""

    def __enter__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), self._cpu()

    def __exit__(self, *_: object) -> None:
        memory = {
            "memory": own_peak(),
            "worker_memory": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        }
        wall, cpu = time.perf_counter() - self.wall, self._cpu() - self.cpu
        print(json.dumps({"seconds": wall, "cpu_seconds": cpu, **memory}))

    @staticmethod
    def _cpu() -> float:
        return sum(os.times()[:4])


def run(
    part: str,
    corpus: Path,
    vocabulary: Path,
    processes_num: int = 1,
    layout: str = "documents",
    dedup: str = "",
) -> Result:
    words = part, corpus, vocabulary, processes_num, layout, dedup
    done = subprocess.run(
        [sys.executable, __file__, "--part", *map(str, words)],
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    result: Result = json.loads(done.stdout)
    return result


def row(name: str, results: list[Result], size: int, processes_num: int = 1) -> tuple[float, float]:
    """Print medians; `size` is the number of bytes of text."""

    def middle(key: str) -> float:
        return statistics.median(result[key] for result in results)

    speed, cpu_speed = (size / 1e6 / middle(key) for key in ("seconds", "cpu_seconds"))
    speed /= processes_num
    memory, worker_memory = (max(result[key] for result in results) for key in ("memory", "worker_memory"))
    workers = f"{worker_memory:12.0f}" if worker_memory else f"{'–':>12}"
    print(
        f"{name:38} {middle('seconds'):8.2f} {speed:12.2f} {cpu_speed:14.2f} {memory:10.0f} {workers}",
        flush=True,
    )
    return speed, cpu_speed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_path", type=Path, default=SHARED, help="default: ../shared/data")
    parser.add_argument("--megabytes", type=int, default=20, help="text tokenised in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--largest", type=int, default=200, help="megabytes of the largest corpus for memory")
    parser.add_argument("--document", type=int, default=100, help="megabytes of the longest document")
    parser.add_argument("--lines", type=int, default=10_000_000, help="one-line documents")
    parser.add_argument("--part", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        part, corpus, vocabulary, processes_num, layout, dedup = arguments.part
        measure = {"bare": bare, "ours": ours}[part]
        measure(Path(corpus), Path(vocabulary), int(processes_num), layout, dedup)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        text, vocabulary = sample(folder, arguments.data_path)

        def corpus_of(megabytes: int) -> Path:
            path = folder / f"{megabytes}.txt"
            with path.open("wb") as file:
                for _ in range(max(1, round(megabytes * 1e6 / len(text)))):
                    file.write(text)
            return path

        print(
            f"{'':38} {'seconds':>8} {'MB/s/process':>12} {'MB/CPU-second':>14} {'MB memory':>10} "
            f"{'of a worker':>12}"
        )
        line = folder / "line.txt"
        line.write_bytes(text[: text.index(b"\n") + 1])
        for number in (1, 2):
            result = run("ours", line, vocabulary, number)
            row(f"one line, {number} processes", [result], line.stat().st_size, number)
        corpus = corpus_of(arguments.megabytes)
        size = corpus.stat().st_size
        model = arguments.data_path / "vocab" / "cluecorpussmall_spm.model"
        for name, words in {"tokenizers": vocabulary, "sentencepiece": model}.items():
            if not words.is_file():
                continue
            pairs = [
                (run("bare", corpus, words), run("ours", corpus, words)) for _ in range(arguments.rounds)
            ]
            library = row(f"{name} alone", [pair[0] for pair in pairs], size)
            one = row("preprocess, 1 process", [pair[1] for pair in pairs], size)
            print(f"  ratio: {one[0] / library[0]:.2f} by time, {one[1] / library[1]:.2f} by CPU time")
        for path in other_forms(corpus):
            row(f"  {path.name}", [run("ours", path, vocabulary)], size)
        for megabytes in (arguments.largest // 100, arguments.largest // 10, arguments.largest):
            corpus = corpus_of(max(megabytes, 1))
            size = corpus.stat().st_size
            row(f"preprocess, 2 processes, {corpus.stem} MB", [run("ours", corpus, vocabulary, 2)], size, 2)
            if megabytes == arguments.largest:
                result = run("ours", corpus, vocabulary, 2, "documents", "exact")
                row("  --dedup exact (almost all dropped)", [result], size, 2)
            corpus.unlink()
        document = folder / "document.txt"
        repeated = text * max(1, round(arguments.document * 1e6 / len(text)))
        for what, content, layout in (
            (f"one document of {arguments.document} MB, lines", b"a\n\n" + repeated, "sentences"),
            (
                f"one document of {arguments.document} MB, one line",
                repeated.replace(b"\n", b" "),
                "documents",
            ),
        ):
            document.write_bytes(content)
            size = len(content)
            row(what, [run("ours", document, vocabulary, 2, layout)], size, 2)
            row("  --dedup exact", [run("ours", document, vocabulary, 2, layout, "exact")], size, 2)
        with document.open("w", encoding="utf-8") as file:
            file.writelines(f"{number} is a number\n" for number in range(arguments.lines))
        size = document.stat().st_size
        row(f"{arguments.lines:,} documents of one line", [run("ours", document, vocabulary, 2)], size, 2)
        row("  --dedup exact", [run("ours", document, vocabulary, 2, "documents", "exact")], size, 2)


def other_forms(corpus: Path) -> list[Path]:
    """The lines of a text file as gzip, zstd and Parquet files."""
    import pyarrow.parquet
    import zstandard

    content = corpus.read_bytes()
    paths = [corpus.with_suffix(suffix) for suffix in (".txt.gz", ".txt.zst", ".parquet")]
    paths[0].write_bytes(gzip.compress(content, 6))
    paths[1].write_bytes(zstandard.compress(content))
    table = pyarrow.table({"text": content.decode().split("\n")})
    pyarrow.parquet.write_table(table, paths[2])
    return paths


if __name__ == "__main__":
    main()
