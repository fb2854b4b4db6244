"""Adapters by name: those registered in this process, ours among them, and those that installed packages announce.

A package announces an adapter by the entry-point group `ddplug.adapters`, which names a class with the two methods of
`Adapter`. `ddplug.attach` tries every adapter before it searches for the views itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol, TypeVar, runtime_checkable

from ddplug.core.regularizer import Regularizer
from ddplug.errors import HostError

GROUP = "ddplug.adapters"


@runtime_checkable
class Adapter(Protocol):
    """Interface of an adapter for `ddplug.attach`."""

    def recognises(self, host: object) -> bool:
        """Return True if `host` is the codebase of this adapter; must not change it."""

    def install(self, host: object, regularizer: Regularizer) -> Callable[[], None]:
        """Put `regularizer` on the host's synthetic views; returns what takes it away again (idempotent)."""


Factory = Callable[[], object]
A = TypeVar("A", bound=Factory)

_ADAPTERS: dict[str, Factory] = {}


def register(name: str) -> Callable[[A], A]:
    """Class decorator: make an adapter known under `name`; `HostError` if the name is taken."""

    def add(adapter: A) -> A:
        if _ADAPTERS.get(name, adapter) is not adapter:
            raise HostError(f"there already is an adapter named '{name}'; choose another name.")
        _ADAPTERS[name] = adapter
        return adapter

    return add


def _all() -> dict[str, Factory]:
    """Every adapter by name, the last registered first and those of other packages' entry points last."""
    import_module("ddplug.adapters")  # registers ours; by its name, as it is built on this module
    found = dict(reversed(_ADAPTERS.items()))
    for entry in entry_points(group=GROUP):
        found.setdefault(entry.name, partial(_load, entry))
    return found


def _load(entry: EntryPoint) -> object:
    """A new adapter of the class that `entry` names; `HostError` if it is not an adapter."""
    made: object = entry.load()()
    if not isinstance(made, Adapter):
        raise HostError(
            f"the entry point '{entry.name}' = {entry.value} of group {GROUP} is not an adapter: it needs the "
            "methods recognises(host) and install(host, regularizer)."
        )
    return made


def names() -> list[str]:
    """Names of all adapters, other packages' included."""
    return sorted(_all())


def make(name: str) -> object | None:
    """A new adapter of this name, registered or announced by an installed package; None if there is none."""
    factory = _all().get(name)
    return factory() if factory is not None else None


def find(host: object) -> tuple[str, Adapter] | None:
    """The adapter that recognises `host` and its name, or None."""
    for name, factory in _all().items():
        made = factory()
        assert isinstance(made, Adapter)
        if made.recognises(host):
            return name, made
    return None
