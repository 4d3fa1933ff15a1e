"""Several token stores as one: files are linked, only meta.json is written anew."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from pathlib import Path
from typing import Any

from tencentpretrain.config.options import option
from tencentpretrain.data.preprocess import EXAMPLES
from tencentpretrain.data.store import COUNTS, SIDES, TokenStore, checksum
from tencentpretrain.data.writer import check_replaceable
from tencentpretrain.errors import DataError
from tencentpretrain.files import complete_directory, remove_leftovers, write_json
from tencentpretrain.registry import PROCESSORS

SUMS = ("lines_num", "bad_lines_num", "empty_num", "duplicates_num")
ALIKE = ("layout", "dtype", "tokenizer", "tgt_tokenizer", "words")  # what stores must agree in


@dataclasses.dataclass(frozen=True)
class MergeConfig:
    """Joining token stores."""

    input_paths: tuple[str, ...] = option(
        ..., "Token stores: all parts that --shard made of a corpus, or any others."
    )
    output_path: str = option(..., "Directory the joined token store is written to.")


def merge(config: MergeConfig, option: str = "--output_path") -> TokenStore:
    """Join stores. Parts of a corpus come in their order, others in the order given.

    The files are shared with the inputs (hard links) where both are on one file system, else copied; the
    inputs stay as they are.

    Args:
        option: what messages call `config.output_path`.

    Raises:
        DataError: other tokenizers or layouts; a part that is missing or there twice; nothing in them.
    """
    stores = _in_order([TokenStore.open(os.path.realpath(path)) for path in config.input_paths])
    path = Path(os.path.realpath(config.output_path))
    if any(store.path == path for store in stores):
        raise DataError(f"{option} {path} is one of --input_paths; give another.")
    if any(path.is_relative_to(store.path) for store in stores):
        raise DataError(f"{option} {path} lies in one of --input_paths; give another.")
    check_replaceable(path, option)
    for store in stores[1:]:
        for name in ALIKE:
            one, other = (each.meta.get(name) for each in (stores[0], store))
            if one != other:
                raise DataError(
                    f"{stores[0].path} and {store.path} cannot be joined: their {name} differs "
                    f"({_short(one)}, {_short(other)}); make them with equal options."
                )
    _ = stores[0].tokenizer, stores[0].tgt_tokenizer  # which are taken over: refused if they were changed
    if not any(store.tokens_num for store in stores):
        raise DataError(f"{', '.join(config.input_paths)}: there is nothing in these token stores.")
    joined = _joined(stores)
    if why := _problem(stores[0], joined):
        raise DataError(f"{', '.join(config.input_paths)}: {why}")
    remove_leftovers(path)
    try:
        _write(stores, joined, path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(
            f"{option} {path}: {error.strerror}. Make room, or choose a place on the file system of the "
            "inputs, where the files are shared."
        ) from None
    return TokenStore.open(path)


def _write(stores: list[TokenStore], joined: dict[str, Any], path: Path) -> None:
    with complete_directory(path) as directory:
        shards = [
            _link_shard(store.path, directory, number, entry)
            for number, (store, entry) in enumerate(
                (store, entry) for store in stores for entry in store.meta["shards"] if entry["sentences_num"]
            )
        ]
        for side in SIDES:
            if side in stores[0].meta:
                shutil.copytree(stores[0].path / side, directory / side)
        meta = stores[0].meta | joined | {"shards": shards}
        write_json(directory / "meta.json", meta | {"checksum": checksum(meta)})


def _short(value: Any) -> Any:
    return f"{value['kind']} {value['fingerprint'][:8]}" if isinstance(value, dict) else value


def _in_order(stores: list[TokenStore]) -> list[TokenStore]:
    paths = [store.path for store in stores]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise DataError(f"{twice} is given twice.")
    parts = [store.meta["corpus"].get("part") for store in stores]
    if not any(parts):
        return stores
    if None in parts:
        whole = paths[parts.index(None)]
        raise DataError(f"{whole} is no part of a corpus, as others are; join the parts first.")
    first = parts[0]
    for path, part in zip(paths, parts, strict=True):
        if (part["of"], part["corpus"]) != (first["of"], first["corpus"]):
            raise DataError(
                f"{paths[0]} and {path} are not parts of one corpus, or of another number of parts; make "
                "them with the same --corpus_path and --shard 1/n to n/n."
            )
    by_number = {part["number"]: store for part, store in zip(parts, stores, strict=True)}
    if missing := [str(number) for number in range(1, first["of"] + 1) if number not in by_number]:
        raise DataError(f"of {first['of']} parts, {', '.join(missing)} is missing; give all of them.")
    if len(stores) > first["of"]:
        raise DataError(f"of {first['of']} parts {len(stores)} are given; leave out what is there twice.")
    return [by_number[number] for number in sorted(by_number)]


def _problem(store: TokenStore, joined: dict[str, Any]) -> str:
    """Why parts, of which `store` is one, are of no use to the processor they were made for; empty: they are.
    What is no part was checked when it was made.
    """
    name = store.meta["corpus"].get("part", {}).get("processor")
    if name not in PROCESSORS:
        return ""
    found: str = PROCESSORS[name].problem(joined["documents_num"], joined["sentences_num"])
    return found


def _link_shard(source: Path, target: Path, number: int, entry: dict[str, Any]) -> dict[str, Any]:
    files = {}
    for name, file in entry["files"].items():
        new_name = f"{number:05d}.{name.partition('.')[2]}"
        try:
            (target / new_name).hardlink_to(source / name)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source / name, target / new_name)
        files[new_name] = file
    return entry | {"files": files}


def _joined(stores: list[TokenStore]) -> dict[str, Any]:
    """What meta.json says of all of them together."""
    corpora = [store.meta["corpus"] for store in stores]
    corpus = {name: sum(each.get(name, 0) for each in corpora) for name in SUMS}
    corpus["files"] = list(dict.fromkeys(file for each in corpora for file in each.get("files", ())))
    corpus["bad_lines"] = [line for each in corpora for line in each.get("bad_lines", ())][:EXAMPLES]
    common = set.intersection(*(set(store.options) for store in stores))
    options = {name: value for name, value in stores[0].options.items() if name in common}
    for store in stores[1:]:
        options = {name: value for name, value in options.items() if store.options[name] == value}
    return {
        **{count: sum(store.meta[count] for store in stores) for count in COUNTS},
        "labels_num": max(store.labels_num for store in stores),
        "options": options,
        "corpus": corpus,
    }
