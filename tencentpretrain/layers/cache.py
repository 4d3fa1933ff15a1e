"""Keys and values kept between the steps of generation."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

KeysValues = tuple[Tensor, Tensor]  # each [B, H, S, K]


class GrowingCache:
    """Of self-attention: every step adds its positions. Buffers double, so each is copied O(1) times."""

    def __init__(self) -> None:
        self.length = 0
        self._buffers: list[Tensor] = []

    def __call__(self, project: Callable[[], KeysValues]) -> KeysValues:
        new = project()
        start, self.length = self.length, self.length + new[0].shape[2]
        if not self._buffers or self.length > self._buffers[0].shape[2]:
            old, room = self._buffers, 2 * self.length
            self._buffers = [part.new_empty(*part.shape[:2], room, part.shape[3]) for part in new]
            for buffer, kept in zip(self._buffers, old, strict=False):
                buffer[:, :, :start] = kept[:, :, :start]
        for buffer, part in zip(self._buffers, new, strict=True):
            buffer[:, :, start : self.length] = part
        key, value = (buffer[:, :, : self.length] for buffer in self._buffers)
        return key, value


class FixedCache:
    """Of cross attention: the memory is projected once."""

    def __init__(self) -> None:
        self._kept: KeysValues | None = None

    def __call__(self, project: Callable[[], KeysValues]) -> KeysValues:
        if self._kept is None:
            self._kept = project()
        return self._kept


class LayerCache:
    """Of one transformer layer."""

    def __init__(self) -> None:
        self.itself = GrowingCache()
        self.memory = FixedCache()


class Cache:
    """Of a stack of transformer layers.

    Attributes:
        segment_ids: [B, S] of all positions, those of this step last; None: no padding. Set before each step.
    """

    def __init__(self, layers: int) -> None:
        self.layers = [LayerCache() for _ in range(layers)]
        self.segment_ids: Tensor | None = None

    @property
    def length(self) -> int:
        """Positions of earlier steps."""
        return self.layers[0].itself.length
