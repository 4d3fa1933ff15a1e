"""The processes of a run: which one this is, and how a program starts those of its machine."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from types import FrameType

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from tencentpretrain.errors import ConfigError, GroupLostError, run_program

_GRACE = 30  # seconds that the others have to end after one of a group has
_STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit statuses of who was asked to stop


@dataclasses.dataclass(frozen=True)
class Place:
    """A process's place among those of a run.

    Attributes:
        local_rank: its number on its machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @staticmethod
    def here() -> Place | None:
        """What torchrun, or `run_processes`, told this process; None: nothing."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if not all(name in os.environ for name in names):
            return None
        return Place(*(int(os.environ[name]) for name in names))


def meeting_store(place: Place) -> dist.Store:  # type: ignore[name-defined]
    """Where the processes of a run meet, without what an earlier start of theirs has left there.

    torchrun keeps one store when it starts a group again, and in it are the addresses of processes that have
    ended. So the first rank gives every start a name; the others ask for it under names of their own, so
    that no old answer is taken for the new one.

    Raises:
        GroupLostError: not all came.
    """
    store = next(rendezvous("env://", place.rank, place.world_size))[0]
    own = uuid.uuid4().hex
    if place.rank > 0:
        store.set(f"ask/{place.rank}", own)
        name = store.get(f"answer/{own}").decode()
        store.set(f"{name}/{place.rank}", "here")
        return dist.PrefixStore(name, store)  # type: ignore[attr-defined]
    missing = set(range(1, place.world_size))
    deadline = time.monotonic() + store.timeout.total_seconds()
    while missing:
        if time.monotonic() > deadline:
            raise GroupLostError(f"the processes of ranks {sorted(missing)} have not come")
        for rank in missing:
            if store.check([f"ask/{rank}"]):
                store.set(f"answer/{store.get(f'ask/{rank}').decode()}", own)
        missing = {rank for rank in missing if not store.check([f"{own}/{rank}"])}
        time.sleep(0.01)
    return dist.PrefixStore(own, store)  # type: ignore[attr-defined]


def choose_engine(asked: str, world_size: int, deepspeed: bool = False) -> str:
    """The engine for a number of processes.

    Args:
        deepspeed: --deepspeed.

    Raises:
        ConfigError: the one asked for trains in one process, or two are asked for.
    """
    if deepspeed and asked not in ("auto", "deepspeed"):
        raise ConfigError(f"--deepspeed is --engine deepspeed, but --engine is {asked}; leave one out.")
    if deepspeed:
        return "deepspeed"
    if asked == "single" and world_size > 1:
        raise ConfigError(
            f"--engine single trains in one process, but there are {world_size}; use ddp or auto."
        )
    if asked == "auto":
        return "ddp" if world_size > 1 else "single"
    return asked


def run_processes(
    main: Callable[[], None], world_size: int, ranks: Sequence[int], address: str | None
) -> None:
    """Run `main` in a process for each rank of this machine, with what torchrun would tell it; return when
    all have ended well.

    The first Ctrl-C or SIGTERM is handed on, and all are waited for; after a second one they are killed.

    Args:
        address: where the processes of several machines meet, `tcp://host:port`; None: there is one machine.

    Raises:
        SystemExit: one of them did not end well; with its exit status. The others are ended.
    """
    host, port = _host_and_port(address) if address else ("127.0.0.1", 0)
    # The meeting point lives here, so that no port has to be guessed, and it outlives every rank.
    store = dist.TCPStore(  # type: ignore[attr-defined]
        host, port, world_size, 0 in ranks, wait_for_workers=False
    )
    told = {
        "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(len(ranks)), "MASTER_ADDR": host,
        "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(
            target=_be_rank,
            args=(main, told | {"RANK": str(rank), "LOCAL_RANK": str(number)}),
            name=f"rank {rank}",
        )
        for number, rank in enumerate(ranks)
    ]
    with _handed_on(processes):
        for process in processes:
            process.start()
        failed = _wait_for(processes)
    if failed is None:
        return
    rank, status = ranks[processes.index(failed)], failed.exitcode or 0
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    if status not in (2, *_STOPPED):  # of which it has told itself
        print(f"error: the process of rank {rank} {how}, and with it the run", file=sys.stderr, flush=True)
    sys.exit(status if status > 0 else 1)


def _be_rank(main: Callable[[], None], told: Mapping[str, str]) -> None:
    """A process's `main`.

    Args:
        told: further variables of its environment.
    """
    os.setpgrp()  # the parent hands signals on; a terminal's Ctrl-C would come twice
    os.environ |= told
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(torch.get_num_threads() // int(told["LOCAL_WORLD_SIZE"]), 1))
    parent = multiprocessing.parent_process()
    assert parent is not None

    def stop_with_parent() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_with_parent, daemon=True).start()
    run_program(main)


def _wait_for(processes: Sequence[SpawnProcess]) -> SpawnProcess | None:
    """Wait until all have ended; give the first that did not end well, which ends the others unless all were
    asked to stop.
    """
    failed: SpawnProcess | None = None
    deadline: float | None = None
    running = list(processes)
    while running:
        left = None if deadline is None else max(deadline - time.monotonic(), 0)
        wait([process.sentinel for process in running], timeout=left)
        if deadline is not None and time.monotonic() >= deadline:
            for process in running:
                process.kill()
            deadline = None
        for process in [process for process in running if process.exitcode is not None]:
            running.remove(process)
            if process.exitcode and (failed is None or failed.exitcode in _STOPPED):
                failed = process
                deadline = time.monotonic() + _GRACE
                if process.exitcode not in _STOPPED:
                    for other in running:
                        other.terminate()
    return failed


@contextlib.contextmanager
def _handed_on(processes: Sequence[SpawnProcess]) -> Iterator[None]:
    """Hand the first SIGINT or SIGTERM on to the processes, kill them after a second."""
    received: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in processes:
            if process.pid is not None and process.exitcode is None:
                os.kill(process.pid, number if len(received) == 1 else signal.SIGKILL)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"--master_ip {address}: expected tcp://host:port.")
    return host, int(port)
