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
        self._worse = 0  # validations since then

    def add(self, loss: float, step: int) -> bool:
        """Take note of a validation; whether it is the best so far."""
        self._before = self.state()
        better = loss < self.best
        if better:
            self.best, self.step, self._worse = loss, step, 0
        else:
            self._worse += 1
        return better

    def take_back(self) -> None:
        """Forget the validation that `add` took note of last, whose weights could not be kept."""
        self.restore(self._before)

    @property
    def exhausted(self) -> bool:
        return self.patience is not None and self._worse >= self.patience

    def state(self) -> tuple[float, int, int]:
        return self.best, self.step, self._worse

    def restore(self, state: tuple[float, int, int]) -> None:
        self.best, self.step, self._worse = state
