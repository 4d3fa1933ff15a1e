"""What the processes of a run tell each other on the host, whatever their devices exchange."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist

from tencentpretrain.errors import GroupLostError, SharedError, UserError

# What gloo and NCCL say when a process they talk to is gone.
_LOST = re.compile(r"gloo|nccl|connection|socket|broken pipe|timed? ?out", re.IGNORECASE)


class Ranks:
    """The processes of a run. This one is alone, so nothing has to be agreed upon.

    Attributes:
        rank: this one's number among `world_size`.
    """

    rank = 0
    world_size = 1

    def agree(self, value: int) -> int:
        """The largest value of all ranks: what one of them was told, all of them do."""
        return value

    def gather(self, text: str) -> list[str]:
        """The texts of all ranks."""
        return [text]

    def collect(self, value: Any) -> list[Any]:
        """The values of all ranks, whatever they are: this program's own, which travel pickled."""
        return [value]

    def first(self, text: str) -> str:
        """The text of rank 0."""
        return self.gather(text if self.rank == 0 else "")[0]

    def agreed(self) -> AbstractContextManager[None]:
        """All ranks are done with what is inside before one goes on; an error of one is an error of all.

        Raises:
            UserError: on every rank, with all problems, if one has raised a UserError or OSError inside.
        """
        return nullcontext()


ALONE = Ranks()


class GroupRanks(Ranks):
    """The processes of a gloo group of torch.distributed."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank, self.world_size = dist.get_rank(group), dist.get_world_size(group)

    def barrier(self) -> None:
        with watching():
            dist.barrier(self.group)

    def agree(self, value: int) -> int:
        largest = torch.tensor(value)
        with watching():
            dist.all_reduce(largest, dist.ReduceOp.MAX, self.group)
        return int(largest)

    def gather(self, text: str) -> list[str]:
        data = torch.tensor(list(text.encode()), dtype=torch.uint8)
        length = self.agree(len(data))
        if not length:
            return [""] * self.world_size
        padded = torch.zeros(length, dtype=torch.uint8)
        padded[: len(data)] = data
        texts = [torch.empty_like(padded) for _ in range(self.world_size)]
        with watching():
            dist.all_gather(texts, padded, self.group)
        return [bytes(each.tolist()).rstrip(b"\0").decode() for each in texts]

    def collect(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world_size
        with watching():
            dist.all_gather_object(values, value, self.group)
        return values

    @contextlib.contextmanager
    def agreed(self) -> Iterator[None]:
        problem = ""
        try:
            yield
        except (UserError, OSError) as error:
            problem = str(error)
        problems = [text for text in self.gather(problem) if text]
        if problems:
            message = "\n".join(dict.fromkeys(problems))
            raise UserError(message) if self.rank == 0 else SharedError(message)


@contextlib.contextmanager
def watching() -> Iterator[None]:
    """Tell the loss of another process from other errors."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or not _LOST.search(str(error)):
            raise
        first = str(error).strip().splitlines()[0]
        raise GroupLostError(f"another process of the group has ended ({first})") from error
