from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stores import documents_in

from tencentpretrain.config import PreprocessConfig
from tencentpretrain.data import distributed, merge
from tencentpretrain.data.distributed import preprocess_on_ray
from tencentpretrain.data.preprocess import preprocess
from tencentpretrain.data.store import TokenStore
from tencentpretrain.errors import DataError, UserError
from tencentpretrain.tokenizers import Tokenizer

ROOT = Path(__file__).parents[2]


def program(tmp_path: Path, vocab_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    paths = {"corpus_path": tmp_path / "corpus", "vocab_path": vocab_path, "dataset_path": tmp_path / "store"}
    command = [
        sys.executable,
        "scripts/preprocess_ray.py",
        *(f"--{name}={path}" for name, path in paths.items()),
    ]
    return subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_on_a_local_ray(tokenizer: Tokenizer, vocab_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.data")
    (tmp_path / "corpus").mkdir()
    for name in ("a.txt", "b.txt"):
        lines = ["" if number % 3 == 0 else f"{number} 5" for number in range(300)]
        (tmp_path / "corpus" / name).write_text("\n".join(lines), encoding="utf-8")
    config = PreprocessConfig(corpus_path=(str(tmp_path / "corpus"),), dataset_path=str(tmp_path / "whole"))
    preprocess(config, "sentences", tokenizer)
    done = program(tmp_path, vocab_path, "--data_processor", "bert")
    assert done.returncode == 0, done.stderr
    assert "store: 200 documents, 800 tokens." in done.stdout
    whole = TokenStore.open(tmp_path / "whole")
    assert documents_in(TokenStore.open(tmp_path / "store")) == documents_in(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "store", "whole"]
    done = program(tmp_path, vocab_path, "--data_processor", "cls")
    assert done.returncode == 2
    assert "lines cannot be used" in done.stderr or "nothing in these token stores" in done.stderr


def test_what_does_not_go_with_ray(vocab_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.data")
    done = program(tmp_path, vocab_path, "--shard", "1/2")
    assert done.returncode == 2
    assert "--shard and --dedup do not go with Ray" in done.stderr


class Rows:
    """A data set of Ray Data in this process."""

    def __init__(self, rows_num: int, override_num_blocks: int) -> None:
        self.rows: list[dict[str, Any]] = [{"id": number} for number in range(rows_num)]

    def map(self, function: Callable[[dict[str, Any]], dict[str, Any]], num_cpus: int) -> Rows:
        try:
            self.rows = [function(row) for row in self.rows]
        except Exception as error:
            raise RuntimeError("in a part") from error  # as Ray does
        return self

    def take_all(self) -> list[dict[str, Any]]:
        return self.rows


@pytest.fixture
def clusters(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Starts of a cluster of one core, which is this process."""
    started: list[dict[str, Any]] = []
    ray = SimpleNamespace(
        is_initialized=lambda: False,
        init=lambda **options: started.append(options),
        nodes=lambda: [{"Alive": True, "Resources": {"CPU": 1}}],
        data=SimpleNamespace(range=Rows),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.data", ray.data)
    return started


@pytest.fixture
def arguments(vocab_path: Path, tmp_path: Path) -> list[str]:
    """Options for a corpus of 40 lines, of which 8 are bad, 2 in each of 4 parts."""
    text = b"".join(b"\xff\n" if number % 5 == 0 else b"1 2\n" for number in range(40))
    (tmp_path / "corpus.txt").write_bytes(text)
    paths = {
        "corpus_path": tmp_path / "corpus.txt",
        "vocab_path": vocab_path,
        "dataset_path": tmp_path / "store",
    }
    return [*(f"--{name}={path}" for name, path in paths.items()), "--data_processor=lm"]


def test_the_limit_of_bad_lines_is_one_for_all_parts(
    arguments: list[str], tmp_path: Path, clusters: object, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        DataError, match=r"(?s)more bad lines than --max_bad_lines \(7\)\.\n8 of 40 .*is kept"
    ):
        preprocess_on_ray([*arguments, "--max_bad_lines=7"])
    assert not (tmp_path / "store").exists()
    capsys.readouterr()
    store = preprocess_on_ray([*arguments, "--max_bad_lines=8"])
    assert store.meta["corpus"]["bad_lines_num"] == 8
    output = capsys.readouterr()
    assert output.out.count("8 of 40 lines cannot be used") == output.out.count("cannot be used:") == 1
    assert output.err.count("is done already") == 4
    assert not (tmp_path / "store.parts").exists()


def test_options_without_effect_are_told(
    arguments: list[str], clusters: object, capsys: pytest.CaptureFixture[str]
) -> None:
    preprocess_on_ray([*arguments, "--processes_num=2", "--dynamic_masking"])
    output = capsys.readouterr().out
    assert output.count("--dynamic_masking has no effect") == 1
    assert output.count("--processes_num") == 1


def test_parts_directory_of_the_user(
    arguments: list[str], tmp_path: Path, clusters: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = tmp_path / "store.parts"
    for name in ("notes.txt", "1"):  # what the user has may be called like a part
        (parts / name).mkdir(parents=True)
        (parts / name / "text").touch()
        with pytest.raises(DataError, match=rf"store\.parts/{name} is no part .*--dataset_path"):
            preprocess_on_ray(arguments)
        (parts / name / "text").unlink()
        (parts / name).rmdir()
    parts.rmdir()
    parts.touch()
    with pytest.raises(DataError, match=r"store\.parts is a file.*--dataset_path"):
        preprocess_on_ray(arguments)
    parts.unlink()
    assert clusters == []

    def merge_and_note(*given: Any) -> TokenStore:
        (parts / "notes.txt").touch()
        return merge.merge(*given)

    monkeypatch.setattr(distributed, "merge", merge_and_note)
    preprocess_on_ray(arguments)
    assert [path.name for path in parts.iterdir()] == ["notes.txt"]


def test_parts_of_an_interrupted_run_of_a_larger_cluster_are_removed(
    arguments: list[str], tmp_path: Path, clusters: object, tokenizer: Tokenizer
) -> None:
    path = tmp_path / "store.parts" / "9"
    config = PreprocessConfig((str(tmp_path / "corpus.txt"),), dataset_path=str(path), shard="9/9")
    preprocess(config, "sentences", tokenizer)
    (path.parent / ".8.99999999.tmp").mkdir()
    preprocess_on_ray(arguments)
    assert not path.parent.exists()


def test_refused_before_a_cluster_is_started(
    arguments: list[str], tmp_path: Path, clusters: list[object]
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").touch()
    for options, message in (
        ([f"--dataset_path={tmp_path / 'own'}"], r"thesis\.txt.* choose another --dataset_path"),
        ([f"--dataset_path={tmp_path / 'corpus.txt' / 'x'}"], r"--dataset_path .*corpus\.txt is a file"),
        (["--corpus_path=nope"], "nope: no such file"),
        (["--shard=1/2"], "--shard and --dedup do not go with Ray"),
    ):
        with pytest.raises(UserError, match=message):
            preprocess_on_ray([*arguments, *options])
    assert clusters == []


def test_system_errors_of_parts_are_raised_as_they_are(
    arguments: list[str], clusters: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(job: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "corpus.txt")

    monkeypatch.setattr("tencentpretrain.data.program.Job.run", run)
    with pytest.raises(PermissionError) as caught:
        preprocess_on_ray(arguments)
    assert caught.value.filename == "corpus.txt"


def test_full_disk_while_joining_names_the_option_of_this_program(
    arguments: list[str], clusters: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(merge, "_write", full)
    with pytest.raises(DataError, match=r"^--dataset_path .*Make room") as caught:
        preprocess_on_ray(arguments)
    assert "--output_path" not in str(caught.value)
