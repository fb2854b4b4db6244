"""Check of a saved state against a regulariser: lambda depends on options and proxies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddplug.core.history import ROUND
from ddplug.errors import InputError
from ddplug.proxies.pool import ProxyPool
from ddplug.utils.records import (
    anything,
    check_record,
    dict_of,
    either,
    entries,
    flag,
    list_of,
    number,
    optional,
    tensor,
    text,
    whole,
)

_POSITIVE, _SCALAR = number(0), optional(either(flag, text(), number(finite=False)))
_NORMS = list_of(number(0, finite=False), 2, 2)
"""Squared norms of the host's gradient and of the term's."""
_STATE = entries(
    {
        "weighting": entries(
            {"kind": text()},
            {
                "lam": optional(_POSITIVE), "first": optional(_POSITIVE), "rounds": whole(1),
                **dict.fromkeys(("share", "factor"), _POSITIVE),
                "complete": whole(), "sums": _NORMS, "passages": list_of(_NORMS, most=10_000),
            },
        ),
        "generator": tensor("integer", (None,)), "class_generator": tensor("integer", (None,)),
        "view": optional(dict_of(anything)), "rounds": whole(), "seen": whole(), "history": list_of(ROUND),
        "settings": dict_of(either(list_of(_SCALAR), _SCALAR)),
    },
    {
        "pool": optional(text()),
        "real_generator": tensor("integer", (None,)),
    },
)  # fmt: skip
"""What a state may hold."""
PARTS = ("weighting", "generator", "class_generator", "view", "rounds", "seen", "history", "settings")
"""What every state has."""


def check_kind(state: Mapping[str, Any]) -> None:
    """`InputError` for what is no state of a regulariser, or a damaged one."""
    if not isinstance(state, Mapping) or (missing := set(PARTS) - set(state)):
        lacking = f"it lacks {', '.join(sorted(missing))}" if isinstance(state, Mapping) else "it is no dictionary"
        raise InputError(f"this is no state of a Regularizer: {lacking}.")
    check_record(dict(state), _STATE, "this state of a Regularizer", "So nothing was taken from it.", error=InputError)


def check_settings(given: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """`InputError` if a state made with the options `given` does not go with `own`."""
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
