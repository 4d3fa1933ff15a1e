"""What a run tells: the log, a progress bar on a terminal, metrics.jsonl, TensorBoard events, curves.png."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from tencentpretrain.config import RunConfig
from tencentpretrain.errors import UserError
from tencentpretrain.files import complete_file
from tencentpretrain.training.curves import draw_curves

log = logging.getLogger("tencentpretrain")

CURVES_SHARE = 0.01  # of the time may go into drawing


class _TerminalHandler(logging.Handler):
    """Lines on standard output, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except BrokenPipeError:
            # Who read our output has gone (`| head`, a killed `tee`); that is no reason to stop training.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def start_logging(run: RunConfig, rank: int = 0) -> None:
    """Send the program's log to standard output and to `log_path`, each from its level on.

    Args:
        rank: of this process; the first one alone writes to `log_path`.
    """
    log.handlers.clear()
    log.propagate = False
    log.setLevel(logging.DEBUG)
    handlers: list[tuple[logging.Handler, str]] = [(_TerminalHandler(), run.log_level)]
    if run.log_path and rank == 0:
        try:
            Path(run.log_path).parent.mkdir(parents=True, exist_ok=True)
            handlers.append((logging.FileHandler(run.log_path, encoding="utf-8"), run.log_file_level))
        except OSError as error:
            raise UserError(f"--log_path {run.log_path}: cannot write there ({error.strerror}).") from None
    for handler, level in handlers:
        handler.setLevel(level)
        handler.setFormatter(logging.Formatter("[%(asctime)s %(levelname)s] %(message)s"))
        log.addHandler(handler)


def duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def report_line(record: dict[str, Any], total_steps: int, seconds_left: float) -> str:
    """A report as published, `|  100/1000 steps| … tokens/s| loss …| acc: …`, and what we add behind it.

    `acc` is the first target's; with several targets all follow by name.
    """
    accuracies = {name: value for name, value in record.items() if name.startswith("acc_")}
    losses = {name: value for name, value in record.items() if name.startswith("loss_")}
    parts = [
        f"| {record['step']:8d}/{total_steps:8d} steps",
        f"| {record['tokens_per_second']:8.2f} tokens/s",
        f"| loss {record['loss']:7.2f}",
    ]
    if accuracies:
        parts.append(f"| acc: {next(iter(accuracies.values())):3.3f}")
    if len(losses) > 1:
        parts += [f"| {name}: {value:3.3f}" for name, value in (losses | accuracies).items()]
    parts += [f"| lr {record['learning_rate']:.3g}", f"| grad norm {record['grad_norm']:.3f}"]
    if record.get("mfu") is not None:
        parts.append(f"| mfu {record['mfu']:.1%}")
    if "data_wait" in record:  # pre-training
        parts.append(f"| {record['memory_gb']:.2f} GB| waiting for data {record['data_wait']:.1%}")
    return "".join(parts) + f"| {duration(seconds_left)} left"


class Report:
    """Receives what is to be told, and puts it where it belongs.

    Args:
        directory: of metrics.jsonl, TensorBoard events and curves.png; None: nothing is written.
        total_steps: length of the run; 0: not known, no bar.
        first_step: where this run continues; what an earlier one wrote of later steps is taken back. At 0
            the metrics of another run are kept as metrics-1.jsonl, metrics-2.jsonl …
        validation_due: that of `first_step` is not done, or will be done again.
    """

    def __init__(
        self,
        directory: Path | None,
        total_steps: int,
        first_step: int = 0,
        validation_due: bool = False,
    ) -> None:
        self.directory, self.total_steps = directory, total_steps
        self._records: list[dict[str, Any]] = []
        if directory is not None:
            metrics = directory / "metrics.jsonl"
            try:
                directory.mkdir(parents=True, exist_ok=True)
                self._records = _earlier(metrics, first_step, validation_due)
                self._file = metrics.open("a", encoding="utf-8")
            except OSError as error:
                raise UserError(f"--log_dir {directory}: cannot write there ({error.strerror}).") from None
        self._writer: Any = None
        self._purge = first_step + 1 if self._records else None
        self._drawn = time.monotonic()  # when curves were last drawn
        self._drawing = 0.3  # how long that took, in seconds
        self._bar: Any = None
        if directory is not None and total_steps and sys.stdout.isatty() and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total_steps, initial=first_step, unit="step", dynamic_ncols=True)

    def stepped(self) -> None:
        """An update is done."""
        if self._bar is not None:
            self._bar.update()

    def training(self, record: dict[str, Any], seconds_left: float) -> None:
        """Report what was measured since the last report."""
        line = report_line(record, self.total_steps, seconds_left)
        if self._bar is None:
            log.info(line)
        else:  # the bar shows it; the file gets the line
            self._bar.set_postfix_str(line.split("steps| ", 1)[1].rsplit("|", 1)[0].strip(), refresh=False)
            _to_files(line)
        self.keep(record)

    def validation(self, record: dict[str, Any], details: dict[str, float]) -> None:
        """Report a validation; `details` go to the log and TensorBoard only."""
        words = [f"{name} {value:.4g}" for name, value in details.items()]
        perplexity = record["eval_perplexity"]
        log.info(
            f"| step {record['step']}| validation: loss {record['eval_loss']:.4f}"
            f"| perplexity {perplexity:{'.2f' if perplexity < 1e6 else '.4g'}}"
            + "".join(f"| {word}" for word in words)
        )
        self.keep(record, details)

    def keep(self, record: dict[str, Any], details: dict[str, float] | None = None) -> None:
        """Put a record into the files; nothing is logged."""
        if self.directory is None:
            return
        self._records.append(record)
        try:
            self._write(self.directory, record, record | (details or {}))
        except OSError as error:  # a full disk; the training itself may go on
            log.error(f"cannot write reports to {self.directory}: {error.strerror or error}")

    def _write(self, directory: Path, record: dict[str, Any], scalars: dict[str, Any]) -> None:
        values = {  # JSON has no NaN
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in record.items()
        }
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(directory), purge_step=self._purge)
        for name, value in scalars.items():
            if name not in ("step", "time") and value is not None:
                self._writer.add_scalar(name, value, record["step"])
        if time.monotonic() - self._drawn > self._drawing / CURVES_SHARE:
            self._draw(directory)

    def _draw(self, directory: Path) -> None:
        start = time.monotonic()
        draw_curves(self._records, directory / "curves.png")
        self._drawn = time.monotonic()
        self._drawing = self._drawn - start

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self.directory is None:
            return
        try:
            if self._records:
                self._draw(self.directory)
            if self._writer is not None:
                self._writer.close()
            self._file.close()
        except OSError as error:
            log.error(f"cannot write reports to {self.directory}: {error.strerror or error}")


def _earlier(metrics: Path, first_step: int, validation_due: bool) -> list[dict[str, Any]]:
    """Records of the run that is continued, up to the step it continues from; the file has these alone."""
    records = []
    if first_step and metrics.exists():
        for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
                if record["step"] < first_step + (not (validation_due and "eval_loss" in record)):
                    records.append(record)
            except (ValueError, KeyError, TypeError):
                continue  # the last line of a killed run may be cut off
    elif metrics.exists() and metrics.stat().st_size:
        names = (metrics.with_stem(f"{metrics.stem}-{number}") for number in itertools.count(1))
        metrics.rename(next(path for path in names if not path.exists()))
    with complete_file(metrics) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return records


def _to_files(line: str) -> None:
    record = log.makeRecord(log.name, logging.INFO, "", 0, line, (), None)
    for handler in log.handlers:
        if isinstance(handler, logging.FileHandler) and record.levelno >= handler.level:
            handler.emit(record)
