"""Data parallelism: every process has the whole model and a part of every batch."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from tencentpretrain.batch import Batch
from tencentpretrain.targets.output import TargetOutput
from tencentpretrain.training.engines.group import GroupEngine

log = logging.getLogger("tencentpretrain")


class DDPEngine(GroupEngine):
    """torch's DistributedDataParallel; gradients are the sums over all ranks, not means."""

    name = "ddp"
    _parallel: DistributedDataParallel | None = None

    def prepare(
        self, model: nn.Module, make_optimizer: Callable[[nn.Module], Optimizer] | None = None
    ) -> None:
        super().prepare(model, make_optimizer)
        self._parallel = None

    def forward(self, batch: Batch, last: bool = True) -> TargetOutput:
        if not torch.is_grad_enabled():  # no rank waits for another, which may have fewer batches
            return super().forward(batch)
        if self._parallel is None:
            self._parallel = self._parallelised(batch)
        with contextlib.nullcontext() if last else self._parallel.no_sync():
            return self._run(self._parallel, batch)

    def _parallelised(self, batch: Batch) -> DistributedDataParallel:
        """The model in its wrapper, once the first batch has shown what the wrapper needs to know."""
        weights = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            loss = self._run(self.model, batch).loss
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            unused = [name for name, gradient in zip(weights, gradients, strict=True) if gradient is None]
            del gradients
            search = self.agree(len(unused)) > 0
            if search:
                log.info(f"engine: every step searches for weights without a gradient: {', '.join(unused)}")
            parallel = DistributedDataParallel(
                self.model, gradient_as_bucket_view=True, find_unused_parameters=search
            )
            # The wrapper's own communication would take the mean.
            parallel.register_comm_hook(None, lambda state, bucket: _sum_over_ranks(bucket.buffer()))
            # After its first backward pass the wrapper sorts gradients into other buckets, and sums of more
            # than two ranks may differ in the last bit; so a run that is continued has to begin behind it.
            self.backward(self._run(parallel, batch).loss)
            self.optimizer.zero_grad(set_to_none=True)
        return parallel


def _sum_over_ranks(gradients: Tensor) -> torch.futures.Future[Tensor]:
    work = dist.all_reduce(gradients, async_op=True)
    assert work is not None
    future: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return future
