"""Weights files written tensor by tensor, for models that do not fit into memory."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from tencentpretrain.state_dict import LazyTensors, origin

_ALIGNMENT = 64  # of the tensors in a file of torch.save, so that they can be used where they lie
_SAFETENSORS_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip
# The classes by which files of torch.save name the type of a tensor.
_STORAGES = {
    torch.float64: torch.DoubleStorage, torch.float32: torch.FloatStorage, torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage, torch.int64: torch.LongStorage, torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage, torch.int8: torch.CharStorage, torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
}  # fmt: skip


def stream_tensors(tensors: LazyTensors, like: Mapping[str, Tensor], temporary: Path, path: Path) -> None:
    """Write to `temporary` what is to be called `path`, as `write_tensors`, with one tensor in memory.

    Args:
        like: tensors of the same shapes and types without contents, by name.
    """
    with temporary.open("wb") as file:
        if path.suffix == ".safetensors":
            _stream_safetensors(tensors, like, file)
        else:
            _stream_torch(tensors, like, file)


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


def _stream_safetensors(tensors: LazyTensors, like: Mapping[str, Tensor], file: IO[bytes]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in tensors:
        start, end = end, end + like[name].nbytes
        header[name] = {
            "dtype": _SAFETENSORS_TYPES[like[name].dtype],
            "shape": list(like[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in tensors:
        file.write(_bytes(tensors[name]))


class _Storage:
    """The numbers of a tensor that are written later."""

    def __init__(self, key: int, like: Tensor) -> None:
        self.reference = "storage", _STORAGES[like.dtype], str(key), "cpu", like.numel()


class _Tensor:
    """A tensor as files of torch.save describe it."""

    def __init__(self, storage: _Storage, like: Tensor) -> None:
        self.storage, self.size, self.stride = storage, tuple(like.shape), torch.empty(like.shape).stride()

    def __reduce__(self) -> tuple[Any, ...]:
        hooks: OrderedDict[str, Any] = OrderedDict()
        # Where it begins in the storage, size, strides, whether it has a gradient.
        return torch._utils._rebuild_tensor_v2, (self.storage, 0, self.size, self.stride, False, hooks)


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.reference if isinstance(value, _Storage) else None


def _stream_torch(tensors: LazyTensors, like: Mapping[str, Tensor], file: IO[bytes]) -> None:
    """The format of torch.save: a zip archive of a pickle and the storages, none of it compressed."""
    storages: dict[Hashable, _Storage] = {}
    first: list[str] = []  # of those that share a storage
    described = {}
    for name in tensors:
        key = origin(tensors, name)
        if key not in storages:
            storages[key] = _Storage(len(first), like[name])
            first.append(name)
        described[name] = _Tensor(storages[key], like[name])
    text = io.BytesIO()
    _Pickler(text, protocol=2).dump(described)
    with zipfile.ZipFile(file, "w") as archive:
        for record, content in (
            ("data.pkl", text.getvalue()), ("byteorder", b"little"), ("version", b"3\n"),
        ):  # fmt: skip
            archive.writestr(f"archive/{record}", content)
        for number, name in enumerate(first):
            entry = zipfile.ZipInfo(f"archive/data/{number}")
            # The header before the contents: 30 bytes, the name, 20 of large sizes, and what fills it up.
            begin = file.tell() + 30 + len(entry.filename) + 20 + 4
            fill = -begin % _ALIGNMENT
            entry.extra = struct.pack("<HH", 0x4246, fill) + b"Z" * fill
            with archive.open(entry, "w", force_zip64=True) as content_file:
                content_file.write(_bytes(tensors[name]))
