"""Training of a task's model, and what it predicts for a file."""

from __future__ import annotations

import itertools
import logging
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tencentpretrain.batch import Batch
from tencentpretrain.config import (
    AdversarialConfig,
    FinetuneConfig,
    ModelConfig,
    OptimizationConfig,
    RunConfig,
)
from tencentpretrain.description import make_description
from tencentpretrain.errors import Terminated
from tencentpretrain.targets.output import TargetOutput
from tencentpretrain.tasks.adversarial import add_adversarial_gradients
from tencentpretrain.tasks.base import Collected, Configs, Score, Task, TaskModel, TaskOutput
from tencentpretrain.tasks.examples import Examples, evaluation_batches, training_batches
from tencentpretrain.training.engines import Engine
from tencentpretrain.training.report import Report
from tencentpretrain.training.schedules import make_schedule
from tencentpretrain.training.signals import deferred_signals
from tencentpretrain.training.skips import Skips
from tencentpretrain.training.sums import Sums, mean_norm, means
from tencentpretrain.weights import publish_weights

log = logging.getLogger("tencentpretrain")


class Finetuning:
    """Trains the engine's model and keeps the weights with the best score on the development set.

    Args:
        output: where these weights go.
        total_steps: updates in all epochs.
        family: that the first weights were converted from, where that is known; it goes beside the output.
    """

    def __init__(
        self,
        engine: Engine,
        task: Task,
        configs: Configs,
        report: Report,
        output: Path,
        total_steps: int,
        family: str | None = None,
    ) -> None:
        self.engine, self.task, self.report = engine, task, report
        self.family = {} if family is None else {"family": family}
        self.output, self.total_steps = output, total_steps
        self.model_config: ModelConfig = configs[ModelConfig]
        self.config: FinetuneConfig = configs[FinetuneConfig]
        self.settings: RunConfig = configs[RunConfig]
        self.max_grad_norm = configs[OptimizationConfig].max_grad_norm
        self.learning_rate = make_schedule(configs[OptimizationConfig], total_steps)
        self.adversarial: AdversarialConfig = configs[AdversarialConfig]
        self.step, self.tokens = 0, 0
        self.skips = Skips(engine, self.settings.max_skipped_steps, self._kept)
        self.best: float | None = None

    def run(self, train: Examples, dev: Examples) -> None:
        """All epochs.

        Raises:
            KeyboardInterrupt, Terminated: asked to stop; the weights as they are, are saved beside the best.
            UserError: too many updates were skipped.
        """
        self._begin = time.monotonic()
        with deferred_signals() as self._stop:
            for epoch in range(1, self.config.epochs_num + 1):
                self._train(train, epoch)
                self._evaluate(dev, epoch)

    def _end_if_asked_to(self) -> None:
        """All ranks end if one was told to."""
        signalled = self.engine.agree(max(self._stop, default=0))
        if not signalled:
            return
        if self.step:
            latest = self.output.with_name(f"{self.output.name}-{self.step}")
            self._save(latest)
            log.info(f"stopped after step {self.step}; the weights as they are: {latest}")
        self.engine.close()
        raise KeyboardInterrupt if signalled == signal.SIGINT else Terminated

    def _save(self, path: Path) -> None:
        """The first rank writes."""
        with self.engine.together():
            if self.engine.rank > 0:
                return
            model, task = self.engine.model, self.task
            assert isinstance(model, TaskModel)
            description = make_description(
                path,
                self.model_config,
                task.tokenizer,
                task.labels,
                self.settings.plugins,
                vocab_size=model.sizes.vocab_size,
                further={"seq_length": self.config.seq_length} | self.family,
            )
            publish_weights(model.state_dict(), path, description)

    def _train(self, train: Examples, epoch: int) -> None:
        """An epoch. Each rank takes its part of every batch, which is the one a single process would have."""
        self.engine.model.train()
        self._start_interval()
        rank, world_size = self.engine.rank, self.engine.world_size
        for rows in training_batches(train.lengths, self.settings.batch_size, self.config.seed, epoch):
            start = time.monotonic()
            own = rows[rank::world_size]
            batch = train.batch(own if own.size else rows[:1])  # every rank has to take part
            self._waited += time.monotonic() - start
            norm = self._update(batch, used=own.size > 0)
            self.step += 1
            self.tokens += int(train.lengths[rows].sum())
            self.skips.add(self.step, partial(np.stack, [np.full_like(own, epoch), own]), norm)
            self.report.stepped()
            if self.step % self.settings.report_steps == 0 or self.step == self.total_steps:
                self._tell(epoch)
            self._end_if_asked_to()

    def _update(self, batch: Batch, used: bool) -> Callable[[], float]:
        """One update of the weights; dropout is a function of seed and step.

        Args:
            used: whether the batch is part of it.

        Returns:
            What gives the norm of its gradient.
        """
        engine, config = self.engine, self.adversarial
        engine.seed((self.config.seed * 0x9E3779B1 + self.step) % 2**32)

        def share(output: TargetOutput) -> Tensor:
            """The part of this rank in the mean loss."""
            counts = {name: engine.add_up(part.count * used) for name, part in output.parts.items()}
            return output.normalised(counts) * used

        output = engine.forward(batch, last=not config.use_adv)
        engine.backward(share(output))
        if config.use_adv:
            word = engine.model.get_parameter("embedding.word.embedding.weight")
            # The backward pass of the last of the losses exchanges all gradients between the ranks.
            passes = 1 if config.adv_type == "fgm" else config.pgd_k
            last = iter([*[False] * (passes - 1), True])
            add_adversarial_gradients(
                word,
                lambda: share(engine.forward(batch, last=next(last))),
                engine.backward,
                engine.gradient,
                config,
                engine.add_up,
            )
        norm = engine.clip(self.max_grad_norm)
        fetched = engine.fetch(norm)
        engine.step(self.learning_rate(self.step))
        if used:
            sums = Sums()
            sums.add_output(output)
            self._sums.add_finite(sums)
        if engine.rank == 0:  # it is the same on all ranks, whose sums are added up
            self._sums.add_norm(norm)
        return fetched

    def _start_interval(self) -> None:
        self._sums = Sums()
        self._interval_begin, self._interval_tokens, self._waited = time.monotonic(), self.tokens, 0.0

    def _tell(self, epoch: int) -> None:
        """Report what happened since the last report."""
        self.skips.catch_up()
        sums = self.engine.reduce(self._sums.read())
        seconds = max(time.monotonic() - self._interval_begin, 1e-9)
        record: dict[str, Any] = {"step": self.step} | means(sums, self._sums.weights)
        record |= {
            "epoch": epoch,
            "learning_rate": self.learning_rate(self.step - 1),
            "grad_norm": mean_norm(sums),
            "skipped_steps": self.skips.total,
            "tokens": self.tokens,
            "tokens_per_second": (self.tokens - self._interval_tokens) / seconds,
            "mfu": None,
            "memory_gb": self.engine.memory_gb(),
            "data_wait": self._waited / seconds,
            "time": time.time(),
        }
        pace = (time.monotonic() - self._begin) / self.step
        self.report.training(record, seconds_left=pace * (self.total_steps - self.step))
        self._start_interval()

    def _kept(self) -> str:
        return "Nothing was saved" if self.best is None else f"The best weights so far are in {self.output}"

    def _evaluate(self, dev: Examples, epoch: int) -> None:
        self.skips.catch_up()
        with self.engine.averaging():
            self._evaluate_as_it_is(dev, epoch)

    def _evaluate_as_it_is(self, dev: Examples, epoch: int) -> None:
        batch_size, heed = self.settings.batch_size, self._end_if_asked_to
        score, loss = evaluate(self.engine, self.task, dev, batch_size, heed)
        log.info(f"epoch {epoch} of {self.config.epochs_num}, development set:\n{score.text}")
        # The first epoch's weights are kept whatever their score: it may not be a number.
        if self.best is None or score.value > self.best:
            self.best = score.value
            self._save(self.output)
            log.info(f"the best score so far; written to {self.output}")
        else:
            log.info(f"not better than {self.best:.4f}")
        record = {"step": self.step, "epoch": epoch, "eval_loss": loss, "time": time.time()}
        self.report.keep(record | named("eval", score))


def named(prefix: str, score: Score) -> dict[str, float]:
    """A score's metrics as metrics.jsonl names them."""
    return {f"{prefix}_{name}": value for name, value in score.metrics.items()}


@torch.no_grad()
def predict(
    engine: Engine, examples: Examples, batch_size: int, heed: Callable[[], None] = lambda: None
) -> tuple[Collected, float]:
    """The model's outputs for every example, in the order of the file, and the mean loss if it has labels.

    The ranks take turns with the batches; all of them get all outputs.

    Args:
        heed: called by all ranks before each of their batches; may raise.
    """
    engine.model.eval()
    own: list[tuple[list[int], dict[str, Any]]] = []
    sums = Sums()
    batches = evaluation_batches(examples.lengths, batch_size)
    for first in range(0, len(batches), engine.world_size):
        heed()
        for rows in batches[first : first + engine.world_size][engine.rank : engine.rank + 1]:
            output = engine.forward(examples.batch(rows))
            assert isinstance(output, TaskOutput)
            if output.parts:
                sums.add_output(output)
            own.append((rows.tolist(), {name: part.cpu().numpy() for name, part in output.outputs.items()}))
    collected: dict[str, list[Any]] = {}
    for numbers, outputs in itertools.chain.from_iterable(engine.ranks.collect(own)):
        for name, values in outputs.items():
            places = collected.setdefault(name, [None] * len(examples))
            for number, value in zip(numbers, values, strict=True):
                places[number] = value
    return collected, means(engine.reduce(sums.read()), sums.weights)["loss"]


def evaluate(
    engine: Engine, task: Task, examples: Examples, batch_size: int, heed: Callable[[], None] = lambda: None
) -> tuple[Score, float]:
    """Score and mean loss on a labelled file."""
    outputs, loss = predict(engine, examples, batch_size, heed)
    return task.score(outputs, examples), loss
