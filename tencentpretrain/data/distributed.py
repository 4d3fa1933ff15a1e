"""Preprocessing on a Ray cluster: the parts of `--shard`, tokenised where there is room, then joined."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tencentpretrain.data.corpora import corpus_files
from tencentpretrain.data.merge import MergeConfig, merge
from tencentpretrain.data.preprocess import CorpusReport
from tencentpretrain.data.program import read_job
from tencentpretrain.data.store import TokenStore
from tencentpretrain.data.writer import check_replaceable
from tencentpretrain.errors import ConfigError, DataError, UserError

PARTS_OF_CORE = 4  # so that slow parts do not hold up all others
LEFTOVER = re.compile(r"\.[1-9]\d*\.\d+\.(old|tmp)")  # of a part that was not finished


def preprocess_on_ray(arguments: Sequence[str]) -> TokenStore:
    """Write the token store that preprocess.py would write with these options, with Ray Data.

    The cluster is the one of `RAY_ADDRESS`, else this machine. Corpus and `--dataset_path` must be on a file
    system that all machines share. Parts that are done are not done again after an interruption.

    Raises:
        UserError: as preprocess.py; Ray is not installed; beside `--dataset_path`, something else than
            parts lies where they belong.
        OSError: a file cannot be read or written.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError(f"Ray Data cannot be used ({error}); pip install 'ray[data]'.") from None

    job = read_job(arguments)
    config = job.config
    if config.part is not None or config.dedup is not None:
        raise ConfigError("--shard and --dedup do not go with Ray: it makes parts itself, each for itself.")
    for note in job.notes:
        print(note)
    if config.processes_num > 1:
        print("--processes_num has no effect on Ray, which runs a part on every core.")
    path = Path(os.path.realpath(config.dataset_path))
    parts_path = path.with_name(f"{path.name}.parts")
    check_replaceable(path)
    _check_parts(parts_path)
    corpus_files(config.corpus_path, config.json_format_corpus)
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    cores = sum(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
    parts_num = max(1, int(PARTS_OF_CORE * cores))
    folder = os.getcwd()  # noqa: PTH109 (as text, for another process)

    def part(row: dict[str, Any]) -> dict[str, Any]:
        os.chdir(folder)  # what the paths are relative to
        number = int(row["id"]) + 1
        own = ["--shard", f"{number}/{parts_num}", "--dataset_path", str(parts_path / str(number))]
        told: dict[str, Any]
        try:
            told = {"report": vars(read_job([*arguments, *own, "--processes_num", "1"]).run())}
        except UserError as error:  # Ray would wrap it
            told = {"error": str(error)}
        except OSError as error:
            told = {"system": [error.errno, error.strerror, error.filename]}
        return {"told": json.dumps(told)}

    rows = ray.data.range(parts_num, override_num_blocks=parts_num).map(part, num_cpus=1).take_all()
    reports = []
    for row in rows:
        told = json.loads(row["told"])
        if "error" in told:
            raise DataError(told["error"])
        if "system" in told:
            raise OSError(*told["system"])
        reports.append(CorpusReport())
        vars(reports[-1]).update(told["report"])
    report = CorpusReport.total(reports)
    try:
        report.check(config.max_bad_lines)
    except DataError as error:
        kept = "\nWhat was done is kept: the same command goes on from there."
        raise DataError(f"{error}{kept if config.resume == 'auto' else ''}") from None
    if str(report):
        print(report)
    inputs = tuple(str(parts_path / str(number)) for number in range(1, parts_num + 1))
    store = merge(MergeConfig(inputs, str(path)), "--dataset_path")
    for entry in filter(_is_part, list(parts_path.iterdir())):  # also those of a cluster of another size
        shutil.rmtree(entry)
    with contextlib.suppress(OSError):  # something else came in meanwhile
        parts_path.rmdir()
    return store


def _check_parts(directory: Path) -> None:
    """Raise DataError where anything but parts is in a directory; those of an interrupted run may be."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise DataError(
            f"{directory} is a file, where parts belong; move it away or choose another --dataset_path."
        )
    if other := next((entry for entry in sorted(directory.iterdir()) if not _is_part(entry)), None):
        raise DataError(
            f"{other} is no part of a corpus, and only parts belong there; move it away or choose another "
            "--dataset_path."
        )


def _is_part(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return False
    if LEFTOVER.fullmatch(path.name):
        return True
    try:
        check_replaceable(path)  # a store with nothing else in it
        return bool(path.name.isdecimal() and "part" in TokenStore.open(path).meta["corpus"])
    except DataError:
        return False
