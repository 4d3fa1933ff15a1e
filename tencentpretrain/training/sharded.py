"""Training states in parts (torch.distributed.checkpoint), and whole ones, as tensors by name.

A weight is called `model/<name>`, what the optimizer keeps of it `optimizer/<name>/<key>`; a tied weight has
one name. So a state is read whatever engine wrote it, with whatever number of ranks.
"""

from __future__ import annotations

import contextlib
import functools
import pickle
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_parts
from torch.distributed.checkpoint.state_dict_saver import save as save_parts
from torch.optim import Optimizer

from tencentpretrain.state_dict import LazyTensors, assign, read_tensors
from tencentpretrain.training.engines.base import in_parts, whole_weights
from tencentpretrain.training.engines.ranks import watching
from tencentpretrain.training.moving_average import KEY as AVERAGE
from tencentpretrain.training.zero_state import ZERO, read_zero

SHARDS = "shards"  # the directory of a state that holds its parts
_MODEL, _OPTIMIZER = "model/", "optimizer/"

warnings.filterwarnings("ignore", message="torch.distributed is disabled", module="torch.distributed")


def names_of(model: nn.Module) -> dict[str, str]:
    """All names of the model's state dict, each with that of its tensor: of tied weights it is the first."""
    first: dict[int, str] = {}
    names = {name: name for name in model.state_dict()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[name] = first.setdefault(id(parameter), name)
    return names


def tensors_of(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a state by name, not copied, and numbers that the optimizer keeps."""
    names, weights = names_of(model), model.state_dict()
    tensors = {_MODEL + name: weights[name] for name, own in names.items() if name == own}
    numbers: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{_OPTIMIZER}{name}/{key}"] = value
    return tensors, numbers


class _Unpickler(pickle.Unpickler):
    """Reads the list of contents, and makes nothing but such a list."""

    _ALLOWED = frozenset(
        {
            *(
                ("torch.distributed.checkpoint.metadata", name)
                for name in (
                    "Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata",
                    "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
                )
            ),
            ("torch.distributed.checkpoint.filesystem", "_StorageInfo"), ("torch", "Size"),
            ("torch.serialization", "_get_layout"), ("pathlib", "PosixPath"), ("pathlib", "WindowsPath"),
        }
    )  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name) if module == "torch" else None
        if (module, name) not in self._ALLOWED and not isinstance(found, torch.dtype):
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a training state")
        return found or super().find_class(module, name)


class _Reader(FileSystemReader):
    """Reads a state's parts; the list of contents once, and without running any code in it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        with (directory / ".metadata").open("rb") as file:
            self.metadata: Metadata = _Unpickler(file).load()
        self.metadata.storage_meta = StorageMeta(load_id=self.load_id)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self.metadata


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """An OSError of any rank, instead of what it is wrapped in."""
    try:
        yield
    except CheckpointException as error:
        for failure, _ in error.failures.values():
            if isinstance(failure, OSError):
                raise failure from None
        raise RuntimeError(str(error)) from error


def write_parts(directory: Path, tensors: Mapping[str, Tensor], group: dist.ProcessGroup) -> None:
    """Write a state's tensors. All ranks of the group come here, each with its own part.

    Raises:
        OSError: on every rank, if one cannot write.
    """
    writer = FileSystemWriter(directory / SHARDS, sync_files=False)  # whoever completes the state does that
    with watching(), _disk_errors():
        save_parts(dict(tensors), storage_writer=writer, process_group=group)


def read_parts(directory: Path) -> tuple[LazyTensors, dict[str, Tensor]]:
    """The tensors of a state by name, each put together when it is asked for; and their shapes and types."""
    if (directory / ZERO).is_dir():
        return read_zero(directory)
    reader = _Reader(directory / SHARDS)
    like = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for name, entry in reader.metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }

    def read(name: str) -> Tensor:
        whole = {name: torch.empty_like(like[name], device="cpu")}
        with _disk_errors():
            load_parts(whole, storage_reader=reader, no_dist=True)
        return whole[name]

    return LazyTensors({name: (name, functools.partial(read, name)) for name in like}), like


def read_weights(directory: Path, names: Mapping[str, str]) -> tuple[LazyTensors, dict[str, Tensor]]:
    """As `read_parts`, of the weights that are published, under their own names: averages, if there are any.

    Args:
        names: of `names_of`.
    """
    tensors, like = read_parts(directory)
    sources = {}
    for name, own in names.items():
        average = f"{_OPTIMIZER}{own}/{AVERAGE}"
        sources[name] = average if average in like else _MODEL + own
    weights = LazyTensors({name: tensors.makers[source] for name, source in sources.items()})
    return weights, {name: like[source] for name, source in sources.items()}


def stored_in(
    directory: Path, training: Mapping[str, Any], model: nn.Module, parameters: Iterable[nn.Parameter]
) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """The tensors and numbers of a state by name, whole, whichever engine wrote it.

    Args:
        training: of the state's `training.pt`.
        model: the one to be restored.
        parameters: of it, in the order of the optimizer, as a whole state numbers them.
    """
    if in_parts(directory):
        return read_parts(directory)[0], training["numbers"]
    weights = read_tensors(whole_weights(directory))
    tensors = {_MODEL + name: weights[name] for name, own in names_of(model).items() if name == own}
    numbers: dict[str, Any] = {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for number, parameter in enumerate(parameters):
        for key, value in training["optimizer"]["state"].get(number, {}).items():
            name = f"{_OPTIMIZER}{names[id(parameter)]}/{key}"
            (tensors if isinstance(value, Tensor) else numbers)[name] = value
    return tensors, numbers


def restore(
    model: nn.Module, optimizer: Optimizer, stored: Mapping[str, Tensor], numbers: Mapping[str, Any]
) -> None:
    """Take over a state by name; of tensors that this process has a part of, that part."""
    tensors = _room_for(model, optimizer, stored.keys() | numbers.keys())
    with torch.no_grad():
        for name, tensor in tensors.items():
            assign(tensor, stored[name])
    _take_numbers(model, optimizer, numbers)


def restore_parts(
    directory: Path,
    model: nn.Module,
    optimizer: Optimizer,
    numbers: Mapping[str, Any],
    group: dist.ProcessGroup,
) -> None:
    """As `restore`; each rank reads what it needs of the parts, whatever number of ranks wrote them."""
    reader = _Reader(directory / SHARDS)
    tensors = _room_for(model, optimizer, reader.metadata.state_dict_metadata.keys() | numbers.keys())
    with watching(), _disk_errors():
        load_parts(tensors, storage_reader=reader, process_group=group)
    _take_numbers(model, optimizer, numbers)


def _room_for(model: nn.Module, optimizer: Optimizer, stored: set[str]) -> dict[str, Tensor]:
    """The tensors to be overwritten: those of the model, and of an optimizer that keeps what is stored."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # makes room, in the shape that the optimizer wants, and changes no weight
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    kept = {name.rpartition("/")[0] for name in stored}
    for name, parameter in model.named_parameters():
        if _OPTIMIZER + name not in kept:  # it never had a gradient
            optimizer.state.pop(parameter, None)
        elif f"{_OPTIMIZER}{name}/{AVERAGE}" not in stored:  # it begins here
            optimizer.state[parameter].pop(AVERAGE, None)
    return tensors_of(model, optimizer)[0]


def _take_numbers(model: nn.Module, optimizer: Optimizer, numbers: Mapping[str, Any]) -> None:
    for name, parameter in model.named_parameters():
        for key in optimizer.state.get(parameter, {}):
            if (full := f"{_OPTIMIZER}{name}/{key}") in numbers:
                optimizer.state[parameter][key] = numbers[full]
