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
        self.outdone = 0  # when the lowest before that was, if its weights were kept for nothing else
        self._worse = 0  # validations since then
        self._alone = 0  # `step`, if its weights are kept for nothing else

    def add(self, loss: float, step: int, kept_anyway: bool = False) -> bool:
        """Take note of a validation; whether it is the best so far."""
        self._before = self.state()
        better = loss < self.best
        if better:
            self.best, self.step, self._worse = loss, step, 0
            self.outdone, self._alone = self._alone, 0 if kept_anyway else step
        else:
            self._worse += 1
        return better

    def take_back(self) -> None:
        """Forget the validation that `add` took note of last, whose weights could not be kept."""
        self.restore(*self._before)

    @property
    def exhausted(self) -> bool:
        return self.patience is not None and self._worse >= self.patience

    def state(self) -> tuple[float, int, int, int, int]:
        return self.best, self.step, self._worse, self.outdone, self._alone

    def restore(self, best: float, step: int, worse: int, outdone: int = 0, alone: int = 0) -> None:
        """Go on with what `state` gave; older states did not have the last two."""
        self.best, self.step, self._worse, self.outdone, self._alone = best, step, worse, outdone, alone
