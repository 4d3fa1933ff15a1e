from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tencentpretrain.errors import DataError
from tencentpretrain.training.settings import read_settings


def test_all_of_a_large_dataset_is_compared_when_asked(
    arguments: Callable[..., list[str]], workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tencentpretrain.data.store.QUICK_TOKENS", 10)
    store = shutil.copytree(workplace / "train", tmp_path / "store")
    read_settings(arguments(dataset_path=store, verify_dataset="true"))
    tokens = store / "00000.tokens"
    tokens.write_bytes(bytes(tokens.stat().st_size))
    read_settings(arguments(dataset_path=store))
    with pytest.raises(DataError, match=r"00000\.tokens was changed after it was made"):
        read_settings(arguments(dataset_path=store, verify_dataset="true"))
