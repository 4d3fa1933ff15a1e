"""What engines of several processes share: a group of torch.distributed."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from tencentpretrain.errors import ConfigError, UserError
from tencentpretrain.training.engines.base import Engine
from tencentpretrain.training.engines.processes import Place, meeting_store
from tencentpretrain.training.engines.ranks import GroupRanks, watching

_SEED_OF_RANK = 0x85EBCA6B  # odd, so that no two ranks share a seed


class GroupEngine(Engine):
    """One process of several that train one model.

    Args:
        backend: of torch.distributed; None: nccl on GPUs, gloo on CPUs.
    """

    def __init__(
        self, place: Place, precision: str = "auto", compile: bool = False, backend: str | None = None
    ) -> None:
        self.rank, self.world_size = place.rank, place.world_size
        super().__init__((_device_of(place), []), precision, compile)
        self.backend = backend or ("nccl" if self.device.type == "cuda" else "gloo")
        if self.backend == "nccl" and self.device.type != "cuda":
            raise ConfigError("--backend nccl needs GPUs, but there is none; use gloo, or leave it out.")
        self._own_group = False
        self._background: GroupRanks | None = None

    @property
    def title(self) -> str:
        return f"{self.name}, {self.world_size} process{'es' * (self.world_size > 1)}, {self.backend}"

    def start(self) -> None:
        if not dist.is_initialized():
            self._own_group = True
            place = Place(self.rank, self.world_size)
            dist.init_process_group(
                self.backend,
                rank=self.rank,
                world_size=self.world_size,
                store=meeting_store(place) if self.world_size > 1 else dist.HashStore(),  # type: ignore[attr-defined]
                device_id=self.device if self.backend == "nccl" else None,
            )
        # Numbers on the host go another way than gradients, so that no device is waited for.
        host = dist.group.WORLD if self.backend == "gloo" else dist.new_group(backend="gloo")
        assert host is not None
        self.ranks: GroupRanks = GroupRanks(host)

    def background_ranks(self) -> GroupRanks:
        if self._background is None:
            group = dist.new_group(backend="gloo")
            assert group is not None
            self._background = GroupRanks(group)
        return self._background

    def close(self) -> None:
        super().close()
        self.ranks.barrier()
        if self._own_group:
            time.sleep(0.3)  # torch 2.13: a process that leaves at once may abort at exit
            dist.destroy_process_group()

    def seed(self, seed: int) -> None:
        """Start the device's random numbers (dropout) anew, those of each rank elsewhere."""
        super().seed((seed + self.rank * _SEED_OF_RANK) % 2**32)

    def backward(self, loss: Tensor) -> None:
        with watching():
            super().backward(loss)

    def reduce(self, values: Mapping[str, float]) -> dict[str, float]:
        totals: dict[str, float] = {}
        for text in self.ranks.gather(json.dumps(dict(values))):
            for name, value in json.loads(text).items():
                totals[name] = totals.get(name, 0) + value
        return totals

    def add_up(self, value: Tensor) -> Tensor:
        total = value.detach().clone()
        with watching():
            dist.all_reduce(total)
        return total

    def agree(self, value: int) -> int:
        return self.ranks.agree(value)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        try:
            with self.ranks.agreed():
                yield
        except UserError:
            self.close()
            raise


def _device_of(place: Place) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if place.local_rank >= count:
        raise ConfigError(
            f"every process needs a GPU of its own: this is number {place.local_rank + 1} on this machine, "
            f"which has {count}."
        )
    device = torch.device("cuda", place.local_rank)
    torch.cuda.set_device(device)
    return device
