"""Adapters: for each known host, how to recognise it and where its synthetic views pass.

An adapter is a class registered here by name, or by another package through the entry-point group `ddplug.adapters`
(the entry point names a class with the two methods of `Adapter`). `ddplug.attach` asks every adapter before it looks
for a place by itself. The modules beside this one are imported when somebody asks for a host, not before.
"""

from __future__ import annotations

import pkgutil
import types
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from ddplug.errors import AttachError, HostError
from ddplug.regularizer import Regularizer

if TYPE_CHECKING:
    from ddplug.upstream import UpstreamAdapter

GROUP = "ddplug.adapters"


@runtime_checkable
class Adapter(Protocol):
    """What `ddplug.attach` asks of an adapter."""

    def recognises(self, host: object) -> bool:
        """Whether `host` is the codebase that this adapter is for; must not change it."""

    def install(self, host: object, regularizer: Regularizer) -> Callable[[], None]:
        """Put `regularizer` on the host's synthetic views; returns what takes it away again (idempotent)."""


A = TypeVar("A", bound=type[Adapter])

_ADAPTERS: dict[str, type[Adapter]] = {}


def register(name: str) -> Callable[[A], A]:
    """Class decorator: make an adapter known under `name`; `AttachError` if the name is taken."""

    def add(adapter: A) -> A:
        if _ADAPTERS.get(name, adapter) is not adapter:
            raise AttachError(f"there already is an adapter named '{name}'; choose another name.")
        _ADAPTERS[name] = adapter
        return adapter

    return add


def names() -> list[str]:
    """Names of all adapters, other packages' included."""
    ours = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted({*_ADAPTERS, *ours, *(entry.name for entry in entry_points(group=GROUP))})


def upstream(name: str) -> UpstreamAdapter:
    """The adapter of the patched host `name`; `HostError` if there is none of that name."""
    from ddplug.upstream import UpstreamAdapter

    _import_ours(name)
    made: object = _ADAPTERS[name]() if name in _ADAPTERS else None
    for entry in entry_points(group=GROUP):
        if made is None and entry.name == name:
            made = entry.load()()
    if not isinstance(made, UpstreamAdapter):
        raise HostError(f"there is no host '{name}' with a patch; ddplug knows {', '.join(names())}.")
    return made


def _import_ours(*wanted: str) -> None:
    """Import those of the modules beside this one that are wanted; they register themselves."""
    for module in pkgutil.iter_modules(__path__):
        if module.name in wanted:
            import_module(f"{__name__}.{module.name}")


def _import_ours_for(script: str) -> None:
    """Import the adapters of hosts whose script has this name."""
    from ddplug import hosts

    _import_ours(*(name for name, record in hosts.table().items() if Path(record["script"]).name == script))


def find(host: object) -> tuple[str, Adapter] | None:
    """The adapter that recognises `host` and its name, or None. Ours are asked first, then other packages'."""
    if isinstance(host, types.ModuleType):  # all that ours recognise
        _import_ours_for(Path(getattr(host, "__file__", None) or "").name)
    for name, adapter in _ADAPTERS.items():
        if (made := adapter()).recognises(host):
            return name, made
    for entry in entry_points(group=GROUP):
        if entry.name not in _ADAPTERS:
            made = entry.load()()
            if not isinstance(made, Adapter):
                raise AttachError(
                    f"the entry point '{entry.name}' = {entry.value} of group {GROUP} is not an adapter: it needs the "
                    "methods recognises(host) and install(host, regularizer)."
                )
            if made.recognises(host):
                return entry.name, made
    return None
