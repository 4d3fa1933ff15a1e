"""DeepSpeed: data parallelism in which each process keeps a part of optimizer, gradients, weights (ZeRO)."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tencentpretrain.batch import Batch
from tencentpretrain.errors import ConfigError
from tencentpretrain.state_dict import assign
from tencentpretrain.targets.output import TargetOutput
from tencentpretrain.training.engines.base import DTYPES, keeping_options, poisoned
from tencentpretrain.training.engines.deepspeed_config import DeepSpeedSetup, load_deepspeed
from tencentpretrain.training.engines.emptied import Emptied
from tencentpretrain.training.engines.group import GroupEngine
from tencentpretrain.training.engines.processes import Place
from tencentpretrain.training.engines.ranks import watching


class DeepSpeedEngine(GroupEngine):
    """DeepSpeed's engine (Rajbhandari et al. 2020, ZeRO); gradients are sums over all ranks, not means.

    With stage 0 DeepSpeed does nothing but exchange gradients. From stage 1 on the weights themselves are in
    the precision that computes, with fp32 copies shared out over the ranks.
    """

    name = "deepspeed"

    def __init__(
        self, place: Place, setup: DeepSpeedSetup, compile: bool = False, backend: str | None = None
    ) -> None:
        super().__init__(place, setup.precision, compile, backend)
        self.stage, self._setup = setup.stage, setup
        self.sharded = self.stage == 3
        if self.sharded and compile:
            raise ConfigError("--compile: ZeRO stage 3 takes weights apart between layers; use stage 2.")
        os.environ.setdefault("LOCAL_RANK", str(place.local_rank))  # DeepSpeed looks for it there
        # Of "CPU devices": else it asks another program at every step.
        os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if self.stage > 0:
            self._scaler = torch.amp.GradScaler(self.device.type, enabled=False)  # DeepSpeed has its own
        self._config: dict[str, Any] = setup.config | {
            "zero_allow_untested_optimizer": True,  # the setup has checked it
            "zero_force_ds_cpu_optimizer": False,  # its own would have to be compiled
        }
        if self.stage > 0 and self.precision != "fp32":
            own = {"check_grad_overflow": True} if self.precision == "bf16" else {}
            self._config[self.precision] = own | setup.config.get(self.precision, {}) | {"enabled": True}
        if self.stage > 0 and self.precision == "bf16":
            self._config["data_types"] = {"grad_accum_dtype": "fp32"} | setup.config.get("data_types", {})

    @property
    def title(self) -> str:
        return f"{self._setup.title}{super().title.removeprefix(self.name)}"

    @property
    def divided(self) -> Sequence[str]:
        return ("optimizer", "gradients", "weights")[: self.stage]

    @property
    def on_host(self) -> Sequence[str]:
        """Gradients go where the optimizer is (Ren et al. 2021, §4.1)."""
        parts = {"offload_optimizer": ("optimizer", "gradients"), "offload_param": ("weights",)}
        zero = self._config["zero_optimization"]
        asked = [name for name in parts if (zero.get(name) or {}).get("device") == "cpu"]
        return [part for name in asked for part in parts[name]]

    def start(self) -> None:
        super().start()
        deepspeed = load_deepspeed()
        # None of the kernels that DeepSpeed could compile: one would take a minute now, and is for inference.
        deepspeed.ops.__compatible_ops__ = {}
        deepspeed.init_distributed(self.backend, verbose=False)
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)

    def close(self) -> None:
        if hasattr(self, "_deepspeed"):
            self._deepspeed.destroy()
        super().close()

    def building(self) -> AbstractContextManager[None]:
        if not self.sharded:
            return super().building()
        self._emptied = Emptied()
        return self._emptied.building()

    def place(self, model: nn.Module) -> None:
        """Until `prepare`, when DeepSpeed takes over, each rank has an equal part of each weight."""
        if not self.sharded:
            return
        from torch.distributed import tensor as parted
        from torch.distributed.device_mesh import init_device_mesh

        mesh = init_device_mesh(self.device.type, (self.world_size,))
        vectors = self._emptied.vectors_of(model)

        def part(weight: nn.Parameter) -> nn.Parameter:
            kind = parted.Shard(0) if weight.ndim else parted.Replicate()
            empty = parted.empty(weight.shape, device_mesh=mesh, placements=[kind])
            return nn.Parameter(empty, weight.requires_grad)

        _replace(model, part)
        with torch.no_grad():
            for name, value in vectors.items():
                assign(model.get_parameter(name), value)

    def prepare(
        self, model: nn.Module, make_optimizer: Callable[[nn.Module], Optimizer] | None = None
    ) -> None:
        if self.sharded:
            assert make_optimizer is not None
            self.model, self.optimizer = model, make_optimizer(model)
            self._take_apart(model, self.optimizer)
            groups = self.optimizer.param_groups
            self._parameters = [weight for group in groups for weight in group["params"]]
        else:
            super().prepare(model, make_optimizer)
        if self.stage > 0 and self.optimizer._optimizer_step_post_hooks:
            raise ConfigError(
                "ZeRO updates one group of weights after the other, so that nothing can follow an update of "
                "all, as a moving average does (--ema_decay); use zero_optimization.stage 0."
            )
        model.register_forward_hook(lambda module, inputs, output: (output.parts, output))
        with contextlib.redirect_stdout(None):  # where it tells how much memory is free
            self._deepspeed = load_deepspeed().initialize(
                model=model, optimizer=self.optimizer, config=self._config
            )[0]
        if self.stage > 0:
            from tencentpretrain.training.zero_state import DeepSpeedFiles

            self._deepspeed.checkpoint_engine = self._files = DeepSpeedFiles()

    def _take_apart(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Put each weight together, one after the other, and let DeepSpeed take it apart in its way."""
        from torch.distributed.tensor import DTensor

        partition = load_deepspeed().zero.Init(config_dict_or_path=self._config)

        def part(weight: nn.Parameter) -> nn.Parameter:
            assert isinstance(weight, DTensor)
            whole = weight.full_tensor().detach().to(DTYPES.get(self.precision, torch.float32))
            own = nn.Parameter(whole, weight.requires_grad)
            partition._convert_to_zero_parameters([own])
            return own

        replaced = _replace(model, part)
        for group in optimizer.param_groups:
            group["params"] = [replaced[weight] for weight in group["params"]]
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(self.device)

    def forward(self, batch: Batch, last: bool = True) -> TargetOutput:
        if not torch.is_grad_enabled():
            return self._run(self.model, batch)
        self._spare = batch
        self._deepspeed.set_gradient_accumulation_boundary(last)
        return self._run(self._deepspeed, batch)

    def _run(self, model: nn.Module, batch: Batch) -> TargetOutput:
        # DeepSpeed looks for tensors in tuples and dictionaries, and puts its own in their place.
        returned: Any = super()._run(model, batch)
        parts, output = returned
        whole: TargetOutput = dataclasses.replace(output, parts=parts)
        return whole

    def backward(self, loss: Tensor) -> None:
        scaled = self._scaler.scale(poisoned(loss))
        with watching():  # DeepSpeed takes the mean over the ranks
            self._deepspeed.backward(scaled * self.world_size, scale_wrt_gas=False)

    def clip(self, max_norm: float) -> Tensor:
        if self.stage == 0:
            return super().clip(max_norm)
        from deepspeed.runtime.utils import combine_grad_norm_groups, get_global_norm_of_tensors

        zero = self._deepspeed.optimizer
        zero.clip_grad = max_norm  # in its step, where it computes the norm again
        with watching():
            if self.stage == 3:
                self._norm = combine_grad_norm_groups(zero._get_norm_groups()) / zero.loss_scale
            elif hasattr(zero, "scaled_global_norm"):
                self._norm = zero.scaled_global_norm() / zero.loss_scale
            else:  # DeepSpeed's optimizer of stage 1 and bf16
                self._norm = get_global_norm_of_tensors(zero.get_grads_for_norm()[0])
        return self._norm

    def step(self, learning_rate: float) -> None:
        if self.stage == 0:
            super().step(learning_rate)
            return
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)
        with watching():
            self._deepspeed.step()  # changes nothing if the norm is not finite

    def save_state(self, directory: Path, weights_name: str) -> dict[str, Any]:
        if self.stage == 0:
            return super().save_state(directory, weights_name)
        from tencentpretrain.training.sharded import names_of
        from tencentpretrain.training.zero_state import ZERO

        with watching():
            self._deepspeed.save_checkpoint(str(directory), tag=ZERO)
        self._files.check()
        return {"names": names_of(self.model), "numbers": {}, "layout": self._layout}

    @property
    def _layout(self) -> str:
        """What DeepSpeed's files depend on."""
        return f"{self._setup.title}, {self.precision}, {self.world_size} processes"

    def snapshot(self) -> Callable[[Path, str], dict[str, Any]]:
        if self.stage == 0:
            return super().snapshot()
        with tempfile.TemporaryDirectory() as elsewhere:
            caught = self._files.caught = {}
            shared = self.save_state(Path(elsewhere), "")
            self._files.caught = None
            copies = self._copies.take({os.path.relpath(path, elsewhere): caught[path] for path in caught})

        def write(directory: Path, weights_name: str) -> dict[str, Any]:
            for name, state in copies.items():
                (directory / name).parent.mkdir(exist_ok=True)
                torch.save(state, directory / name)
            return shared

        return write

    def load_state(self, directory: Path, training: Mapping[str, Any]) -> None:
        if self.stage == 0:
            super().load_state(directory, training)
            return
        from tencentpretrain.training.zero_state import ZERO

        with keeping_options(self.optimizer):
            if training.get("layout") == self._layout:
                self._deepspeed.load_checkpoint(str(directory), tag=ZERO)
            else:
                self._load_by_name(directory, training)

    def _load_by_name(self, directory: Path, training: Mapping[str, Any]) -> None:
        if self.stage == 0:
            super()._load_by_name(directory, training)
            return
        from tencentpretrain.training import sharded
        from tencentpretrain.training.zero_state import fill_zero

        stored, _ = sharded.stored_in(directory, training, self.model, self._parameters)
        fill_zero(self._deepspeed.optimizer, self.model, stored)


def _replace(
    model: nn.Module, make: Callable[[nn.Parameter], nn.Parameter]
) -> dict[nn.Parameter, nn.Parameter]:
    """Replace each parameter of a model, a tied one once; the new one by the old one."""
    replaced: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if parameter not in replaced:
                    replaced[parameter] = make(parameter)
                module._parameters[name] = replaced[parameter]
    return replaced
