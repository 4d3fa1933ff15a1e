"""Where the time of a few steps goes: a Chrome trace and a table."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from tencentpretrain.data.loader import LoadedBatch
from tencentpretrain.files import complete_file
from tencentpretrain.training.trainer import Trainer

log = logging.getLogger("tencentpretrain")

SKIPPED, PROFILED = 3, 3  # steps
PHASES = {"forward": "forward", "backward": "backward", "clip": "clipping", "step": "optimizer"}
OPERATORS = 25  # rows of the table


class Profiling:
    """Profiles steps of a trainer, and writes `trace.json.gz` and `profile.txt` into a directory.

    The phases are told apart from outside, by the calls of the engine and the loader, so that other steps do
    nothing for it. A GPU is waited for behind each phase: these steps are a little slower than others.
    """

    def __init__(self, trainer: Trainer, directory: Path) -> None:
        self._trainer, self._directory = trainer, directory
        remaining = trainer.plan.total_steps - trainer.step
        self._first = trainer.step + min(SKIPPED, max(remaining - PROFILED, 0))
        self._last = self._first + PROFILED
        self._seconds: dict[str, float] = {}
        activities = [ProfilerActivity.CPU]
        if trainer.engine.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities)
        self._timing = False
        self._time_batches(trainer)
        stepped = trainer.report.stepped

        def then_look() -> None:
            stepped()
            self._look()

        trainer.report.stepped = then_look  # type: ignore[method-assign]
        if trainer.step < trainer.plan.total_steps:
            self._look()

    def _look(self) -> None:
        """Begin or end, if it is time."""
        trainer = self._trainer
        if trainer.step == self._first:
            self._begin()
        elif trainer.step == min(self._last, trainer.plan.total_steps):
            self._end()

    def _begin(self) -> None:
        engine = self._trainer.engine
        for method, phase in PHASES.items():
            setattr(engine, method, self._timed(getattr(engine, method), phase))
        self._timing = True
        self._profile.start()
        self._start = time.perf_counter()

    def _time_batches(self, trainer: Trainer) -> None:
        batches = trainer.loader.batches

        def timed(*args: Any) -> Iterator[LoadedBatch]:
            with contextlib.closing(batches(*args)) as inner:
                fetch = self._timed(functools.partial(next, inner), "data")
                while True:
                    yield fetch()

        trainer.loader.batches = timed  # type: ignore[method-assign, assignment]

    def _timed(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if not self._timing or not torch.is_grad_enabled():  # it is another step, or a validation
                return function(*args, **kwargs)
            start = time.perf_counter()
            with record_function(phase):
                result = function(*args, **kwargs)
                self._wait()
            self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - start
            return result

        return timed

    def _wait(self) -> None:
        if self._trainer.engine.device.type == "cuda":
            torch.cuda.synchronize()

    def _end(self) -> None:
        self._wait()
        self._timing = False
        seconds = time.perf_counter() - self._start
        self._profile.stop()
        engine = self._trainer.engine
        for method in PHASES:
            delattr(engine, method)  # the class's own again
        steps = self._trainer.step - self._first
        self._directory.mkdir(parents=True, exist_ok=True)
        trace, table = self._directory / "trace.json.gz", self._directory / "profile.txt"
        with complete_file(trace) as temporary:
            written = temporary.with_suffix(".json.gz")  # the name says that it is to be packed
            self._profile.export_chrome_trace(str(written))
            written.replace(temporary)
        text = self._table(seconds, steps)
        with complete_file(table) as temporary:
            temporary.write_text(text, encoding="utf-8")
        phases = text.split("\n\n")[0]
        log.info(f"profile of steps {self._first + 1} to {self._trainer.step}: {table}, {trace}\n{phases}")

    def _table(self, seconds: float, steps: int) -> str:
        known = ["data", *PHASES.values()]
        rows = [(phase, self._seconds.get(phase, 0.0)) for phase in known]
        rows.append(("rest", seconds - sum(value for _, value in rows)))
        lines = [f"{'phase':12} {'ms a step':>10} {'share':>7}"]
        lines += [
            f"{phase:12} {1e3 * value / steps:10.1f} {value / seconds:7.1%}"
            for phase, value in [*rows, ("all", seconds)]
        ]
        on = "device" if self._trainer.engine.device.type == "cuda" else "cpu"
        operators = self._profile.key_averages().table(sort_by=f"self_{on}_time_total", row_limit=OPERATORS)
        return "\n".join(lines) + f"\n\n{operators}\n"
