"""Tensors by name in files: reading, writing, and naming for what it is a file that holds none.

Nothing is ever unpickled except by torch.load(weights_only=True).
"""

from __future__ import annotations

import functools
import gc
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tencentpretrain.errors import WeightsError
from tencentpretrain.files import complete_file, read_json

StateDict = dict[str, Tensor]


class LazyTensors(Mapping[str, Tensor]):
    """Tensors that are made when they are asked for, and kept by nobody.

    In their order they cost the memory of one file at a time, if whoever asks does not keep them.

    Args:
        makers: what makes a tensor, by its name, and what it is made from: equal for two names of one tensor.
    """

    def __init__(self, makers: Mapping[str, tuple[Hashable, Callable[[], Tensor]]]) -> None:
        self.makers = makers

    def __getitem__(self, name: str) -> Tensor:
        return self.makers[name][1]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.makers)

    def __len__(self) -> int:
        return len(self.makers)

    def __contains__(self, name: object) -> bool:
        return name in self.makers


def origin(tensors: Mapping[str, Tensor], name: str) -> Hashable:
    """Equal for two names that stand for one tensor."""
    if isinstance(tensors, LazyTensors):
        return tensors.makers[name][0]
    tensor = tensors[name]
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> Mapping[str, Tensor]:
    """Some of the tensors, each under a new name that `names` maps to its present one."""
    if not isinstance(tensors, LazyTensors):
        return {new: tensors[old] for new, old in names.items()}
    return LazyTensors({new: tensors.makers[old] for new, old in names.items()})


def assign(parameter: Tensor, value: Tensor) -> None:
    """Copy a tensor into a parameter, of which this process may hold a part only (a DTensor)."""
    if hasattr(parameter, "placements"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(parameter, DTensor)
        # Every process has the value and takes its own part: nothing is sent.
        part = distribute_tensor(
            value.to(parameter.device_mesh.device_type), parameter.device_mesh, parameter.placements,
            src_data_rank=None,
        )  # fmt: skip
        parameter, value = parameter.to_local(), part.to_local()
    parameter.copy_(value)


_MAGIC = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself; fetch that with 'git lfs pull'"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"\xfd7zXZ", "an xz archive; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstandard archive; unpack it first"),
    (b"\x89HDF", "an HDF5 file (TensorFlow or Keras weights); expected PyTorch or safetensors weights"),
    (b"GGUF", "a GGUF file (llama.cpp); expected PyTorch or safetensors weights"),
)  # fmt: skip
_WEBPAGE = (b"<!doctype", b"<html", b"<head", b"<?xml")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")  # Lightning, many loops, fairseq, DeepSpeed
_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
WHOLE = ("model.safetensors", "pytorch_model.bin", "model.pt")
_OTHER_STATE = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "training.pt")


def read_tensors(path: Path) -> Mapping[str, Tensor]:
    """Tensors of a file (torch.save or safetensors, told apart by content) or of a directory of such files.

    Of several files only one is open at a time (`LazyTensors`).

    Raises:
        WeightsError: what the path is instead of weights, and what to do.
    """
    if path.is_dir():
        return _read_directory(path)
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise WeightsError(
            f"{path}: no such file{neighbours(path)}; weights are expected, a file or a directory of them."
        ) from None
    size = path.stat().st_size
    if not size:
        raise WeightsError(f"{path} is empty (0 bytes); the copy or download that made it did not work.")
    for magic, what in _MAGIC:
        if head.startswith(magic):
            raise WeightsError(f"{path} is {what}.")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_WEBPAGE):
        raise WeightsError(
            f"{path} is an HTML page, not weights: the download got a web page instead of the file."
        )
    if head[8:9] == b"{":
        return _read_safetensors(path, size)
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return _read_torch(path)
    raise WeightsError(f"{path} is {_kind_of_unknown(head)}; expected a file of torch.save or safetensors.")


def neighbours(path: Path) -> str:
    """Names that begin alike, such as the steps of a run that has not ended."""
    near = sorted(other.name for other in path.parent.glob("*") if other.name.startswith(f"{path.name}-"))
    return f" (there are {', '.join(near[:4])})" if near else ""


def _kind_of_unknown(head: bytes) -> str:
    if not head.strip(b"\0"):
        return "full of zero bytes (a copy or download that was interrupted)"
    for cut in range(4):  # the last character may be cut in half
        try:
            text = head[: len(head) - cut].decode("utf-8")
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return f"a text file that begins with {text.strip()[:40]!r}"
    return "in no format known here"


def _read_safetensors(path: Path, size: int) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        expected = _safetensors_size(path)
        if expected is None or expected > size:
            promised = "" if expected is None else f" of {expected}"
            raise WeightsError(
                f"{path} is a truncated safetensors file ({size}{promised} bytes); copy or download it again."
            ) from None
        raise WeightsError(f"{path} is a damaged safetensors file: {error}.") from None


def _safetensors_size(path: Path) -> int | None:
    """Bytes the file should have, from its header; None where even that is cut off."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if 8 + length > path.stat().st_size:
            return None
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, LookupError, TypeError, AttributeError):
            return 0
    return 8 + length + max(ends, default=0)


def _read_torch(path: Path) -> StateDict:
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    damaged = WeightsError(f"{path} is a truncated or damaged PyTorch file; copy or download it again.")
    try:
        if zipped:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
            if not any(name.endswith("data.pkl") for name in names):
                raise WeightsError(
                    f"{path} is a zip archive without PyTorch tensors; expected a file of torch.save."
                )
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None and "Unsupported operand" not in str(error):
            raise damaged from None
        raise WeightsError(
            f"{path} is a pickle {f'with code in it ({found[1]})' if found else 'that may have code in it'}, "
            "not a plain state dict; as it could run code, it was not opened. If you trust its origin, save "
            "the model's state_dict() again where it was made."
        ) from None
    except (OSError, MemoryError, WeightsError):
        raise
    except Exception:  # damage shows as almost any error: struct, index, type, runtime …
        raise damaged from None
    return _unwrap(path, loaded)


def _unwrap(path: Path, loaded: Any) -> StateDict:
    while isinstance(loaded, Mapping):
        inner = next((loaded[name] for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}; expected a state dict (name → tensor).")
    others = [str(name) for name, value in loaded.items() if not isinstance(value, Tensor)]
    nested = [str(name) for name, value in loaded.items() if isinstance(value, Mapping)]
    if len(others) == len(loaded) and nested:
        raise WeightsError(
            f"{path} holds no tensors itself, but entries with more in them ({', '.join(nested[:4])}); "
            "save the one that is the state dict by itself."
        )
    if others:
        raise WeightsError(
            f"{path}: {len(others)} of {len(loaded)} entries are not tensors ({', '.join(others[:4])} …); "
            "expected a state dict (name → tensor)."
        )
    return dict(loaded)


def _read_directory(path: Path) -> Mapping[str, Tensor]:
    for name in WHOLE:
        if (path / name).is_file():
            return read_tensors(path / name)
    indexes = sorted(
        path.glob("*.index.json"), key=lambda index: (".safetensors" not in index.name, index.name)
    )
    if indexes:
        return _read_indexed(indexes[0])
    for suffix in (".safetensors", ".bin", ".pt"):
        shards = sorted(file for file in path.glob(f"*{suffix}") if file.name not in _OTHER_STATE)
        if shards:
            return _together(shards)
    there = sorted(file.name for file in path.iterdir())
    raise WeightsError(
        f"{path} is a directory without weights (expected model.safetensors, pytorch_model.bin or shards; "
        f"it holds {', '.join(there[:6]) + (' …' if len(there) > 6 else '') if there else 'nothing'})."
    )


def _read_indexed(index: Path) -> Mapping[str, Tensor]:
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise WeightsError(f"{index} has no 'weight_map' from tensor to file name.")
    names = sorted(set(places.values()))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise WeightsError(f"{index} names files outside its directory: {', '.join(outside[:3])}.")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise WeightsError(
            f"{index} names {len(missing)} files that are not there: {', '.join(missing[:3])}."
        )
    merged = _together([index.parent / name for name in names])
    absent = sorted(places.keys() - merged.keys())
    if absent:
        raise WeightsError(
            f"{index} names {len(absent)} tensors that no file holds: {', '.join(absent[:3])}."
        )
    return merged


def _together(shards: Sequence[Path]) -> Mapping[str, Tensor]:
    """The tensors of several files, of which one is open at a time."""
    if len(shards) == 1:
        return read_tensors(shards[0])

    current: dict[Path, Mapping[str, Tensor]] = {}

    def content(shard: Path) -> Mapping[str, Tensor]:
        if shard not in current:
            current.clear()
            if shard.suffix != ".safetensors":
                gc.collect()  # torch.load leaves cycles behind that hold the file
            current[shard] = read_tensors(shard)
        return current[shard]

    def make(shard: Path, name: str) -> Tensor:
        return content(shard)[name]

    makers: dict[str, tuple[Hashable, Callable[[], Tensor]]] = {}
    for shard in shards:
        for name in list(content(shard)):
            if name not in makers:
                makers[name] = ((shard, name), functools.partial(make, shard, name))
            elif not same(make(shard, name), makers[name][1]()):
                raise WeightsError(
                    f"{shard}: '{name}' is in another file of the directory too, with other values."
                )
    return LazyTensors(makers)


def in_words(shape: Sequence[int]) -> str:
    """2 × 3"""
    return " × ".join(map(str, shape)) or "one number"


def same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.dtype == other.dtype and torch.equal(one, other))


def strip_wrappers(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Names without the prefixes that wrappers of a model put before every one of them."""
    for prefix in _PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return strip_wrappers(renamed(tensors, {name.removeprefix(prefix): name for name in tensors}))
    # The attribute of a training class; elsewhere such names are part of a family's own.
    if any(name.startswith("model.embedding.") for name in tensors):
        return renamed(tensors, {name.removeprefix("model."): name for name in tensors})
    return tensors


def save_weights(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Write a state dict: safetensors if the name ends so, else torch.save; complete or not at all.

    Tensors that share memory (tied weights) share it in the file of torch.save; safetensors holds both.
    """
    path = Path(path)
    with complete_file(path) as temporary:
        write_tensors(tensors, temporary, path)


def write_tensors(tensors: Mapping[str, Tensor], temporary: Path, path: Path) -> None:
    """Write to `temporary` what is to be called `path`; see `save_weights`."""
    copies: dict[Hashable, Tensor] = {}
    plain: StateDict = {}
    for name in tensors:
        key = origin(tensors, name)
        if key not in copies or path.suffix == ".safetensors":
            own = tensors[name].detach().to("cpu").contiguous()
            # A view would drag everything it is a part of into the file.
            whole = own.untyped_storage().nbytes() == own.nbytes
            copies[key] = own if whole and key not in copies else own.clone()
        plain[name] = copies[key]
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            temporary.touch()
            mode = temporary.stat().st_mode  # as any file of this user; the library makes it private
            save_file(plain, temporary, metadata={"format": "pt"})
            temporary.chmod(mode)
        else:
            with temporary.open("wb") as file:
                torch.save(plain, file)
    except Exception as error:
        raise cause_on_disk(error, path) or error from None


def cause_on_disk(error: Exception, path: Path) -> OSError | None:
    """The failure of the operating system (a full disk) that a library's error hides."""
    if isinstance(error.__context__, OSError):
        number = error.__context__.errno
    else:
        found = re.search(r"\(os error (\d+)\)", str(error))
        number = int(found[1]) if found else None
    return None if number is None else OSError(number, os.strerror(number), str(path))
