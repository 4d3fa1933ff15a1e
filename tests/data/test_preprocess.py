from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import errno
import gzip
import json
import os
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import sentencepiece
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import FIRST_ORDINARY, Documents, documents_in

from tencentpretrain.config import PreprocessConfig, TokenizerConfig
from tencentpretrain.data import tokenising, writer
from tencentpretrain.data.lines import PROMPT
from tencentpretrain.data.merge import MergeConfig, merge
from tencentpretrain.data.preprocess import preprocess
from tencentpretrain.data.store import TokenStore
from tencentpretrain.errors import DataError
from tencentpretrain.files import complete_directory
from tencentpretrain.tokenizers import Tokenizer, build_tokenizer

ROOT = Path(__file__).parents[2]

words = st.lists(st.integers(0, 999), min_size=1, max_size=6)
corpora = st.lists(st.lists(st.lists(words, min_size=1, max_size=4), max_size=6), min_size=1, max_size=3)


def as_file(documents: Documents, layout: str, is_json: bool, line_end: str, last_line_ends: bool) -> bytes:
    lines: list[str] = []
    for number, document in enumerate(documents):
        texts = [" ".join(map(str, sentence)) for sentence in document]
        if is_json:
            lines.append(json.dumps({"text": "\n".join(texts)}))
        elif layout == "sentences":
            lines += [""] * (number % 3 + (number > 0)) + texts
        else:
            lines += (
                ["", "\t".join(texts)] if layout == "documents" else [f"{number % 4}\t" + "\t".join(texts)]
            )
    return (line_end.join(lines) + line_end * last_line_ends).encode()


def write_file(path: Path, content: bytes, form: str, rows: list[dict[str, object]]) -> None:
    if form == "parquet":
        table = pyarrow.table({name: [row[name] for row in rows] for name in rows[0]})
        pyarrow.parquet.write_table(table, path, row_group_size=2)
    else:
        compress = {"text": bytes, "gzip": gzip.compress, "zstd": zstandard.compress}[form]
        path.write_bytes(compress(content))


@given(
    files=corpora,
    layout=st.sampled_from(["sentences", "documents", "labelled"]),
    is_json=st.booleans(),
    form=st.sampled_from(["text", "text", "gzip", "zstd", "parquet"]),
    line_end=st.sampled_from(["\n", "\r\n"]),
    last_line_ends=st.booleans(),
    block_size=st.integers(1, 300),
    processes_num=st.sampled_from([1, 1, 1, 1, 1, 1, 1, 1, 2, 3]),
    parts_num=st.sampled_from([None, None, 1, 2, 3, 8]),
)
@settings(max_examples=100, deadline=None)
def test_every_document_once_for_any_blocks_parts_and_processes(
    files: list[Documents],
    layout: str,
    is_json: bool,
    form: str,
    line_end: str,
    last_line_ends: bool,
    block_size: int,
    processes_num: int,
    parts_num: int | None,
    tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("any")
    if layout == "labelled":
        is_json = False
        files = [[document[:2] for document in file] for file in files]
    if form == "parquet":
        files = [file for file in files if file] or [[[[1]], [[2]]]]
    for number, file in enumerate(files):
        content = as_file(file, layout, is_json, line_end, last_line_ends)
        rows: list[dict[str, object]] = [
            {"text": "\n".join(" ".join(map(str, sentence)) for sentence in document)} for document in file
        ]
        if layout == "labelled":
            rows = [
                {
                    "label": label % 4,
                    "text": " ".join(map(str, document[0])),
                    "text_b": " ".join(map(str, document[1])) if len(document) > 1 else " ",
                }
                for label, document in enumerate(file)
            ]
        write_file(path / f"{number}.txt", content, form, rows)
    expected = [document for file in files for document in file]
    if layout == "documents":
        expected = [[[id for sentence in document for id in sentence]] for document in expected]
    names = ["store"] if parts_num is None else [f"part{number}" for number in range(1, parts_num + 1)]
    reports = []
    try:
        for number, name in enumerate(names, start=1):
            config = PreprocessConfig(
                corpus_path=(str(path),),
                dataset_path=str(path / name),
                json_format_corpus=is_json,
                processes_num=processes_num,
                shard=None if parts_num is None else f"{number}/{parts_num}",
            )
            reports.append(preprocess(config, layout, tokenizer, block_size=block_size))
        if parts_num is not None:
            inputs = tuple(str(path / name) for name in reversed(names))
            merge(MergeConfig(inputs, str(path / "store")))
    except DataError as error:
        assert not expected, error
        assert not (path / "store").exists()
        return
    assert not any(report.bad_lines_num or report.empty_num for report in reports)
    store = TokenStore.open(path / "store")
    store.verify()
    assert store.meta["corpus"]["lines_num"] == sum(report.lines_num for report in reports)
    found = [
        [[id - FIRST_ORDINARY for id in sentence] for sentence in document]
        for document in documents_in(store)
    ]
    assert found == expected
    if layout == "labelled":
        labels = [number % 4 for file in files for number in range(len(file))]
        assert store.labels_at(np.arange(store.documents_num)).tolist() == labels
    shutil.rmtree(path)


@given(
    pairs=st.lists(st.tuples(words, words), min_size=1, max_size=12),
    layout=st.sampled_from(["pairs", "instructions"]),
    form=st.sampled_from(["text", "gzip", "zstd"]),
    block_size=st.integers(1, 200),
    parts_num=st.sampled_from([1, 3]),
)
@settings(max_examples=5, deadline=None)
def test_every_document_of_two_texts_once(
    pairs: list[tuple[list[int], list[int]]],
    layout: str,
    form: str,
    block_size: int,
    parts_num: int,
    tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("two")
    texts = [(" ".join(map(str, first)), " ".join(map(str, second))) for first, second in pairs]
    if layout == "pairs":
        lines = ["\t".join(pair) for pair in texts]
    else:
        lines = [json.dumps({"instruction": first, "output": second}) for first, second in texts]
        texts = [(PROMPT.format(instruction=first, input=""), second) for first, second in texts]
    write_file(path / "corpus.txt", "\n".join(lines).encode(), form, [])
    parts = tuple(str(path / f"part{number}") for number in range(1, parts_num + 1))
    for number, part in enumerate(parts, start=1):
        config = PreprocessConfig(
            corpus_path=(str(path / "corpus.txt"),), dataset_path=part, shard=f"{number}/{parts_num}"
        )
        preprocess(config, layout, tokenizer, block_size=block_size)
    store = merge(MergeConfig(parts, str(path / "store")))
    assert documents_in(store) == [[tokenizer.encode(text) for text in pair] for pair in texts]
    shutil.rmtree(path)


def config_for(tmp_path: Path, content: bytes, **options: object) -> PreprocessConfig:
    (tmp_path / "corpus.txt").write_bytes(content)
    options = {
        "corpus_path": (str(tmp_path / "corpus.txt"),),
        "dataset_path": str(tmp_path / "dataset.pt"),
        **options,
    }
    return PreprocessConfig(**options)  # type: ignore[arg-type]


def documents_of(config: PreprocessConfig) -> Documents:
    return documents_in(TokenStore.open(config.dataset_path))


def test_same_bytes_for_any_number_of_processes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    lines = [b"%d %d" % (n % 1000, n % 7) if n % 5 else (b"", b"bad \xff")[n % 2] for n in range(4000)]
    written = []
    for processes_num in (1, 2, 5):
        config = config_for(tmp_path, b"\n".join(lines), processes_num=processes_num)
        preprocess(config, "sentences", tokenizer, block_size=500)
        files = sorted(path for path in Path(config.dataset_path).rglob("*") if path.is_file())
        written.append([(path.name, path.read_bytes()) for path in files])
    assert written[0] == written[1] == written[2]
    meta = json.loads(dict(written[0])["meta.json"])
    assert meta["corpus"]["lines_num"] == 4000
    assert meta["corpus"]["bad_lines_num"] == 400
    first = f"{tmp_path / 'corpus.txt'}, line 6: not UTF-8 (byte 5 is 0xff)"
    assert meta["corpus"]["bad_lines"][0] == first
    assert len(meta["corpus"]["bad_lines"]) == 10


def test_line_numbers_are_those_of_the_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(b"1 2\n" * 30 + b"\0\n")
    config = PreprocessConfig(corpus_path=(str(tmp_path),), dataset_path=str(tmp_path / "store"))
    report = preprocess(config, "documents", tokenizer, block_size=10)
    assert report.bad_lines == [
        f"{tmp_path / name}, line 31: a NUL byte (byte 1): the whole line is left out"
        for name in ("a.txt", "b.txt")
    ]
    assert "2 of 62 lines cannot be used:" in str(report)


def test_text_in_another_encoding_is_told_from_single_bad_lines(tokenizer: Tokenizer, tmp_path: Path) -> None:
    hint = r"Much of .*corpus.txt is not UTF-8; .*\(GBK: iconv -f GB18030 -t UTF-8\)"
    lines = "中文\n1\n".encode("gb18030") * 100
    good = tmp_path / "good.txt"
    good.write_bytes(b"1\n" * 10_000)
    config = config_for(tmp_path, lines, corpus_path=(str(good), str(tmp_path / "corpus.txt")))
    assert re.search(hint, str(preprocess(config, "documents", tokenizer)))
    with pytest.raises(DataError, match=hint):
        preprocess(dataclasses.replace(config, max_bad_lines=5), "documents", tokenizer)
    report = preprocess(config_for(tmp_path, b"1\n" * 20 + b"\xff\n"), "documents", tokenizer)
    assert "iconv" not in str(report)


def test_texts_without_tokens_are_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    nothing = "\u200b"  # WordPiece removes format characters
    config = config_for(tmp_path, f"1\n{nothing}\n2\n\n{nothing}\n\n3".encode())
    for layout, expected in (("sentences", [[[6], [7]], [[8]]]), ("documents", [[[6]], [[7]], [[8]]])):
        report = preprocess(config, layout, tokenizer)
        assert report.empty_num == 2
        assert documents_of(config) == expected
    config = config_for(tmp_path, f"0\t1\t{nothing}\n1\t{nothing}\t2\n2\t{nothing}\t{nothing}\n3\t4".encode())
    report = preprocess(config, "labelled", tokenizer)
    assert documents_of(config) == [[[6], []], [[], [7]], [[9]]]
    assert TokenStore.open(config.dataset_path).labels_at(np.arange(3)).tolist() == [0, 1, 3]
    assert report.empty_num == 2


@pytest.mark.parametrize("layout", ["sentences", "documents"])
def test_json_documents_without_text_are_counted(layout: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) for text in ("1", "", " \n ", "2")]
    config = config_for(tmp_path, "\n".join(lines).encode(), json_format_corpus=True)
    assert "2 texts have no token" in str(preprocess(config, layout, tokenizer))
    assert documents_of(config) == [[[6]], [[7]]]


def test_special_tokens_in_a_corpus_are_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = config_for(tmp_path, b"a [SEP] b\n")
    preprocess(config, "documents", tokenizer)
    assert not set(documents_of(config)[0][0]) & {tokenizer.sep_id}


def test_a_line_of_ten_megabytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    line = b"123 " * 2_500_000
    config = config_for(tmp_path, b"1\n" + line + b"\n2\n", processes_num=2)
    preprocess(config, "documents", tokenizer)
    store = TokenStore.open(config.dataset_path)
    assert store.sentence_ends(np.arange(3)).tolist() == [1, 2_500_001, 2_500_002]
    assert set(store.shards[0].tokens[1:-1]) == {123 + FIRST_ORDINARY}


def test_no_more_processes_than_cores_and_work(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenising, "PROCESSES_PER_CORE", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(3))
    started = []
    executor = concurrent.futures.ProcessPoolExecutor

    def start(processes_num: int, *arguments: object) -> object:
        started.append(processes_num)
        return executor(processes_num, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", start)
    config = config_for(tmp_path, b"1\n" * 20, processes_num=50)
    for block_size, expected in ((2, [3]), (20, [2]), (1 << 20, [])):
        started.clear()
        preprocess(config, "documents", tokenizer, block_size=block_size)
        assert started == expected
        assert len(documents_of(config)) == 20


@pytest.mark.parametrize(
    "text", ["12 34，中文a,b." * 30_000, "中文" * 200_000, "1 " * 65_535 + "99 " * 70_000]
)
def test_long_texts_are_cut_where_nothing_changes(text: str, tokenizer: Tokenizer) -> None:
    tokens, lengths = tokenising._encode(["5", text, "7"], tokenizer, "uint16")
    assert tokens.tolist() == [5 + FIRST_ORDINARY, *tokenizer.encode(text), 7 + FIRST_ORDINARY]
    assert lengths.tolist() == [1, len(tokens) - 2, 1]


@pytest.mark.parametrize("options", [{}, {"remove_extra_whitespaces": False}, {"add_dummy_prefix": False}])
@pytest.mark.parametrize("text", ["a,b. c " * 30_000, "a,  b" * 60_000, "中文，好" * 60_000])
def test_long_texts_gain_no_tokens_with_sentencepiece(
    options: dict[str, bool], text: str, tmp_path: Path
) -> None:
    with (tmp_path / "spm.model").open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a,b. c a,  b 中文，好 a b"] * 20), model_writer=model,
            vocab_size=16, hard_vocab_limit=False, num_threads=1, minloglevel=2, **options,
        )  # fmt: skip
    tokenizer = build_tokenizer(TokenizerConfig(spm_model_path=str(tmp_path / "spm.model")))
    tokens, lengths = tokenising._encode([text], tokenizer, "uint16")
    assert tokens.tolist() == tokenizer.encode(text)
    assert lengths.tolist() == [len(tokens)]


@pytest.mark.parametrize(
    ("content", "layout", "options", "message"),
    [
        (b"", "documents", {}, "nothing in this corpus can be used: it is empty"),
        (b"\n \n\n", "sentences", {}, "nothing in this corpus can be used: all lines are blank"),
        (b"\xff\n\0\n", "documents", {}, "can be used: 2 of 2 lines cannot be used"),
        (b"1\n\xff\n\xff\n", "documents", {"max_bad_lines": 1}, r"more bad lines than --max_bad_lines \(1\)"),
        (b"text without a label\n", "labelled", {}, "expected label TAB text"),
        ("\u200b\n".encode(), "documents", {}, "1 texts have no token"),
    ],
)
@pytest.mark.parametrize("processes_num", [1, 2])
def test_unusable_corpora(
    content: bytes, layout: str, options: dict[str, object], message: str, processes_num: int,
    tokenizer: Tokenizer, tmp_path: Path,
) -> None:  # fmt: skip
    config = config_for(tmp_path, content, processes_num=processes_num, **options)
    with pytest.raises(DataError, match=message):
        preprocess(config, layout, tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.txt"]


def test_one_document_is_refused_only_where_several_are_needed(
    vocab_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "corpus.txt").write_bytes(b"1\n2\n3\n")
    main = runpy.run_path(str(ROOT / "preprocess.py"))["main"]
    for processor, shard in (("bert", ()), ("bert", ("--shard", "1/1")), ("bart", ())):
        options = ("--data_processor", processor, *shard)
        monkeypatch.setattr(sys, "argv", command(tmp_path, vocab_path, *options)[1:])
        with (
            pytest.raises(DataError, match="no empty line separates documents")
            if processor == "bert"
            else contextlib.nullcontext()
        ):
            main()


def test_a_log_gets_a_line_of_progress_now_and_then(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_for(tmp_path, b"1 2 3\n" * 200)
    preprocess(config, "documents", tokenizer, block_size=60)
    assert capsys.readouterr().err == ""  # it takes less than LOG_SECONDS
    monkeypatch.setattr("tencentpretrain.data.corpora.LOG_SECONDS", 0.0)
    preprocess(config, "documents", tokenizer, block_size=60)
    lines = [line.strip("\r") for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) > 3
    for line in lines:
        assert re.fullmatch(r"preprocess: \d+ %, [\d.]+k?B of 1.20kB, .*B/s, .* left", line), line
    done = [int(line.split()[1]) for line in lines]
    assert done == sorted(done) and done[-1] == 100


def test_a_store_is_replaced_only_when_the_new_one_is_complete(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = config_for(tmp_path, b"1\n2\n")
    preprocess(config, "documents", tokenizer)
    with pytest.raises(DataError):
        preprocess(config_for(tmp_path, b"\xff"), "documents", tokenizer)
    assert documents_of(config) == [[[6]], [[7]]]
    preprocess(config_for(tmp_path, b"3\n"), "documents", tokenizer)
    assert documents_of(config) == [[[8]]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", "dataset.pt"]


def test_nothing_else_is_replaced(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = config_for(tmp_path, b"1\n")
    Path(config.dataset_path).write_bytes(b"\x80\x04 a published dataset")
    with pytest.raises(DataError, match="is a file, no token store, so it is not overwritten"):
        preprocess(config, "documents", tokenizer)
    assert Path(config.dataset_path).read_bytes() == b"\x80\x04 a published dataset"


def test_leftovers_of_killed_runs(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = config_for(tmp_path, b"1\n")
    preprocess(config, "documents", tokenizer)
    ended = subprocess.Popen(["true"])
    ended.wait()
    # Killed between the two renames: the old store, which is complete, must get its name back.
    Path(config.dataset_path).rename(tmp_path / f".dataset.pt.{ended.pid}.old")
    (tmp_path / f".dataset.pt.{ended.pid}.tmp").mkdir()
    (tmp_path / f".dataset.pt.{os.getppid()}.tmp").mkdir()  # another process has that number now
    with pytest.raises(DataError):
        preprocess(config_for(tmp_path, b"\xff"), "documents", tokenizer)
    assert documents_of(config) == [[[6]]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", "dataset.pt"]


def test_a_run_in_another_container_with_the_same_process_number(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = config_for(tmp_path, b"1\n")
    with complete_directory(Path(config.dataset_path)) as other:
        assert other.name == f".dataset.pt.{os.getpid()}.tmp"
        (other / "theirs").touch()
        preprocess(config, "documents", tokenizer)
        assert documents_of(config) == [[[6]]]
        assert [file.name for file in other.iterdir()] == ["theirs"]
    assert [file.name for file in Path(config.dataset_path).iterdir()] == ["theirs"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", "dataset.pt"]


@pytest.mark.parametrize("processes_num", [1, 2])
def test_a_full_disk(
    processes_num: int, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullFile(writer.ArrayFile):
        def __init__(self, path: Path, dtype: np.dtype[np.generic], entries_num: int = 0) -> None:
            super().__init__(path, dtype, entries_num)
            self._file.close()
            self._file = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115

    config = config_for(tmp_path, b"1 2 3\n" * 1000, processes_num=processes_num)
    preprocess(config, "documents", tokenizer)
    monkeypatch.setattr(writer, "ArrayFile", FullFile)
    with pytest.raises(DataError, match=rf"{os.strerror(errno.ENOSPC)}\. Make room .* Nothing was kept"):
        preprocess(config, "documents", tokenizer)
    assert TokenStore.open(config.dataset_path).documents_num == 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", "dataset.pt"]


def command(tmp_path: Path, vocab_path: Path, *options: str) -> list[str]:
    return [
        sys.executable, "preprocess.py", "--corpus_path", str(tmp_path / "corpus.txt"), "--vocab_path",
        str(vocab_path), "--dataset_path", str(tmp_path / "dataset.pt"), "--data_processor", "mlm", *options,
    ]  # fmt: skip


def test_names_of_files_that_are_no_unicode(vocab_path: Path, tmp_path: Path) -> None:
    corpus = tmp_path / os.fsdecode("\u8bed\u6599.txt".encode("gbk"))
    corpus.write_bytes(b"1 2\n3\xff\n4\n")
    options = ("--corpus_path", str(corpus))
    done = subprocess.run(command(tmp_path, vocab_path, *options), cwd=ROOT, capture_output=True, check=True)
    assert rb"\udcc1\udccf.txt, line 2: not UTF-8" in done.stdout
    store = TokenStore.open(tmp_path / "dataset.pt")
    assert store.meta["corpus"]["files"] == [str(corpus)]
    store.verify()


def test_the_published_command(vocab_path: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_bytes(b"1 2\n3\xff\n4\n")
    options = ("--processes_num", "8", "--seq_length=64", "--dynamic_masking", "--resume")
    done = subprocess.run(
        command(tmp_path, vocab_path, *options), cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--dynamic_masking has no effect" in done.stdout
    assert "corpus.txt, line 2: not UTF-8" in done.stdout
    assert "2 documents, 2 sentences, 3 tokens" in done.stdout
    assert not done.stderr  # no progress bar where there is no terminal
    store = TokenStore.open(tmp_path / "dataset.pt")
    assert store.options == {"data_processor": "mlm", "seq_length": 64}


@pytest.mark.parametrize(("processor", "role"), [("mlm", "mask"), ("bert", "sep"), ("lm", "cls")])
def test_a_vocabulary_without_a_token_the_processor_needs(
    processor: str, role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocab_path = tmp_path / "vocab.txt"
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "1"]
    names.remove(f"[{role.upper()}]")
    vocab_path.write_text("\n".join(names) + "\n", encoding="utf-8")
    (tmp_path / "corpus.txt").write_bytes(b"1\n\n1\n")
    monkeypatch.setattr(sys, "argv", command(tmp_path, vocab_path, "--data_processor", processor)[1:])
    with pytest.raises(DataError, match=rf"vocab\.txt has no {role} token .* use a vocabulary with it"):
        runpy.run_path(str(ROOT / "preprocess.py"))["main"]()
    assert not (tmp_path / "dataset.pt").exists()


def test_a_file_too_large_for_the_system_ends_the_program_cleanly(vocab_path: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_bytes(b"1 2 3 4 5 6 7 8 9\n" * 20_000)
    done = subprocess.run(
        command(tmp_path, vocab_path),
        cwd=ROOT, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )  # fmt: skip
    assert done.returncode == 2
    assert "Nothing was kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.txt"]


@contextlib.contextmanager
def running(tmp_path: Path, vocab_path: Path, processes_num: int) -> Iterator[subprocess.Popen[str]]:
    """The program at work on a corpus that takes it long."""
    (tmp_path / "corpus.txt").write_bytes(b"1 2 3 4 5 6 7 8 9\n" * 200_000)
    again = ("--corpus_path", *[str(tmp_path / "corpus.txt")] * 100)
    process = subprocess.Popen(
        command(tmp_path, vocab_path, *again, "--processes_num", str(processes_num)),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(lambda: any(file.stat().st_size for file in tmp_path.glob(".dataset.pt.*/00000.tokens")))
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(condition: object, seconds: float = 60) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def children(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize(
    ("signum", "to_all", "processes_num", "status"),
    [
        (signal.SIGINT, True, 2, 130),
        (signal.SIGINT, False, 1, 130),
        (signal.SIGTERM, True, 2, 143),
        (signal.SIGKILL, False, 2, -9),
    ],
)
def test_an_interrupted_run_is_gone_after_another(
    signum: int,
    to_all: bool,
    processes_num: int,
    status: int,
    vocab_path: Path,
    tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    with running(tmp_path, vocab_path, processes_num) as process:
        workers = children(process.pid)
        assert len(workers) == (processes_num if processes_num > 1 else 0)
        (os.killpg if to_all else os.kill)(process.pid, signum)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == status
        assert "Traceback" not in stderr
        wait_for(lambda: not any(map(is_running, workers)))
    assert not (tmp_path / "dataset.pt").exists()
    preprocess(config_for(tmp_path, b"1\n"), "documents", tokenizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", "dataset.pt"]


def test_a_killed_worker_is_named(vocab_path: Path, tmp_path: Path) -> None:
    with running(tmp_path, vocab_path, 2) as process:
        os.kill(children(process.pid)[1], signal.SIGKILL)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 2
        assert "a tokenising process was killed, most likely because memory ran out" in stderr
        assert "Traceback" not in stderr
    assert not (tmp_path / "dataset.pt").exists()
