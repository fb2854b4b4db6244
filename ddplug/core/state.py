"""Whether a saved state goes with a regulariser: a lambda means something else with other options or other proxies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddplug.core.options import renamed
from ddplug.core.watch import Watch
from ddplug.errors import InputError
from ddplug.proxies.pool import ProxyPool

PARTS = ("weighting", "generator", "class_generator", "view", "rounds", "history")
"""What every state has."""


def check_kind(state: Mapping[str, Any]) -> None:
    """`InputError` for what is no state of a regulariser."""
    if missing := set(PARTS) - set(state):
        raise InputError(f"this is no state of a Regularizer: it lacks {', '.join(sorted(missing))}.")


def check_settings(given: Mapping[str, Any] | None, own: Mapping[str, Any], watch: Watch) -> None:
    """`InputError` if a state made with the options `given` does not go with `own`; warns where it has none noted."""
    if given is None:
        watch.warn(
            "old state",
            "this state is of an older ddplug and does not say what options it was made with, so they could not be "
            "compared with these.",
        )
        return
    given = renamed(given)
    if differing := [f"{key} {given.get(key)!r} (here {own[key]!r})" for key in own if given.get(key) != own[key]]:
        raise InputError(
            f"this state was made with {', '.join(differing)}; the lambda in it would mean something else here. "
            "Give the same options, or start without the state."
        )


def check_pool(expected: str | None, pool: ProxyPool) -> None:
    """`InputError` unless `pool` has the digest `expected`; None expects nothing."""
    if expected is not None and expected != pool.digest():
        raise InputError(
            f"this state was made with other proxies than {pool}; the lambda in it would mean something else "
            "here. Give the same proxies, in the same order, or start without the state."
        )
