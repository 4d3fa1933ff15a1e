"""Preprocessing on a Ray cluster: the parts of `--shard`, tokenised where there is room, then joined."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tencentpretrain.data.merge import MergeConfig, merge
from tencentpretrain.data.program import read_job
from tencentpretrain.data.store import TokenStore
from tencentpretrain.errors import ConfigError, DataError, UserError

PARTS_OF_CORE = 4  # so that slow parts do not hold up all others


def preprocess_on_ray(arguments: Sequence[str]) -> TokenStore:
    """Write the token store that preprocess.py would write with these options, with Ray Data.

    The cluster is the one of `RAY_ADDRESS`, else this machine. Corpus and `--dataset_path` must be on a file
    system that all machines share. Parts that are done are not done again after an interruption.

    Raises:
        UserError: as preprocess.py; Ray is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError(f"Ray Data cannot be used ({error}); pip install 'ray[data]'.") from None

    job = read_job(arguments)
    if job.config.part is not None or job.config.dedup is not None:
        raise ConfigError("--shard and --dedup do not go with Ray: it makes parts itself, each for itself.")
    path = Path(os.path.realpath(job.config.dataset_path))
    parts_path = path.with_name(f"{path.name}.parts")
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    cores = sum(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
    parts_num = max(1, int(PARTS_OF_CORE * cores))
    folder = os.getcwd()  # noqa: PTH109 (as text, for another process)

    def part(row: dict[str, Any]) -> dict[str, Any]:
        os.chdir(folder)  # what the paths are relative to
        number = int(row["id"]) + 1
        own = ["--shard", f"{number}/{parts_num}", "--dataset_path", str(parts_path / str(number))]
        try:
            report = read_job([*arguments, *own, "--processes_num", "1"]).run()
            return {"error": "", "report": str(report)}
        except UserError as error:  # Ray would wrap it
            return {"error": str(error), "report": ""}

    rows = ray.data.range(parts_num, override_num_blocks=parts_num).map(part, num_cpus=1).take_all()
    if errors := [row["error"] for row in rows if row["error"]]:
        raise DataError(errors[0])
    for row in rows:
        if row["report"]:
            print(row["report"])
    inputs = tuple(str(parts_path / str(number)) for number in range(1, parts_num + 1))
    store = merge(MergeConfig(inputs, str(path)))
    shutil.rmtree(parts_path)
    return store
