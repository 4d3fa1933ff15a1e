"""Names to components: a module, a processor, a tokenizer, a task is found here by its name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from tencentpretrain.errors import ConfigError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """A kind of component by name.

    Args:
        kind: what the components are, for messages.
        package: imported at the first lookup; its `__init__` imports the modules that register.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        def add(entry: T) -> T:
            if name in self._entries:
                raise ConfigError(f"{self.kind} '{name}' is registered twice.")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        names = list(self)
        if name not in self._entries:
            hint = did_you_mean(name, names)
            raise ConfigError(f"there is no {self.kind} '{name}'{hint}; known: {', '.join(names)}.")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        importlib.import_module(self._package)
        return iter(sorted(self._entries))


EMBEDDINGS: Registry[type[Any]] = Registry("embedding", "tencentpretrain.embeddings")
ENCODERS: Registry[type[Any]] = Registry("encoder", "tencentpretrain.encoders")
DECODERS: Registry[type[Any]] = Registry("decoder", "tencentpretrain.decoders")
TARGETS: Registry[type[Any]] = Registry("target", "tencentpretrain.targets")
PROCESSORS: Registry[type[Any]] = Registry("data processor", "tencentpretrain.data.processors")
TOKENIZERS: Registry[type[Any]] = Registry("tokenizer", "tencentpretrain.tokenizers")
TASKS: Registry[type[Any]] = Registry("task", "tencentpretrain.tasks")


def load_plugins(modules: tuple[str, ...]) -> None:
    """Import the user's modules, from the working directory or the Python path; each registers its own."""
    if modules and "" not in sys.path:
        sys.path.append("")
    for module in modules:
        try:
            if not all(part.isidentifier() for part in module.split(".")):
                raise ModuleNotFoundError(name=module)
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise
            raise ConfigError(
                f"plugins: there is no module '{module}' on the Python path or in the working directory "
                "(give a module name such as 'my_package.my_module', without '.py')."
            ) from None
