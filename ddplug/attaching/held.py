"""Values that an object, a module or the variables of a function hold, by dotted names."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

DEPTH = 2
"""Number of parts of the longest dotted name."""
_NOT_SEARCHED = (
    Tensor, Optimizer, type, str, bytes, types.ModuleType, types.FunctionType, types.MethodType,
    types.BuiltinFunctionType,
)  # fmt: skip


class Holder(Protocol):
    """Values by dotted names, in groups of which an earlier one counts before a later one."""

    def groups(self) -> Iterator[Iterator[tuple[str, Any]]]:
        """Yield the names and values of each group, nearest first."""

    def get(self, path: str) -> Any:
        """The value of a dotted name, None if there is none."""


class Held:
    """Values that one object holds, and those that its attributes hold."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner

    def groups(self) -> Iterator[Iterator[tuple[str, Any]]]:
        """Yield all names and values as one group."""
        yield items_of(self._owner)

    def get(self, path: str) -> Any:
        """The value of a dotted name, None if there is none."""
        value = self._owner
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
        return value


def all_items(host: Holder) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of all groups."""
    for group in host.groups():
        yield from group


def items_of(owner: Any) -> Iterator[tuple[str, Any]]:
    """Yield what `owner` holds, by dotted names, nearest first."""
    waiting: list[tuple[str, Any, int]] = [("", owner, DEPTH)]
    seen = set()
    while waiting:
        prefix, holder, left = waiting.pop(0)
        if id(holder) in seen:
            continue
        seen.add(id(holder))
        for name, value in _members(holder).items():
            yield prefix + name, value
            searched = hasattr(value, "__dict__") or isinstance(value, Mapping)
            if left > 1 and searched and not isinstance(value, _NOT_SEARCHED):
                waiting.append((f"{prefix}{name}.", value, left - 1))


def _members(holder: Any) -> dict[str, Any]:
    if isinstance(holder, Mapping):
        return {name: value for name, value in holder.items() if isinstance(name, str)}
    members: dict[str, Any] = {}
    for kind in type(holder).__mro__:
        members |= {name: value for name, value in vars(kind).items() if isinstance(value, Tensor | list | tuple)}
        slots = kind.__dict__.get("__slots__", ())
        names = (slots,) if isinstance(slots, str) else slots
        members |= {name: getattr(holder, name) for name in names if hasattr(holder, name)}
    members |= getattr(holder, "__dict__", {})
    if isinstance(holder, nn.Module):
        for kept in ("_parameters", "_buffers", "_modules"):
            members |= members.pop(kept, {})
    return {name: value for name, value in members.items() if not name.startswith("__")}
