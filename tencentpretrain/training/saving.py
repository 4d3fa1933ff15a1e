"""When training states are written: at once or in the background, and what becomes of failures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from tencentpretrain.errors import UserError
from tencentpretrain.training.checkpoint import Checkpoints
from tencentpretrain.training.engines import Engine
from tencentpretrain.training.engines.ranks import Ranks

log = logging.getLogger("tencentpretrain")

FAILED_SAVES = 3  # so many in a row end the run


class Saver:
    """Saves the engine's states. A failure is told; the state is saved again when the next one is due.

    Args:
        background: copy a state, and write the copy while training goes on; one at a time.

    Attributes:
        step: of the newest state that was saved or is being saved.
    """

    def __init__(self, engine: Engine, checkpoints: Checkpoints, background: bool) -> None:
        self._engine, self._checkpoints, self._background = engine, checkpoints, background
        self._running: Future[None] | None = None
        self._failed = 0  # in a row
        self.step = self._saved_step = 0

    def restored(self, step: int) -> None:
        """Training goes on from a state of this step."""
        self.step = self._saved_step = step

    def save(self, step: int, progress: Mapping[str, Any], at_once: bool, final: bool) -> None:
        """Save a state, after an earlier one that is being written.

        Args:
            progress: as for `Checkpoints.save`.
            at_once: it is complete afterwards, or has failed.
            final: there is no later.

        Raises:
            UserError: it failed, and it is the final one or one too many in a row; the engine is closed.
        """
        self.wait()
        self.step = step
        if self._background and not at_once:
            write, ranks = self._engine.snapshot(), self._engine.background_ranks()
            self._running = self._engine.in_background(self._write, step, write, progress, ranks)
            return
        try:
            self._write(step, self._engine.save_state, progress, self._engine.ranks)
        except UserError as error:
            self._fail(error, final)
        else:
            self._done()

    def wait(self) -> None:
        """Until the state that is being written is complete, or has failed as told in `save`."""
        if self._running is not None:
            running, self._running = self._running, None
            try:
                running.result()
            except UserError as error:
                self._fail(error, final=False)
            else:
                self._done()

    def _write(
        self,
        step: int,
        write: Callable[[Path, str], dict[str, Any]],
        progress: Mapping[str, Any],
        ranks: Ranks,
    ) -> None:
        path = self._checkpoints.save(step, write, progress, ranks)
        log.info(f"saved step {step}: {self._checkpoints.output}-{step}, training state {path}")

    def _done(self) -> None:
        self._failed, self._saved_step = 0, self.step

    def _fail(self, error: UserError, final: bool) -> None:
        self._failed += 1
        self.step = self._saved_step
        if final or self._failed == FAILED_SAVES:
            self._engine.close()
            raise type(error)(f"{error} Then give the same command again to continue.") from None
        log.warning(f"{error} Training goes on; it ends when {FAILED_SAVES} saves in a row have failed.")
