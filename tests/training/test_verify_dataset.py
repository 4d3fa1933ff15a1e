from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tencentpretrain.errors import DataError
from tencentpretrain.training.settings import read_settings


def test_files_are_compared_with_their_checksums_when_asked(
    arguments: Callable[..., list[str]], workplace: Path, tmp_path: Path
) -> None:
    store = shutil.copytree(workplace / "train", tmp_path / "store")
    read_settings(arguments(dataset_path=store, verify_dataset="true"))
    for name in ("00000.tokens", "00000.documents"):
        content = (store / name).read_bytes()
        (store / name).write_bytes(bytes(4) * 2 + content[8:])
        read_settings(arguments(dataset_path=store))  # reads nothing of it
        with pytest.raises(DataError, match=rf"{name} was changed after it was made"):
            read_settings(arguments(dataset_path=store, verify_dataset="true"))
        (store / name).write_bytes(content)
