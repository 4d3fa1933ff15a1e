"""The engine of one process and one device."""

from __future__ import annotations

from collections.abc import Sequence

from tencentpretrain.training.engines.base import Engine, choose_device


class SingleEngine(Engine):
    """One process, one device.

    Args:
        gpu_ranks: the GPU of this process comes first; empty: CUDA chooses.
    """

    name = "single"

    def __init__(self, precision: str = "auto", compile: bool = False, gpu_ranks: Sequence[int] = ()) -> None:
        super().__init__(choose_device(gpu_ranks), precision, compile)
