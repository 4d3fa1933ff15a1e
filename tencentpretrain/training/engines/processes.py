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
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from types import FrameType

import torch.distributed as dist

from tencentpretrain.errors import ConfigError, Terminated, run_program

_GRACE = 10  # seconds from SIGTERM to SIGKILL for what is left of a group that lost a process
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


def choose_engine(asked: str, world_size: int) -> str:
    """The engine for a number of processes.

    Raises:
        ConfigError: the one asked for trains in one process.
    """
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
        KeyboardInterrupt, Terminated: asked to stop, and they have.
    """
    host, port = _host_and_port(address) if address else ("127.0.0.1", 0)
    # The meeting point lives here, so that no port has to be guessed, and it outlives every rank.
    store = dist.TCPStore(  # type: ignore[attr-defined]
        host, port, world_size, 0 in ranks, wait_for_workers=False
    )
    os.environ |= {
        "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(len(ranks)), "MASTER_ADDR": host,
        "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    os.environ.setdefault("OMP_NUM_THREADS", str(max(len(os.sched_getaffinity(0)) // len(ranks), 1)))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin take the cores of other processes
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_be_rank, args=(main, rank, number), name=f"rank {rank}")
        for number, rank in enumerate(ranks)
    ]
    with _handed_on(processes) as received:
        for process in processes:
            process.start()
        failed = _wait_for(processes)
    if failed is None:
        return
    rank, status = ranks[processes.index(failed)], failed.exitcode or 0
    if received and status in _STOPPED:
        raise KeyboardInterrupt if received[0] == signal.SIGINT else Terminated
    if status < 0:
        ended = f"was ended by {signal.Signals(-status).name}"
    elif status in _STOPPED:
        ended = f"was asked to stop by {signal.Signals(status - 128).name}"
    else:
        ended = f"ended with status {status}"
    print(f"error: the process of rank {rank} {ended}, and with it the run", file=sys.stderr, flush=True)
    sys.exit(status if status > 0 else 1)


def _be_rank(main: Callable[[], None], rank: int, local_rank: int) -> None:
    """A process's `main`."""
    # The parent hands signals on, so that a terminal's Ctrl-C comes once.
    os.setpgrp()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(local_rank)}
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
                if process.exitcode not in _STOPPED:
                    deadline = time.monotonic() + _GRACE
                    for other in running:
                        other.terminate()
    return failed


@contextlib.contextmanager
def _handed_on(processes: Sequence[SpawnProcess]) -> Iterator[list[int]]:
    """Hand the first SIGINT or SIGTERM on to the processes, kill them after a second; collects what came."""
    received: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in processes:
            if process.pid is not None and process.exitcode is None:
                os.kill(process.pid, number if len(received) == 1 else signal.SIGKILL)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"--master_ip {address}: expected tcp://host:port.")
    return host, int(port)
