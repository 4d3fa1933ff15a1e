"""Updates that are left out because the loss or the gradient is not finite."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable

from tencentpretrain.data.random import Ints
from tencentpretrain.errors import UserError
from tencentpretrain.training.engines import Engine

log = logging.getLogger("tencentpretrain")


class Skips:
    """Counts and tells what the engine left out; too many in a row end the run.

    On a GPU an update is looked at while the next one is computed, so that the device never waits.

    Args:
        limit: so many in a row.
        kept: says what there is of earlier weights, a sentence.

    Attributes:
        total: of the whole run.
        in_a_row: up to the newest update that was looked at.
    """

    def __init__(self, engine: Engine, limit: int, kept: Callable[[], str]) -> None:
        self._engine, self._limit, self._kept = engine, limit, kept
        self.total = self.in_a_row = 0
        self._behind = 0 if engine.device.type == "cpu" else 1
        self._waiting: deque[tuple[int, Callable[[], Ints], Callable[[], float]]] = deque()

    def add(self, step: int, samples: Callable[[], Ints], norm: Callable[[], float]) -> None:
        """Look at an update, or at the one before.

        Args:
            step: its number; the first one is 1.
            samples: gives those of this rank, [2, n]: epochs and numbers.
            norm: gives that of its gradient, the same on all ranks.

        Raises:
            UserError: it was one too many.
        """
        self._waiting.append((step, samples, norm))
        while len(self._waiting) > self._behind:
            self._look(*self._waiting.popleft())

    def catch_up(self) -> None:
        """Look at all updates so far.

        Raises:
            UserError: one was one too many.
        """
        while self._waiting:
            self._look(*self._waiting.popleft())

    def _look(self, step: int, samples: Callable[[], Ints], norm: Callable[[], float]) -> None:
        if math.isfinite(norm()):
            self.in_a_row = 0
            return
        self.total += 1
        self.in_a_row += 1
        own = [f"{epoch}:{number}" for epoch, number in samples().T.tolist()]
        ranks = enumerate(self._engine.ranks.gather(" ".join(own)))
        which = "; ".join(f"of rank {rank} {text}" for rank, text in ranks)
        log.warning(
            f"step {step}: no update, as the loss or the gradient is not finite ({self.in_a_row} in a row). "
            f"Its samples, as epoch:number: {which}"
        )
        with self._engine.together():
            if self.in_a_row == self._limit:
                raise UserError(
                    f"the loss or the gradient of {self._limit} updates in a row was not finite, up to step "
                    f"{step} (--max_skipped_steps). {self._kept()}; lower --learning_rate, raise --warmup, "
                    "use --precision fp32, or look for something odd in the samples that the log names."
                )
