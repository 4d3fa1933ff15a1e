"""Files that appear when they are complete, and what is said where they cannot."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tencentpretrain.files import complete_directory, complete_file, complete_files, write_json

TOO_LONG = "n" * 250  # for a name with more to it


def test_an_error_names_what_was_to_be_written(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        write_json(tmp_path / TOO_LONG, {})
    assert caught.value.filename == str(tmp_path / TOO_LONG)
    with pytest.raises(OSError) as caught, complete_directory(Path("/proc/model")):
        pass  # nobody may write there
    assert caught.value.filename == "/proc/model"
    directory = tmp_path / "directory"
    with pytest.raises(OSError) as caught, complete_directory(directory) as temporary:
        (temporary / "inner").mkdir()
        write_json(temporary / "inner" / TOO_LONG, {})
    assert caught.value.filename == str(directory / "inner" / TOO_LONG)
    with pytest.raises(IsADirectoryError) as caught, complete_file(tmp_path / "file") as temporary:
        temporary.write_text("text", encoding="utf-8")
        (tmp_path / "file").mkdir()
    assert caught.value.filename == str(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_full_disk_names_it_and_other_errors_stay(tmp_path: Path) -> None:
    first, last = tmp_path / "first", tmp_path / "last"
    for error, name in (
        (OSError(errno.ENOSPC, "No space left on device"), str(last)),
        (OSError(errno.EPIPE, "Broken pipe"), None),
        (FileNotFoundError(errno.ENOENT, "No such file", "other"), "other"),
    ):
        with pytest.raises(OSError) as caught, complete_files(first, last):
            raise error
        assert caught.value.filename == name
