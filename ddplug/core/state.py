"""Check of a saved state against a regulariser: lambda depends on options and proxies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from torch import Tensor

from ddplug.core.history import Round
from ddplug.errors import InputError
from ddplug.proxies.pool import ProxyPool
from ddplug.utils.records import Count, Finite, check_record


class Weighting(TypedDict):
    """The state of a weighting, as far as all weightings share it."""

    kind: str
    lam: NotRequired[Finite | None]


class State(TypedDict):
    """The state of a `Regularizer`."""

    weighting: Weighting
    generator: Tensor
    class_generator: Tensor
    view: dict[str, Any] | None
    rounds: Count
    seen: Count
    history: list[Round]
    settings: dict[str, Any]
    pool: str | None
    real_generator: NotRequired[Tensor]


def check_kind(state: Mapping[str, Any]) -> None:
    """Raise `InputError` unless `state` is a complete state of a regulariser."""
    check_record(state, State, "this state of a Regularizer", "So nothing was taken from it.", error=InputError)


def check_settings(given: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise `InputError` if the options `given`, which a state was made with, differ from `own`."""
    if differing := [f"{key} {given.get(key)!r} (here {own[key]!r})" for key in own if given.get(key) != own[key]]:
        raise InputError(
            f"this state was made with {', '.join(differing)}; the lambda in it would mean something else here. "
            "Give the same options, or start without the state."
        )


def check_pool(expected: str | None, pool: ProxyPool) -> None:
    """Raise `InputError` unless `pool` has the digest `expected`; None accepts any pool."""
    if expected is not None and expected != pool.digest():
        raise InputError(
            f"this state was made with other proxies than {pool}; the lambda in it would mean something else "
            "here. Give the same proxies, in the same order, or start without the state."
        )
