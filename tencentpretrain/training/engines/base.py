"""What every engine does: it alone knows where the model lives and in what precision it computes."""

from __future__ import annotations

import copy
import math
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tencentpretrain.batch import Batch
from tencentpretrain.errors import ConfigError
from tencentpretrain.state_dict import read_tensors, save_weights
from tencentpretrain.targets.output import TargetOutput
from tencentpretrain.training.engines.ranks import ALONE, Ranks
from tencentpretrain.training.host import HostCopies
from tencentpretrain.training.moving_average import KEY as AVERAGE
from tencentpretrain.training.moving_average import average_in_place, averaged

P = ParamSpec("P")
T = TypeVar("T")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

# Dense bf16/fp16 FLOP/s (vendors' data sheets); the first of these that the device's name contains.
PEAKS = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "H800": 989e12, "H20": 148e12,
    "A100": 312e12, "A800": 312e12, "L40S": 362e12, "A10": 125e12, "V100": 125e12, "T4": 65e12,
    "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip

_MORE, _STOP = 1, 2  # what a rank says before each batch of a validation: it has one, it was told to stop


def choose_precision(precision: str, device: torch.device) -> tuple[str, str]:
    """The precision to compute in, and why.

    Raises:
        ConfigError: fp16 on a device that does not have it.
    """
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError(
            "--precision fp16 needs a GPU, but the device is the CPU; use fp32, bf16 or auto, which chooses."
        )
    if precision != "auto":
        return precision, "as asked"
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if native:
        return "bf16", "the device multiplies it natively"
    return "fp32", "the device does not multiply bf16 natively"


def choose_device(gpu_ranks: Sequence[int]) -> tuple[torch.device, list[str]]:
    """The device of one process, and what is to be said about it.

    Raises:
        ConfigError: there is no such GPU.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu"), [f"gpu_ranks {rank}: there is no GPU" for rank in gpu_ranks[:1]]
    if not gpu_ranks:
        return torch.device("cuda"), []
    count, device = torch.cuda.device_count(), torch.device("cuda", gpu_ranks[0])
    if not 0 <= gpu_ranks[0] < count:
        raise ConfigError(f"--gpu_ranks {gpu_ranks[0]}: there are {count} GPUs, numbered from 0.")
    torch.cuda.set_device(device)
    return device, []


def in_parts(directory: Path) -> bool:
    """Whether a state was written by engines of which each rank wrote its part of the weights."""
    return (directory / "shards").is_dir() or (directory / "deepspeed").is_dir()


def whole_weights(directory: Path) -> Path:
    """The file of a state that holds all weights."""
    return next(path for path in directory.iterdir() if path.stem == "model")


def average_name(weights_name: str) -> str:
    """What the file of averages is called that lies beside that of the weights, if there are any."""
    return f"{AVERAGE}{Path(weights_name).suffix}"


class Engine:
    """A process's part of the training of a model, on its device.

    `start` and `prepare` once; then for every update `forward` and `backward` for each micro-batch, `clip`
    and `step`; `close` at the end, where all processes come to it. With one process nothing has to be agreed
    upon; engines with several override what does.

    Args:
        device: where this process computes, and what is to be told about it.
    """

    name: str
    rank = 0
    world_size = 1
    sharded = False  # ranks hold parts of the weights, and have to run the model together

    def __init__(self, device: tuple[torch.device, list[str]], precision: str, compile: bool) -> None:
        self.device, self._notes = device
        self.precision, self._why = choose_precision(precision, self.device)
        if self.device.type == "cpu":
            # The moments of tokens that are rarely seen decay into denormal numbers, with which a CPU
            # computes many times slower. Threads inherit this from who starts them, so it is set early.
            torch.set_flush_denormal(True)
        self.compile = compile
        self.ranks: Ranks = ALONE
        self._copies = HostCopies()
        self._thread = ThreadPoolExecutor(1)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self._spare: Batch  # a rank without a batch goes along with one it has seen
        self.model: nn.Module
        self.optimizer: Optimizer

    @property
    def title(self) -> str:
        """The engine in words."""
        return self.name

    @property
    def divided(self) -> Sequence[str]:
        """What each rank has a part of: weights, gradients, optimizer."""
        return ("weights", "gradients", "optimizer") if self.sharded else ()

    @property
    def on_host(self) -> Sequence[str]:
        """What is kept in the host's memory instead of the device's, named likewise."""
        return ()

    def decisions(self) -> list[str]:
        """A line for each thing that was decided here."""
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name()
        else:
            name = f"{torch.get_num_threads()} threads"
        return [
            f"device: {self.device} ({name})",
            f"engine: {self.title}{', compiled' if self.compile else ''}",
            f"precision: {self.precision} ({self._why})",
            *self._notes,
        ]

    def start(self) -> None:
        """Meet the other processes."""

    def close(self) -> None:
        """Part from the other processes, when what goes on in the background has ended."""
        self._thread.shutdown()

    def in_background(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Do this beside the training, one thing after the other."""
        return self._thread.submit(work, *args, **kwargs)

    def building(self) -> AbstractContextManager[None]:
        """The model to train is built inside."""
        return nullcontext()

    def place(self, model: nn.Module) -> None:
        """What is done to a model that was built, before its weights get their values."""

    def prepare(
        self, model: nn.Module, make_optimizer: Callable[[nn.Module], Optimizer] | None = None
    ) -> None:
        """Take over a model; without an optimizer for `forward` only."""
        self.model = model.to(self.device)
        if make_optimizer is not None:
            self.optimizer = make_optimizer(self.model)
            self._parameters = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        if self.compile:
            # Not the whole: the shapes of a target follow the number of predicted positions, which differs
            # from batch to batch. What costs time and gains from compiling is the stack of layers.
            getattr(self.model, "encoder", self.model).compile()

    def seed(self, seed: int) -> None:
        """Start the device's random numbers (dropout) anew."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def forward(self, batch: Batch, last: bool = True) -> TargetOutput:
        """Run the model on a batch of CPU tensors.

        Args:
            last: whether the update's last `backward` is that of this batch: then engines with ranks
                exchange the gradients.
        """
        if self.sharded and torch.is_grad_enabled():
            self._spare = batch
        return self._run(self.model, batch)

    def evaluate(
        self, batches: Iterator[Batch], stop: Sequence[int], take: Callable[[TargetOutput], None]
    ) -> bool:
        """Run the model on batches of CPU tensors, each rank on its own; false if it was broken off.

        Args:
            stop: something is in it as soon as this rank is told to; then all do.
            take: is given the outputs.
        """
        while True:
            batch = next(batches, None)
            said = self.agree(_STOP if stop else 0 if batch is None else _MORE)
            if said != _MORE:
                return said != _STOP
            if batch is not None:
                take(self.forward(batch))
            elif self.sharded:
                self.forward(self._spare)

    def _run(self, model: nn.Module, batch: Batch) -> TargetOutput:
        moved = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        dtype = DTYPES.get(self.precision)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            output: TargetOutput = model(moved)
        return output

    def backward(self, loss: Tensor) -> None:
        """Add up gradients; those of a loss that is not finite are NaN."""
        self._scaler.scale(poisoned(loss)).backward()  # type: ignore[no-untyped-call]

    def gradient(self, loss: Tensor, weight: Tensor) -> Tensor:
        """The gradient of one weight, up to a positive factor; nothing is added up anywhere."""
        return torch.autograd.grad(self._scaler.scale(loss), [weight])[0]

    def clip(self, max_norm: float) -> Tensor:
        """Scale gradients down to `max_norm` (0: leave them) and return their norm, still on the device."""
        self._scaler.unscale_(self.optimizer)
        if max_norm > 0:
            self._norm = nn.utils.clip_grad_norm_(self._parameters, max_norm)
        else:
            self._norm = nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        return self._norm

    def step(self, learning_rate: float) -> None:
        """Update the weights, unless the norm of the gradient is not finite: then nothing changes.

        All ranks have the same norm, and so do the same.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)
        if self._parameters[0].device.type != "cpu" and getattr(
            self.optimizer, "_step_supports_amp_scaling", False
        ):
            # Its kernel looks at the norm itself, as it does for torch's GradScaler, so that nobody waits.
            self.optimizer.grad_scale = None  # type: ignore[attr-defined]
            self.optimizer.found_inf = (~self._norm.isfinite()).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif self._norm.isfinite():
            self.optimizer.step()
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def fetch(self, value: Tensor) -> Callable[[], float]:
        """Begin to copy a number from the device; what is returned waits for it, not for what comes later."""
        copy = value.detach().to("cpu", non_blocking=True)
        if value.device.type != "cuda":
            return copy.item
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()

        def wait() -> float:
            arrived.synchronize()
            return copy.item()

        return wait

    def reduce(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums over all ranks, of the names that any of them has."""
        return dict(values)

    def add_up(self, value: Tensor) -> Tensor:
        """The sum over all ranks of a tensor, on the device."""
        return value

    def agree(self, value: int) -> int:
        """The largest value of all ranks: what one of them was told, all of them do."""
        return value

    def _load_by_name(self, directory: Path, training: Mapping[str, Any]) -> None:
        """Take over a state of another engine."""
        from tencentpretrain.training import sharded

        stored, numbers = sharded.stored_in(directory, training, self.model, self._parameters)
        sharded.restore(self.model, self.optimizer, stored, numbers)

    def together(self) -> AbstractContextManager[None]:
        """`ranks.agreed()`, and the engine is closed if there was an error."""
        return nullcontext()

    def save_state(self, directory: Path, weights_name: str) -> dict[str, Any]:
        """Write this rank's part of the weights and of what training needs into a state's directory.

        All ranks come here, and the directory is one for all; they choose different names for their files.

        Args:
            weights_name: of the file with all weights, which is then published.

        Returns:
            What is the same on all ranks: tensors, numbers and strings. Rank 0 keeps it in `training.pt`.
        """
        if self.rank == 0:
            save_weights(self.model.state_dict(), directory / weights_name)
            if (average := averaged(self.model, self.optimizer)) is not None:
                save_weights(average, directory / average_name(weights_name))
        return self._training_state()

    def snapshot(self) -> Callable[[Path, str], dict[str, Any]]:
        """Copy the state to the host; what is returned writes the copy, as `save_state` does, in any thread.

        It is no longer to be called when the next copy has been made.
        """
        if self.rank > 0:  # the first has it all
            return lambda directory, weights_name: {}
        state = dict(self.model.state_dict()), self._training_state(), averaged(self.model, self.optimizer)
        weights, training, average = self._copies.take(state)

        def write(directory: Path, weights_name: str) -> dict[str, Any]:
            save_weights(weights, directory / weights_name)
            if average is not None:
                save_weights(average, directory / average_name(weights_name))
            return dict(training)

        return write

    def averaging(self) -> AbstractContextManager[None]:
        """Inside, the model computes with the moving average of its weights, if there is one."""
        return average_in_place(self.optimizer)

    def background_ranks(self) -> Ranks:
        """The ranks, for a thread of each that speaks with the others beside the training."""
        return self.ranks

    def _training_state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "scaler": self._scaler.state_dict()}

    def load_state(self, directory: Path, training: Mapping[str, Any]) -> None:
        """Take over a state. All ranks come here.

        Args:
            directory: where `save_state` wrote; nothing in it is changed.
            training: what `save_state` returned, in a file that is mapped to memory.
        """
        if in_parts(directory):
            self._load_by_name(directory, training)
            return
        self.model.load_state_dict(dict(read_tensors(whole_weights(directory))))
        with keeping_options(self.optimizer):
            # A copy: torch takes over the tensors themselves, and these are a file's.
            self.optimizer.load_state_dict(copy.deepcopy(training["optimizer"]))
        if training["scaler"]:
            self._scaler.load_state_dict(training["scaler"])

    def memory_gb(self) -> float:
        """Largest amount of memory used so far: the device's, or on a CPU the process's."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    @property
    def peak_flops(self) -> float | None:
        """Matrix throughput of the device in this precision in FLOP/s, if it is known."""
        if self.device.type != "cuda" or self.precision == "fp32":
            return None
        name = torch.cuda.get_device_name()
        return next((peak for known, peak in PEAKS.items() if known in name), None)


@contextmanager
def keeping_options(optimizer: Optimizer) -> Iterator[None]:
    """Inside, a state is loaded; options that it brings along give way to those that were asked for."""
    asked = [
        {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
    ]
    yield
    for group, options in zip(optimizer.param_groups, asked, strict=True):
        group.update(options)


def poisoned(loss: Tensor) -> Tensor:
    """The loss; where it is not finite, with a gradient of NaN, which reaches every rank with the others."""
    return loss * torch.where(loss.isfinite(), 1.0, math.nan)
