"""The loop: fetch, forward, backward, update; and now and then report, validate, save."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from tencentpretrain.data.loader import DataPosition, LoadedBatch, Loader
from tencentpretrain.errors import Terminated
from tencentpretrain.training.checkpoint import Checkpoints
from tencentpretrain.training.engines import Engine
from tencentpretrain.training.report import Report
from tencentpretrain.training.saving import Saver
from tencentpretrain.training.signals import deferred_signals
from tencentpretrain.training.skips import Skips
from tencentpretrain.training.stopping import EarlyStopping
from tencentpretrain.training.sums import Sums, mean_norm, means, perplexity

log = logging.getLogger("tencentpretrain")


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long, and how often what.

    Attributes:
        flops_per_token: of the model, forward and backward, to tell how much of the device's peak is used.
        early_stop: validations without a lower loss that end the run; the best weights are kept then.
    """

    total_steps: int
    accumulation_steps: int
    report_steps: int
    save_steps: int
    eval_steps: int
    max_grad_norm: float
    max_skipped_steps: int
    seed: int
    async_checkpoint: bool = False
    flops_per_token: float | None = None
    early_stop: int | None = None


class Trainer:
    """Trains the engine's model.

    Args:
        loader: of training batches, endless.
        validation: of held-out batches, or None.
        learning_rate: of the update that follows a number of updates.
    """

    def __init__(
        self,
        engine: Engine,
        loader: Loader,
        validation: Loader | None,
        learning_rate: Callable[[int], float],
        checkpoints: Checkpoints,
        report: Report,
        plan: Plan,
    ) -> None:
        self.engine, self.loader, self.validation = engine, loader, validation
        self.learning_rate, self.plan = learning_rate, plan
        self.checkpoints, self.report = checkpoints, report
        self.step = 0  # updates done
        self.tokens = 0  # real tokens seen, by all ranks
        self.position = DataPosition(0, 0)
        self.sums = Sums()  # since the last report
        self.skips = Skips(engine, plan.max_skipped_steps, self._kept)
        self.saver = Saver(engine, checkpoints, plan.async_checkpoint)
        self.stopping = EarlyStopping(plan.early_stop)
        self._save_due = False  # it was put off
        self._validation_due = False  # it was broken off

    def restore(self, directory: Path, training: Mapping[str, Any]) -> None:
        """Go on where a training state was saved.

        Args:
            training: of its `training.pt`.
        """
        self.engine.load_state(directory, training)
        self.step = training["step"]
        self.saver.restored(self.step)
        self.tokens, self.position = training["tokens"], DataPosition(*training["position"])
        self.skips.total, self.skips.in_a_row = training.get("skipped", (0, 0))
        if self.engine.rank == 0:  # they are those of all ranks
            self.sums = Sums(training["sums"])
        self._validation_due = self.validation is not None and training.get("validation_due", False)
        if self.plan.early_stop and training.get("stopping"):
            self.stopping.restore(*training["stopping"])
            if self.stopping.step and not self._keep_best():  # a killed run may not have come to it
                log.info(f"resume: the best weights, of step {self.stopping.step}, are gone; looking anew")
                self.stopping = EarlyStopping(self.plan.early_stop)

    def train(self) -> None:
        """Train to the last step.

        Raises:
            KeyboardInterrupt, Terminated: asked to stop; the state is saved.
            UserError: too many updates were skipped, or training states cannot be written.
        """
        self._first_step, self._begin = self.step, time.monotonic()
        self._start_interval()
        stopped = 0  # the signal that asked to
        with deferred_signals() as stop:
            with contextlib.closing(self.loader.batches(self.position)) as batches:
                while self._unfinished and not stopped and not self.stopping.exhausted:
                    if not self._validation_due:
                        self._update(batches)
                        if self._is_due(self.plan.report_steps):
                            self._tell()
                    with self._off_the_clock():
                        self._validate_and_save(stop)
                    stopped = self.engine.agree(max(stop, default=0))
            if stopped and self._unfinished:
                self._save(final=True)
                log.info(f"stopped after step {self.step}; the same command continues from there")
                self.engine.close()
                raise KeyboardInterrupt if stopped == signal.SIGINT else Terminated
        if self.stopping.exhausted:
            log.info(f"stopped early: no lower validation loss in {self.plan.early_stop} validations")
        step = (self.plan.early_stop and self.stopping.step) or self.step
        with self.engine.together():
            if self.engine.rank == 0:
                source = self.checkpoints.best if step < self.step else None
                self.checkpoints.publish(self.checkpoints.output, source)
        log.info(f"done: the weights after step {step} are in {self.checkpoints.output}")
        self.engine.close()

    @property
    def _unfinished(self) -> bool:
        return self.step < self.plan.total_steps or self._validation_due

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.plan.total_steps

    def _validate_and_save(self, stop: list[int]) -> None:
        """As is due after this step; a validation that was broken off is due once more."""
        best = False
        if self.validation is not None and (self._is_due(self.plan.eval_steps) or self._validation_due):
            best = self._validate(self.validation, stop)
        last = self.step == self.plan.total_steps or self.stopping.exhausted
        if self.step % self.plan.save_steps == 0 or last or best or self._save_due:
            self._save(final=last, at_once=best)
        if best and self.saver.step == self.step:
            self._keep_best()
        elif best:
            self.stopping.take_back()  # the save failed: another validation may find the best that is kept

    def _update(self, batches: Iterator[LoadedBatch]) -> None:
        """One update of the weights, which the engine leaves out if its loss or gradient is not finite.

        Each target's loss is divided by its count over all micro-batches and ranks, so that the gradient is
        that of one big batch. Dropout is a function of seed and step, so that resuming needs no random state.
        """
        self.engine.seed((self.plan.seed * 0x9E3779B1 + self.step) % 2**32)
        start = time.monotonic()
        loaded = [next(batches) for _ in range(self.plan.accumulation_steps)]
        self._waited += time.monotonic() - start
        own = {f"count_{name}": sum(micro.counts[name] for micro in loaded) for name in loaded[0].counts}
        own["tokens"] = sum(micro.tokens for micro in loaded)
        totals = self.engine.reduce(own)
        counts = {name: totals[f"count_{name}"] for name in loaded[0].counts}
        sums = Sums()
        for micro in loaded:
            output = self.engine.forward(micro.batch, last=micro is loaded[-1])
            self.engine.backward(output.normalised(counts))
            sums.add_output(output)
        norm = self.engine.clip(self.plan.max_grad_norm)
        fetched = self.engine.fetch(norm)
        self.engine.step(self.learning_rate(self.step))
        self.step += 1
        self.sums.add_finite(sums)
        if self.engine.rank == 0:  # it is the same on all ranks, whose sums are added up
            self.sums.add_norm(norm)
        samples = functools.partial(self.loader.samples, self.position, len(loaded))
        self.skips.add(self.step, samples, fetched)
        self.position = loaded[-1].position
        self.tokens += int(totals["tokens"])
        self.report.stepped()

    def _tell(self) -> None:
        """Report what happened since the last report."""
        sums = self._read_sums()
        seconds = max(time.monotonic() - self._interval_begin, 1e-9)
        tokens_per_second = (self.tokens - self._interval_tokens) / seconds
        record: dict[str, Any] = {"step": self.step} | means(sums, self.sums.weights)
        peak, flops = self.engine.peak_flops, self.plan.flops_per_token
        record |= {
            "learning_rate": self.learning_rate(self.step - 1),
            "grad_norm": mean_norm(sums),
            "skipped_steps": self.skips.total,
            "tokens": self.tokens,
            "tokens_per_second": tokens_per_second,
            "mfu": flops * tokens_per_second / (peak * self.engine.world_size) if flops and peak else None,
            "memory_gb": self.engine.memory_gb(),
            "data_wait": self._waited / seconds,
            "time": time.time(),
        }
        pace = (time.monotonic() - self._begin) / (self.step - self._first_step)
        self.report.training(record, seconds_left=pace * (self.plan.total_steps - self.step))
        self.sums = Sums()
        self._start_interval()

    def _start_interval(self) -> None:
        self._interval_begin, self._interval_tokens, self._waited = time.monotonic(), self.tokens, 0.0

    def _read_sums(self) -> dict[str, float]:
        """The sums of all ranks; what was skipped has been told then."""
        self.skips.catch_up()
        return self.engine.reduce(self.sums.read())

    def _kept(self) -> str:
        newest = self.checkpoints.newest
        return f"The newest training state is of step {newest.step}" if newest else "Nothing was saved"

    @contextlib.contextmanager
    def _off_the_clock(self) -> Iterator[None]:
        """What is done inside does not count as training time."""
        start = time.monotonic()
        yield
        self._interval_begin += time.monotonic() - start

    def _validate(self, validation: Loader, stop: list[int]) -> bool:
        """Loss over all held-out batches, and the perplexity of the targets that predict tokens.

        Returns: whether the weights are the best so far, and are to be kept for it.
        """
        sums = Sums()
        self.engine.model.eval()
        with (
            torch.no_grad(),
            self.engine.averaging(),
            contextlib.closing(validation.one_pass()) as batches,
        ):
            held_out = (loaded.batch for loaded in batches)
            complete = self.engine.evaluate(held_out, stop, sums.add_output)
        self.engine.model.train()
        self._validation_due = not complete
        if not complete:
            log.info("validation was broken off")
            return False
        averages = means(self.engine.reduce(sums.read()), sums.weights)
        record = {"step": self.step, "eval_loss": averages["loss"], "eval_perplexity": perplexity(averages)}
        record["time"] = time.time()
        loss = averages.pop("loss")
        self.report.validation(record, {f"eval_{name}": value for name, value in averages.items()})
        kept_anyway = self._is_due(self.plan.save_steps)
        return self.plan.early_stop is not None and self.stopping.add(loss, self.step, kept_anyway)

    def _keep_best(self) -> bool:
        """Name the best weights. Those before, if nothing else asked for them, are no longer wanted.

        Returns: whether they were there.
        """
        best = self.stopping
        with self.engine.together():
            kept = self.engine.rank == 0 and self.checkpoints.keep_best(best.step, best.best)
            if kept and best.outdone:
                self.checkpoints.withdraw(best.outdone)
        return bool(self.engine.agree(kept))

    def _save(self, final: bool, at_once: bool = False) -> None:
        """Save a training state. While updates are skipped this is put off, as the weights may be lost; if it
        fails, it is tried again when the next one is due.

        Args:
            final: there is no later.
            at_once: neither put off nor in the background.
        """
        at_once = at_once or final
        if at_once:
            self.saver.wait()
        if self.step == self.saver.step:
            return
        sums = self._read_sums()
        self._save_due = self.skips.in_a_row > 0 and not at_once
        if self._save_due:
            return
        progress = {
            "step": self.step,
            "tokens": self.tokens,
            "position": tuple(self.position),
            "skipped": (self.skips.total, self.skips.in_a_row),
            "stopping": self.stopping.state() if self.plan.early_stop else None,
            "validation_due": self._validation_due,
            "sums": {name: torch.tensor(value, dtype=torch.float64) for name, value in sums.items()},
        }
        self.saver.save(self.step, progress, at_once, final)
