"""Memory of training, found by two updates of a model whose tensors have no contents."""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tencentpretrain.batch import FIELDS, Batch
from tencentpretrain.targets.output import TargetOutput

SCRATCH = 1.05  # what libraries of matrix products take beside the tensors, on a CPU (benchmarks/memory.py)
FEW_LAYERS = 6  # deep models are judged by about so many layers, and twice as many
_FARTHEST = 16  # times the rows asked for: what is measured at most
_REFINEMENTS = 3  # of the largest batch; memory does not grow quite evenly with the rows


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes that one process needs beside its program.

    Attributes:
        peak: all together, at the worst moment of an update.
        activations: what is not weights, gradients or optimizer then: activations, what operations need while
            they run, and what the allocator cannot use again.
    """

    weights: int
    gradients: int
    optimizer: int
    peak: int

    @property
    def activations(self) -> int:
        return max(self.peak - self.weights - self.gradients - self.optimizer, 0)

    def shared(self, ranks: int, divided: Collection[str]) -> Memory:
        """Of each of several ranks that have a part of what is `divided`; a layer whose weights are put
        together for a time is not counted."""
        return self._with({name: getattr(self, name) // ranks for name in divided})

    def without(self, elsewhere: Collection[str]) -> Memory:
        """With some of weights, gradients and optimizer in other memory; a layer whose weights are fetched
        for a time is not counted."""
        return self._with(dict.fromkeys(elsewhere, 0))

    def _with(self, parts: Mapping[str, int]) -> Memory:
        saved = sum(getattr(self, name) - size for name, size in parts.items())
        return dataclasses.replace(self, **parts, peak=self.peak - saved)

    def beyond(self, shallower: Memory, times: float) -> Memory:
        """Of a model that is deeper than this one by `times` what this one is deeper than `shallower`.

        What a layer takes is the same everywhere; which moment is the worst may change with the depth.
        """
        one, other = dataclasses.astuple(self), dataclasses.astuple(shallower)
        weights, gradients, optimizer, peak = (
            round(mine + times * (mine - its)) for mine, its in zip(one, other, strict=True)
        )
        return Memory(weights, gradients, optimizer, max(peak, weights + gradients + optimizer))


class _Allocator(Protocol):
    """Where tensors get their bytes; `peak`: the most that it ever took."""

    peak: int

    def allocate(self, size: int) -> Callable[[], None]:
        """Take `size` bytes; the result gives them back."""


class _Exact:
    """As many bytes as live tensors have: what a GPU reports as its peak."""

    def __init__(self) -> None:
        self._now = self.peak = 0

    def allocate(self, size: int) -> Callable[[], None]:
        self._grow(size)
        return lambda: self._grow(-size)

    def _grow(self, size: int) -> None:
        self._now += size
        self.peak = max(self.peak, self._now)


class _Heap:
    """glibc's malloc, which keeps freed tensors of up to 32 MiB and gives them away again by best fit.

    Tensors are aligned, for which it looks for more than they take, so that the place of a tensor is too
    small for another of that size unless a neighbour is free: a fifth of a heap may lie idle. Larger blocks
    are mapped, and go back to the system; so do those above a threshold that follows the largest block freed
    so far (mallopt(3)).
    """

    ALIGNMENT = 96  # bytes looked for beyond those taken
    LARGEST_KEPT = 32 << 20

    def __init__(self) -> None:
        self.peak = 0
        self._mapped, self._end, self._top = 0, 0, 0  # bytes of the system; of the heap; where its use ends
        self._threshold = 128 << 10
        self._holes: dict[int, int] = {}  # by their start: their end
        self._starts: dict[int, int] = {}  # by their end

    def allocate(self, size: int) -> Callable[[], None]:
        size = -(-(size + 16) // 16) * 16
        fitting = [
            (end - start, start) for start, end in self._holes.items() if end - start >= size + self.ALIGNMENT
        ]
        if fitting:
            _, start = min(fitting)
            end = self._holes.pop(start)
            self._holes[start + size] = end
            self._starts[end] = start + size
        elif self._end - self._top < size and size >= self._threshold:
            self._mapped += size
            self._grown()
            return lambda: self._unmap(size)
        else:
            start, self._top = self._top, self._top + size
            self._end = max(self._end, self._top)
            self._grown()
        return lambda: self._free(start, start + size)

    def _grown(self) -> None:
        self.peak = max(self.peak, self._mapped + self._end)

    def _unmap(self, size: int) -> None:
        self._mapped -= size
        if size <= self.LARGEST_KEPT:
            self._threshold = max(self._threshold, size)

    def _free(self, start: int, end: int) -> None:
        if end in self._holes:
            end = self._holes.pop(end)
            del self._starts[end]
        if start in self._starts:
            start = self._starts.pop(start)
            del self._holes[start]
        if end == self._top:
            self._top = start
        else:
            self._holes[start], self._starts[end] = end, start


class _Live(TorchDispatchMode):
    """Hands the bytes of every tensor to an allocator, and back when nobody holds them any more."""

    def __init__(self, allocator: _Allocator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._allocator = allocator
        self._held: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            return 1  # who asks a tensor without contents whether something is so, is told that it is
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._hold(leaf.untyped_storage())
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._held:
            return
        give_back = self._allocator.allocate(storage.nbytes())

        def freed(_: Any) -> None:
            del self._held[key]
            give_back()

        self._held[key] = weakref.ref(storage, freed)


def measure_memory(
    build: Callable[[], nn.Module],
    make_optimizer: Callable[[nn.Module], Optimizer],
    batch: Batch,
    device: torch.device,
    dtype: torch.dtype | None = None,
    *,
    accumulation: bool = False,
    gradients_stay: bool = False,
) -> Memory:
    """Memory of updates with full batches like `batch`; nothing is computed or allocated.

    Args:
        batch: its shapes and types count.
        dtype: of autocast; None: none.
        accumulation: several batches make an update.
        gradients_stay: they keep their memory between updates (buckets of DistributedDataParallel).
    """
    on_cpu = device.type == "cpu"
    allocator: _Allocator = _Heap() if on_cpu else _Exact()
    with FakeTensorMode(), _Live(allocator), RecurrentAtOnce():
        with torch.device(device):
            model = build()
            inputs = _like(batch)
        weights = list({id(weight): weight for weight in model.parameters()}.values())
        optimizer = make_optimizer(model)
        for _ in range(2):  # the second one finds the optimizer's states
            for _ in range(2 if accumulation else 1):
                with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                    output: TargetOutput = model(inputs)
                output.loss.backward()  # type: ignore[no-untyped-call]
                del output
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=not gradients_stay)
        states = [value for state in optimizer.state.values() for value in state.values()]
    own = _bytes(weights)
    return Memory(
        weights=own,
        gradients=_bytes([weight for weight in weights if weight.requires_grad]),
        optimizer=_bytes([state for state in states if isinstance(state, Tensor)]),
        peak=round(allocator.peak * (SCRATCH if on_cpu else 1)),
    )


def judge_depth(measure: Callable[[int], Memory], depth: int, together: int) -> Memory:
    """Memory of a model with `depth` layers; of a deep one, as shallower ones let expect.

    Args:
        measure: memory with a number of layers.
        together: layers whose activations are recomputed at once; only whole groups of them are alike.
    """
    few = -(-FEW_LAYERS // together) * together
    if depth <= max(4 * FEW_LAYERS, 2 * few):
        return measure(depth)
    return measure(2 * few).beyond(measure(few), depth / few - 2)


def _like(batch: Any) -> Any:
    """A batch of the same shapes and types, or one for each stream."""
    return {
        name: torch.ones(value.shape, dtype=value.dtype) if isinstance(value, Tensor) else _like(value)
        for name, value in batch.items()
    }


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


class RecurrentAtOnce(TorchFunctionMode):
    """Recurrent layers as if no step waited for the one before.

    The matrix products are the same, and so are the sizes of what is kept, in a few operations instead of
    thousands.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(function, "__name__", "") not in ("lstm", "gru", "rnn_tanh"):
            return function(*args, **(kwargs or {}))
        hidden, _, weights, biases, layers, _, _, bidirectional, *_ = args
        each = 4 if biases else 2
        for layer in range(layers):
            directions = []
            for direction in range(1 + bidirectional):
                first = each * (layer * (1 + bidirectional) + direction)
                inputs, past, *offsets = weights[first : first + each]
                gates = nn.functional.linear(hidden, inputs, offsets[0] if offsets else None)
                # Any state of that shape will do for the one before.
                before = gates[..., : past.shape[1]]
                gates = (
                    gates + nn.functional.linear(before, past, offsets[1] if offsets else None)
                ).sigmoid()
                directions.append(gates[..., : past.shape[1]] * gates[..., -past.shape[1] :].tanh())
            hidden = torch.cat(directions, -1)
        return hidden, hidden, hidden


def full_batch(batch: Any, rows: int, length: int, tgt_length: int | None = None) -> Any:
    """The shapes of a batch with as many rows, all as long as they may be, on the "meta" device.

    Args:
        batch: a real one, as far as it goes; where tokens are predicted, it says the share of them.
        tgt_length: of what a decoder reads, if there is one.
    """
    if "stream_0" in batch:
        return {name: full_batch(stream, rows, length) for name, stream in batch.items()}
    had = len(batch["input_ids"])

    def full(name: str, tensor: Tensor) -> Tensor:
        decoder = tgt_length is not None and name.startswith(("decoder_", "lm_"))
        reference = batch["decoder_input_ids" if decoder else "input_ids"]
        size = tgt_length if decoder and tgt_length else length
        shape = list(tensor.shape)
        if FIELDS[name].shape == "N" and name != "document_starts":
            shape[0] = round(shape[0] * rows * size / reference.numel())
        else:
            shape[0] = -(-shape[0] * rows // had)
            shape[1:2] = [size] * len(shape[1:2]) if FIELDS[name].shape.split()[1:2] != ["C"] else shape[1:2]
        return torch.empty(shape, dtype=tensor.dtype, device="meta")

    return {name: full(name, tensor) for name, tensor in batch.items()}


def largest_batch(measure: Callable[[int], Memory], rows: int, known: Memory, room: int) -> int:
    """How many rows a batch may have for its memory to be about `room`; 0: not one.

    Args:
        known: of a batch with `rows` rows. Far beyond that memory is taken to grow evenly.
    """
    if known.peak <= room:
        one, other = (rows, known.peak), (2 * rows, measure(2 * rows).peak)
    elif rows == 1 or (few := measure(1).peak) > room:
        return 0
    else:
        one, other = (1, few), (rows, known.peak)
    for _ in range(_REFINEMENTS):
        # Losses are computed in chunks, so that a measurement of very many rows takes long.
        between = min(_on_the_line(one, other, room), _FARTHEST * rows)
        if between in (one[0], other[0]):
            break
        nearer = min(one, other, key=lambda point: abs(point[1] - room))
        one, other = nearer, (between, measure(between).peak)
    return _on_the_line(one, other, room)


def _on_the_line(one: tuple[int, int], other: tuple[int, int], room: int) -> int:
    """Where the line through two points of rows and bytes reaches `room`."""
    if one[0] == other[0]:
        return one[0]
    each = max((other[1] - one[1]) / (other[0] - one[0]), 1)
    return max(math.floor(one[0] + (room - one[1]) / each), 1)


def free_memory(device: torch.device) -> int:
    """Bytes of the device that are not in use."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable")


def program_memory() -> int:
    """Bytes that this process has now, on the CPU."""
    return _kilobytes(Path("/proc/self/status"), "VmRSS")


def _kilobytes(path: Path, name: str) -> int:
    found = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
    return 1024 * next(int(words[1]) for words in found if words and words[0] == f"{name}:")
