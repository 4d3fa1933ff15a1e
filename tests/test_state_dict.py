"""Files that hold tensors, and files that do not: each is named for what it is."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import random
import re
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tencentpretrain.errors import UserError, WeightsError
from tencentpretrain.state_dict import read_tensors, save_weights, strip_wrappers

TENSORS = {
    "encoder.weight": torch.arange(600.0).reshape(20, 30),
    "encoder.bias": torch.ones(20, dtype=torch.float16),
}

OLD = {"_use_new_zipfile_serialization": False}


class Command:
    """Unpickling it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["weights.bin", "weights.safetensors", "model.bin-100"])
def test_saved_and_read(tmp_path: Path, name: str) -> None:
    save_weights(TENSORS, tmp_path / name)
    assert equal(read_tensors(tmp_path / name), TENSORS)
    assert [file.name for file in tmp_path.iterdir()] == [name]  # no temporary file is left
    (tmp_path / "other").touch()
    assert (tmp_path / name).stat().st_mode == (tmp_path / "other").stat().st_mode
    if not name.endswith("safetensors"):
        assert equal(torch.load(tmp_path / name, weights_only=True), TENSORS)


def test_content_counts_and_not_the_name(tmp_path: Path) -> None:
    save_weights(TENSORS, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(tmp_path / "a.bin")
    assert equal(read_tensors(tmp_path / "a.bin"), TENSORS)


def test_views_and_ties(tmp_path: Path) -> None:
    whole = torch.arange(3_000_000.0)
    tied = torch.ones(1000)
    tensors = {"part": whole[5:8], "one": tied, "two": tied, "turned": torch.ones(20, 30).T}
    for name in ("a.bin", "a.safetensors"):
        save_weights(tensors, tmp_path / name)
        assert equal(read_tensors(tmp_path / name), tensors)
        assert (tmp_path / name).stat().st_size < 20_000  # a view does not bring the whole along
    read = torch.load(tmp_path / "a.bin", weights_only=True)
    assert read["one"].data_ptr() == read["two"].data_ptr()


def test_old_torch_format_and_wrappers(tmp_path: Path) -> None:
    path = tmp_path / "old.bin"
    for wrapped in (
        TENSORS,
        {"model": TENSORS, "step": 3},
        {"model": {"state_dict": TENSORS}, "step": 3},
        {"state_dict": TENSORS},
        {"module": TENSORS, "epoch": 1},
    ):
        torch.save(wrapped, path, _use_new_zipfile_serialization=False)
        assert equal(read_tensors(path), TENSORS)
    prefixed = {f"module._orig_mod.{name}": tensor for name, tensor in TENSORS.items()}
    assert equal(strip_wrappers(prefixed), TENSORS)
    ours = {"embedding.word.embedding.weight": torch.ones(2), "encoder.a": torch.ones(1)}
    assert equal(strip_wrappers({f"module.model.{name}": ours[name] for name in ours}), ours)
    torch.save({"net": TENSORS, "epoch": 3}, tmp_path / "nested.bin")
    with pytest.raises(WeightsError, match=r"entries with more in them \(net\)"):
        read_tensors(tmp_path / "nested.bin")


@pytest.mark.parametrize("name", ["weights.bin", "weights.safetensors"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    save_weights(TENSORS, tmp_path / name)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (100_000, limit[1])
    )  # what a write beyond it meets is as a full disk
    try:
        with pytest.raises(OSError, match=re.escape(str(tmp_path / name))) as caught:
            save_weights({"large": torch.ones(100_000)}, tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert caught.value.errno == errno.EFBIG
    assert equal(read_tensors(tmp_path / name), TENSORS) and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["a.bin", "a.safetensors", "old.bin"])
def test_damage_anywhere_is_a_message(tmp_path: Path, name: str) -> None:
    if name == "old.bin":
        torch.save(TENSORS, tmp_path / name, **OLD)
    else:
        save_weights(TENSORS, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    chance = random.Random(1)
    for attempt in range(60):
        damaged = bytearray(whole[: chance.randrange(len(whole))] if attempt % 2 else whole)
        for _ in range(attempt % 5):
            if damaged:
                damaged[chance.randrange(min(len(damaged), 600))] = chance.randrange(256)
        (tmp_path / "damaged").write_bytes(damaged)
        with contextlib.suppress(UserError):  # a changed number is no damage that can be seen
            assert read_tensors(tmp_path / "damaged")


def write_lfs(path: Path) -> None:
    path.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 412\n", encoding="utf-8"
    )


def write_truncated(name: str, keep: float, **options: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        if name.endswith("safetensors"):
            save_weights(TENSORS, path.with_name(name))
        else:
            torch.save(TENSORS, path.with_name(name), **options)
        content = path.with_name(name).read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])

    return write


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "no tensors")


def write_damaged_header(path: Path) -> None:
    header = b'{"a": {"dtype": "F32"'.ljust(40)
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 64)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b""), r"is empty \(0 bytes\)"),
        (write_lfs, "git-lfs pointer.*git lfs pull"),
        (lambda path: path.write_text("\n <!DOCTYPE html><p>404", encoding="utf-8"), "an HTML page"),
        (lambda path: path.write_text("<html>", encoding="utf-8-sig"), "an HTML page"),
        (lambda path: path.write_text("权重 " * 90, encoding="utf-8"), "a text file that begins with '权"),
        (lambda path: path.write_bytes(bytes(5000)), "full of zero bytes"),
        (lambda path: path.write_bytes(bytes(range(256)) * 20), "in no format known"),
        (lambda path: path.write_bytes(b"\x1f\x8b\x08" + bytes(50)), "a gzip archive; unpack"),
        (lambda path: path.write_bytes(b"\x89HDF\r\n" + bytes(50)), "an HDF5 file"),
        (write_truncated("whole.bin", 0.6), "truncated or damaged PyTorch file"),
        (write_truncated("whole.bin", 0.99), "truncated or damaged PyTorch file"),
        (write_truncated("whole.bin", 0.5, **OLD), "truncated or damaged PyTorch file"),
        (write_truncated("whole.bin", 0.01, **OLD), "truncated or damaged PyTorch file"),
        (write_truncated("whole.safetensors", 0.6), r"truncated safetensors file \(\d+ of \d+ bytes\)"),
        (write_truncated("whole.safetensors", 0.02), "truncated safetensors file"),
        (write_damaged_header, "damaged safetensors file"),
        (write_zip, "a zip archive without PyTorch tensors"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1}, 4)), "a pickle that may have code"),
        (lambda path: torch.save([torch.ones(1)], path), "holds a list; expected a state dict"),
        (lambda path: torch.save({"a": torch.ones(1), "lr": 0.1}, path), "1 of 2 entries are not"),
    ],
)  # fmt: skip
def test_named_for_what_it_is(tmp_path: Path, write: Callable[[Path], None], message: str) -> None:
    path = tmp_path / "weights.bin"
    write(path)
    with pytest.raises(WeightsError, match=message) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("options", [{}, OLD])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, options: dict[str, Any]) -> None:
    torch.save({"weight": torch.ones(1), "x": Command(tmp_path / "harm")}, tmp_path / "evil.bin", **options)
    with pytest.raises(WeightsError, match=r"a pickle with code in it \((posix|nt)\.mkdir\)"):
        read_tensors(tmp_path / "evil.bin")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps({"x": Command(tmp_path / "harm")}))
    with pytest.raises(WeightsError, match="a pickle that may have code in it"):
        read_tensors(tmp_path / "plain.bin")
    assert not (tmp_path / "harm").exists()


def test_a_name_that_is_almost_there(tmp_path: Path) -> None:
    (tmp_path / "model.bin-500").touch()
    with pytest.raises(WeightsError, match=r"no such file \(there are model\.bin-500\)"):
        read_tensors(tmp_path / "model.bin")


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_directory_of_shards(tmp_path: Path, suffix: str) -> None:
    parts = [{name: tensor} for name, tensor in TENSORS.items()]
    for number, part in enumerate(parts):
        save_weights(part, tmp_path / f"tencentpretrain_model-{number}{suffix}")
    torch.save({"args": Command(tmp_path)}, tmp_path / "training_args.bin")
    assert equal(read_tensors(tmp_path), TENSORS)
    places = {
        name: f"tencentpretrain_model-{number}{suffix}" for number, part in enumerate(parts) for name in part
    }
    index = tmp_path / f"tencentpretrain_model{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    assert equal(read_tensors(tmp_path), TENSORS)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"a": "away.bin"}, "1 files that are not there: away.bin"),
        ({"a": "../weights.bin"}, "outside its directory"),
        ({"a": "shard.bin", "b": "shard.bin"}, "1 tensors that no file holds: b"),
        (None, "no 'weight_map'"),
    ],
)
def test_broken_index(tmp_path: Path, places: Any, message: str) -> None:
    save_weights({"a": torch.ones(2)}, tmp_path / "shard.bin")
    (tmp_path / "model.bin.index.json").write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_tensors(tmp_path)


def test_directories_that_are_not_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"without weights.*it holds nothing"):
        read_tensors(tmp_path)
    (tmp_path / "tf_model.h5").touch()
    with pytest.raises(WeightsError, match=r"without weights.*it holds tf_model\.h5"):
        read_tensors(tmp_path)
    save_weights({"a": torch.ones(2)}, tmp_path / "one.bin")
    save_weights({"a": torch.zeros(2)}, tmp_path / "two.bin")
    with pytest.raises(WeightsError, match="'a' is in another file"):
        read_tensors(tmp_path)
