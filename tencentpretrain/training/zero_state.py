"""Training states as DeepSpeed writes them, by the names of `training.sharded`."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tencentpretrain.state_dict import LazyTensors

ZERO = "deepspeed"  # the directory of a state with DeepSpeed's files
_WEIGHT = "weight"  # what belongs to a parameter, beside what the optimizer calls it


def load_file(path: Path | str, mmap: bool = True) -> Any:
    """A file of DeepSpeed's, mapped to memory. Of its own classes it makes those that hold numbers only."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with torch.serialization.safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


class DeepSpeedFiles:
    """How DeepSpeed writes and reads its files. An error waits until all ranks are done.

    Attributes:
        caught: where states go instead of to the disk, by path; None: to the disk.
    """

    def __init__(self) -> None:
        self._error: OSError | RuntimeError | None = None
        self.caught: dict[str, Any] | None = None

    def save(self, state_dict: Any, path: str) -> None:
        if self.caught is not None:
            self.caught[path] = state_dict
            return
        try:
            torch.save(state_dict, path)
        except (OSError, RuntimeError) as error:  # torch tells of a full disk by the latter
            self._error = error

    def check(self) -> None:
        """Raise the error there was."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def load(self, path: str, map_location: Any = None) -> Any:
        return load_file(path, mmap=False)  # DeepSpeed keeps what it gets

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        Path(path).mkdir(parents=True, exist_ok=exist_ok)

    def create(self, info: object) -> None:
        """A save begins: nothing is to be prepared."""

    def commit(self, info: object) -> bool:
        return True

    def is_decoupled(self) -> bool:
        return False


class _Part:
    """What one rank wrote: pieces of parameters in flat tensors, one for each group of parameters."""

    def __init__(self, path: Path, shapes: Sequence[Mapping[str, torch.Size]]) -> None:
        state = load_file(path)["optimizer_state_dict"]
        whole_stage = "fp32_flat_groups" in state  # stage 3
        weights = state["fp32_flat_groups" if whole_stage else "single_partition_of_fp32_groups"]
        kept = state["optimizer_state_dict" if whole_stage else "base_optimizer_state"]["state"]
        self.flat = [{_WEIGHT: flat} | kept.get(group, {}) for group, flat in enumerate(weights)]
        self.pieces: dict[str, tuple[int, int, int]] = {}  # group, start, length
        if whole_stage:  # each rank has an equal part of each parameter, one behind the other
            for group, named in enumerate(shapes):
                start = 0
                for name, shape in named.items():
                    length = math.ceil(shape.numel() / state["partition_count"])
                    self.pieces[name] = group, start, length
                    start += length
        else:
            for group, addresses in enumerate(state["param_slice_mappings"]):
                for name, address in addresses.items():
                    self.pieces[name] = group, address.start, address.numel


def read_zero(directory: Path) -> tuple[LazyTensors, dict[str, Tensor]]:
    """As `sharded.read_parts`: the tensors of a state by name, each put together when it is asked for."""
    files = directory / ZERO
    found = {
        int(number[1]): path
        for path in files.glob("*optim_states.pt")
        if (number := re.search(r"zero_pp_rank_(\d+)_", path.name))
    }
    model = load_file(min(files.glob("*mp_rank_00_model_states.pt")))
    parts = [_Part(found[rank], model["param_shapes"]) for rank in sorted(found)]
    shapes = {name: shape for group in model["param_shapes"] for name, shape in group.items()}

    def read(name: str, key: str) -> Tensor:
        pieces = []
        for part in parts:
            if name in part.pieces:
                group, start, length = part.pieces[name]
                tensor: Tensor = part.flat[group][key]
                if tensor.ndim == 0:
                    return tensor
                pieces.append(tensor[start : start + length])
        return torch.cat(pieces)[: shapes[name].numel()].view(shapes[name])

    makers: dict[str, tuple[str, Callable[[], Tensor]]] = {}
    like: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        group = next(part.pieces[name][0] for part in parts if name in part.pieces)
        for key, tensor in parts[0].flat[group].items():
            full = f"model/{name}" if key == _WEIGHT else f"optimizer/{name}/{key}"
            makers[full] = full, functools.partial(read, name, key)
            like[full] = torch.empty(shape if tensor.ndim else (), dtype=tensor.dtype, device="meta")
    for name in model["buffer_names"]:
        buffer = model["module"][name]
        makers[f"model/{name}"] = f"model/{name}", functools.partial(model["module"].get, name)
        like[f"model/{name}"] = torch.empty_like(buffer, device="meta")
    return LazyTensors(makers), like


def fill_zero(zero: Any, model: nn.Module, stored: Mapping[str, Tensor]) -> None:
    """Overwrite what DeepSpeed's optimizer `zero` has on this rank: of tensors by name, its pieces."""
    states: dict[str, list[str]] = {}
    for full in stored:
        kind, _, rest = full.partition("/")
        if kind == "optimizer":
            states.setdefault(rest.rpartition("/")[0], []).append(rest.rpartition("/")[2])
    keep = zero.optimizer.state
    with torch.no_grad():
        for name, flat, start, length, offset in _pieces(zero, model):
            piece, part = slice(start, start + length), slice(offset, offset + length)
            flat[piece] = stored[f"model/{name}"].flatten()[part]
            for key in states.get(name, ()):
                value = stored[f"optimizer/{name}/{key}"]
                if value.ndim == 0:
                    keep[flat][key] = value.clone()
                    continue
                if key not in keep[flat]:
                    keep[flat][key] = torch.zeros_like(flat)
                keep[flat][key][piece] = value.flatten()[part]
    if hasattr(zero, "update_lp_params"):
        zero.update_lp_params()
    else:  # stage 3 does so when it takes over a state
        zero.checkpoint_event_prologue()
        zero.load_state_dict({dist.get_rank(): zero.state_dict()})
        zero.checkpoint_event_epilogue()


def _pieces(zero: Any, model: nn.Module) -> Iterator[tuple[str, Tensor, int, int, int]]:
    """Of each parameter that this rank has a piece of: name, the flat tensor, where in it the piece begins,
    its length, and where in the parameter it begins.
    """
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id"):  # stage 3
            group, start, length = zero.grad_position[zero.get_param_id(parameter)]
            offset = length * dist.get_rank()
            yield (
                name, zero.fp32_partitioned_groups_flat[group], start,
                max(min(length, parameter.ds_numel - offset), 0), offset,  # type: ignore[attr-defined]
            )  # fmt: skip
        elif (mapping := parameter._hp_mapping) is not None:  # type: ignore[attr-defined]
            bf16 = hasattr(zero, "fp32_groups_flat_partition")
            flats = zero.fp32_groups_flat_partition if bf16 else zero.single_partition_of_fp32_groups
            own = mapping.hp_fragment_address
            offset = mapping.lp_fragment_address.start
            yield name, flats[mapping.param_group_index], own.start, own.numel, offset
