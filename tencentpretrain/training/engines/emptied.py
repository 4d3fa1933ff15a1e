"""Models of which no process ever has the whole: built empty, filled part by part."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary


class Emptied:
    """Takes the contents of a model while it is built. Vectors are kept aside, of which some begin with other
    values than zero.
    """

    def __init__(self) -> None:
        self._vectors: WeakIdKeyDictionary = WeakIdKeyDictionary()

    @contextlib.contextmanager
    def building(self) -> Iterator[None]:
        """Parameters of what is built inside lose their contents as soon as the module that has them is
        complete, so that one module of them is in memory at a time.
        """
        from torch.nn.modules import module

        emptied: WeakIdKeyDictionary = WeakIdKeyDictionary()

        def empty(parent: nn.Module, name: str, child: nn.Module | None) -> None:
            for owner in child.modules() if child is not None else ():
                for own, parameter in owner._parameters.items():
                    if parameter is not None and not parameter.is_meta:
                        if parameter not in emptied:
                            emptied[parameter] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
                            if parameter.ndim < 2:
                                self._vectors[emptied[parameter]] = parameter.detach()
                        owner._parameters[own] = emptied[parameter]

        hook = module.register_module_module_registration_hook(empty)
        try:
            yield
        finally:
            hook.remove()

    def vectors_of(self, model: nn.Module) -> dict[str, Tensor]:
        """What vectors of a model began with, by name."""
        return {
            name: self._vectors[parameter]
            for name, parameter in model.named_parameters()
            if parameter in self._vectors
        }
