"""Training of a task's model, and what it predicts for a file."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
from tencentpretrain.tasks.adversarial import add_adversarial_gradients
from tencentpretrain.tasks.base import Collected, Configs, Score, Task, TaskModel, TaskOutput
from tencentpretrain.tasks.examples import Examples, evaluation_batches, training_batches
from tencentpretrain.training.engines import SingleEngine
from tencentpretrain.training.report import Report
from tencentpretrain.training.schedules import make_schedule
from tencentpretrain.training.skips import Skips
from tencentpretrain.training.sums import Sums, mean_norm, means
from tencentpretrain.training.trainer import deferred_signals
from tencentpretrain.weights import publish_weights

log = logging.getLogger("tencentpretrain")


class Finetuning:
    """Trains the engine's model and keeps the weights with the best score on the development set.

    Args:
        output: where these weights go.
        total_steps: updates in all epochs.
    """

    def __init__(
        self,
        engine: SingleEngine,
        task: Task,
        configs: Configs,
        report: Report,
        output: Path,
        total_steps: int,
    ) -> None:
        self.engine, self.task, self.report = engine, task, report
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
        try:
            for epoch in range(1, self.config.epochs_num + 1):
                self._train(train, epoch)
                self._evaluate(dev, epoch)
        except (KeyboardInterrupt, Terminated):
            if self.step:
                latest = self.output.with_name(f"{self.output.name}-{self.step}")
                self._save(latest)
                log.info(f"stopped after step {self.step}; the weights as they are: {latest}")
            raise

    def _save(self, path: Path) -> None:
        model, task = self.engine.model, self.task
        assert isinstance(model, TaskModel)
        description = make_description(
            path,
            self.model_config,
            task.tokenizer,
            task.labels,
            self.settings.plugins,
            vocab_size=model.sizes.vocab_size,
            further={"seq_length": self.config.seq_length},
        )
        publish_weights(model.state_dict(), path, description)

    def _train(self, train: Examples, epoch: int) -> None:
        self.engine.model.train()
        self._start_interval()
        with deferred_signals() as stop:
            for rows in training_batches(train.lengths, self.settings.batch_size, self.config.seed, epoch):
                start = time.monotonic()
                batch = train.batch(rows)
                self._waited += time.monotonic() - start
                norm = self._update(batch)
                self.step += 1
                self.skips.add(self.step, partial(np.stack, [np.full_like(rows, epoch), rows]), norm)
                self.tokens += int(train.lengths[rows].sum())
                self.report.stepped()
                if self.step % self.settings.report_steps == 0 or self.step == self.total_steps:
                    self._tell(epoch)
                if stop:
                    raise KeyboardInterrupt if stop[0] == signal.SIGINT else Terminated

    def _update(self, batch: Batch) -> Callable[[], float]:
        """One update of the weights; dropout is a function of seed and step.

        Returns:
            What gives the norm of its gradient.
        """
        engine = self.engine
        engine.seed((self.config.seed * 0x9E3779B1 + self.step) % 2**32)
        output = engine.forward(batch, last=not self.adversarial.use_adv)
        engine.backward(output.loss)
        if self.adversarial.use_adv:
            word = engine.model.get_parameter("embedding.word.embedding.weight")
            add_adversarial_gradients(
                word, lambda: engine.forward(batch).loss, engine.backward, engine.gradient, self.adversarial
            )
        norm = engine.clip(self.max_grad_norm)
        fetched = engine.fetch(norm)
        engine.step(self.learning_rate(self.step))
        sums = Sums()
        sums.add_output(output)
        self._sums.add_finite(sums)
        self._sums.add_norm(norm)
        return fetched

    def _start_interval(self) -> None:
        self._sums = Sums()
        self._interval_begin, self._interval_tokens, self._waited = time.monotonic(), self.tokens, 0.0

    def _tell(self, epoch: int) -> None:
        """Report what happened since the last report."""
        self.skips.catch_up()
        sums = self._sums.read()
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
        score, loss = evaluate(self.engine, self.task, dev, self.settings.batch_size)
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
def predict(engine: SingleEngine, examples: Examples, batch_size: int) -> tuple[Collected, float]:
    """The model's outputs for every example, in the order of the file, and the mean loss if it has labels."""
    engine.model.eval()
    collected: dict[str, list[Any]] = {}
    sums = Sums()
    for rows in evaluation_batches(examples.lengths, batch_size):
        output = engine.forward(examples.batch(rows))
        assert isinstance(output, TaskOutput)
        if output.parts:
            sums.add_output(output)
        for name, tensor in output.outputs.items():
            values = collected.setdefault(name, [None] * len(examples))
            for row, value in zip(rows.tolist(), tensor.cpu().numpy(), strict=True):
                values[row] = value
    return collected, means(sums.read(), sums.weights)["loss"]


def evaluate(engine: SingleEngine, task: Task, examples: Examples, batch_size: int) -> tuple[Score, float]:
    """Score and mean loss on a labelled file."""
    outputs, loss = predict(engine, examples, batch_size)
    return task.score(outputs, examples), loss
