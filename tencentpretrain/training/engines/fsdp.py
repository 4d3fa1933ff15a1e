"""Fully sharded data parallelism: every process has a part of every weight and a part of every batch."""

from __future__ import annotations

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
from tencentpretrain.layers.transformer import TransformerLayer
from tencentpretrain.state_dict import assign
from tencentpretrain.targets.output import TargetOutput
from tencentpretrain.training.engines.base import DTYPES
from tencentpretrain.training.engines.emptied import Emptied
from tencentpretrain.training.engines.group import GroupEngine
from tencentpretrain.training.engines.processes import Place
from tencentpretrain.training.engines.ranks import watching


class FSDPEngine(GroupEngine):
    """torch's fully_shard, layer by layer; gradients are the sums over all ranks, not means.

    Weights of a layer are put together before it is needed and taken apart after it, in fp32 or in the type
    it computes in; gradients are added up in fp32.

    Args:
        offload: keep weights, gradients and optimizer in the host's memory.
    """

    name = "fsdp"
    sharded = True

    def __init__(
        self,
        place: Place,
        precision: str = "auto",
        compile: bool = False,
        backend: str | None = None,
        offload: bool = False,
    ) -> None:
        super().__init__(place, precision, compile, backend)
        if self.precision == "fp16":
            raise ConfigError("--engine fsdp computes in bf16 or fp32; for --precision fp16 use ddp.")
        if offload and self.device.type == "cpu":
            raise ConfigError("--fsdp_offload moves weights from GPUs to the host, but there is no GPU.")
        if offload and self.backend == "nccl":
            self.backend = "cpu:gloo,cuda:nccl"  # the norm of gradients is added up where they are
        self._offload, self._emptied = offload, Emptied()

    @property
    def title(self) -> str:
        return super().title + (", weights on the host" if self._offload else "")

    @property
    def on_host(self) -> Sequence[str]:
        return self.divided if self._offload else ()

    def building(self) -> AbstractContextManager[None]:
        return self._emptied.building()

    def place(self, model: nn.Module) -> None:
        """Take the model apart, and make room for this rank's part."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import (
            CPUOffloadPolicy,
            FSDPModule,
            MixedPrecisionPolicy,
            OffloadPolicy,
            fully_shard,
        )

        vectors = self._emptied.vectors_of(model)
        # Layers hand on the attention mask, which may be a view; nothing is done to it in place.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        place = CPUOffloadPolicy() if self._offload else OffloadPolicy()
        layers = {
            f"{name}.": child
            for name, child in model.named_modules(remove_duplicate=False)
            if isinstance(child, TransformerLayer)
        }
        # What a layer has in common with others (T5's table of distances, which published files name in every
        # layer) belongs to the whole model.
        owners: dict[nn.Parameter, set[nn.Module | None]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            owner = next((layer for prefix, layer in layers.items() if name.startswith(prefix)), None)
            owners.setdefault(parameter, set()).add(owner)
        shared = {parameter for parameter, own in owners.items() if len(own) > 1}
        # Layers take bf16 copies of their weights, which is what autocast would make of them: half of what
        # is sent. The residual stream between them stays as it is.
        precision = MixedPrecisionPolicy(
            param_dtype=DTYPES.get(self.precision), reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        for layer in dict.fromkeys(layers.values()):
            fully_shard(
                layer, mesh=mesh, mp_policy=precision, offload_policy=place,
                ignored_params=shared & set(layer.parameters()),
            )  # fmt: skip
        whole = MixedPrecisionPolicy(cast_forward_inputs=False)
        fully_shard(model, mesh=mesh, mp_policy=whole, offload_policy=place)
        for unit in model.modules():
            if isinstance(unit, FSDPModule):
                unit.set_gradient_divide_factor(1.0)
                unit.set_force_sum_reduction_for_comms(True)
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        model.to_empty(device=torch.device("cpu") if self._offload else self.device)
        with torch.no_grad():
            for name, value in vectors.items():
                assign(model.get_parameter(name), value)
            for name, value in buffers.items():
                model.get_buffer(name).copy_(value)

    def prepare(
        self, model: nn.Module, make_optimizer: Callable[[nn.Module], Optimizer] | None = None
    ) -> None:
        self.model = model
        if make_optimizer is not None:
            self.optimizer = make_optimizer(model)
            self._parameters = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        if self.compile:
            for layer in model.modules():
                if isinstance(layer, TransformerLayer):
                    layer.compile()

    def forward(self, batch: Batch, last: bool = True) -> TargetOutput:
        if torch.is_grad_enabled():
            self.model.set_requires_gradient_sync(last)  # type: ignore[operator]
        with watching():
            return super().forward(batch)

    def clip(self, max_norm: float) -> Tensor:
        from torch.distributed.tensor import DTensor

        norm = nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        assert isinstance(norm, DTensor)
        with watching():
            self._norm = norm.full_tensor().to(self.device)
        if max_norm > 0:
            nn.utils.clip_grads_with_norm_(self._parameters, max_norm, self._norm)
        return self._norm

    def save_state(self, directory: Path, weights_name: str) -> dict[str, Any]:
        from tencentpretrain.training import sharded

        tensors, numbers = sharded.tensors_of(self.model, self.optimizer)
        sharded.write_parts(directory, tensors, self.ranks.group)
        return {"names": sharded.names_of(self.model), "numbers": numbers}

    def snapshot(self) -> Callable[[Path, str], dict[str, Any]]:
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.tensor import DTensor

        from tencentpretrain.training import sharded

        tensors, numbers = sharded.tensors_of(self.model, self.optimizer)
        shared = {"names": sharded.names_of(self.model), "numbers": numbers}
        copies = self._copies.take(
            {name: each.to_local() if isinstance(each, DTensor) else each for name, each in tensors.items()}
        )
        group = self.background_ranks().group
        mesh = DeviceMesh.from_group(group, "cpu")
        for name, tensor in tensors.items():
            if isinstance(tensor, DTensor):
                copies[name] = DTensor.from_local(
                    copies[name], mesh, tensor.placements, shape=tensor.shape, stride=tensor.stride()
                )

        def write(directory: Path, weights_name: str) -> dict[str, Any]:
            sharded.write_parts(directory, copies, group)
            return shared

        return write

    def load_state(self, directory: Path, training: Mapping[str, Any]) -> None:
        from tencentpretrain.training import sharded

        if not (directory / sharded.SHARDS).is_dir():
            self._load_by_name(directory, training)
            return
        sharded.restore_parts(directory, self.model, self.optimizer, training["numbers"], self.ranks.group)
