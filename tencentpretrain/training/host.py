"""Copies in the host's memory, so that a state is written while training goes on."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor


class HostCopies:
    """Copies tensors to the host's memory; the memory is taken again the next time.

    On a GPU it is pinned, and nothing is waited for before all copies are under way.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], Tensor] = {}

    def take(self, value: Any) -> Any:
        """Containers of tensors and of what does not change, with copies in the place of tensors.

        Tensors that share their memory have one copy. What was returned before is overwritten.
        """
        copies: dict[Hashable, Tensor] = {}
        copied = self._copied(value, (), copies)
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        return copied

    def _copied(self, value: Any, path: tuple[Any, ...], copies: dict[Hashable, Tensor]) -> Any:
        if isinstance(value, dict):
            return {key: self._copied(entry, (*path, key), copies) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copied(entry, (*path, key), copies) for key, entry in enumerate(value))
        if not isinstance(value, Tensor):
            return value
        key = value.device, value.data_ptr(), value.shape, value.stride(), value.dtype
        if not value.numel() or key not in copies:
            buffer = self._buffers.get(path)
            if buffer is None or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
                buffer = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
                self._buffers[path] = buffer
            copies[key] = buffer.copy_(value.detach(), non_blocking=True)
        return copies[key]
