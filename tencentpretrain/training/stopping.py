"""When training is no longer worth it."""

from __future__ import annotations

import math


class EarlyStopping:
    """Follows the validation loss.

    Args:
        patience: validations in a row without a lower loss that end the training; None: any number.
    """

    def __init__(self, patience: int | None) -> None:
        self.patience = patience
        self.best = math.inf  # the lowest loss
        self.step = 0  # when that was
        self.step_before = 0  # when the lowest before that was
        self._worse = 0  # validations since then

    def add(self, loss: float, step: int) -> bool:
        """Take note of a validation; whether it is the best so far."""
        self._before = self.state()
        better = loss < self.best
        if better:
            self.best, self.step, self._worse, self.step_before = loss, step, 0, self.step
        else:
            self._worse += 1
        return better

    def take_back(self) -> None:
        """Forget the validation that `add` took note of last, whose weights could not be kept."""
        self.restore(*self._before)

    @property
    def exhausted(self) -> bool:
        return self.patience is not None and self._worse >= self.patience

    def state(self) -> tuple[float, int, int, int]:
        return self.best, self.step, self._worse, self.step_before

    def restore(self, best: float, step: int, worse: int, step_before: int = 0) -> None:
        """Go on with what `state` gave; older states did not have the last."""
        self.best, self.step, self._worse, self.step_before = best, step, worse, step_before
