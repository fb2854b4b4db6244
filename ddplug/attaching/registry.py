"""Adapters by name: those registered in this process, and those that installed packages announce, ours among them.

A package announces an adapter by the entry-point group `ddplug.adapters`, which names a class with the two methods of
`Adapter`. `ddplug.attach` asks every adapter before it looks for a place by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Protocol, TypeVar, runtime_checkable

from ddplug.core.regularizer import Regularizer
from ddplug.errors import AttachError

GROUP = "ddplug.adapters"


@runtime_checkable
class Adapter(Protocol):
    """Interface of an adapter for `ddplug.attach`."""

    def recognises(self, host: object) -> bool:
        """Return True if `host` is the codebase of this adapter; must not change it."""

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
    return sorted({*_ADAPTERS, *(entry.name for entry in entry_points(group=GROUP))})


def make(name: str) -> object | None:
    """A new adapter of this name, registered or announced by an installed package; None if there is none."""
    if name in _ADAPTERS:
        return _ADAPTERS[name]()
    found = next((entry for entry in entry_points(group=GROUP) if entry.name == name), None)
    adapter: object = found.load()() if found is not None else None
    return adapter


def find(host: object) -> tuple[str, Adapter] | None:
    """The adapter that recognises `host` and its name, or None. Registered ones are asked first."""
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
