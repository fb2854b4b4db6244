"""Sources of a host's proxies: a pool, files of other projects, the host's own networks, or a small new pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ddplug.errors import ProxyError
from ddplug.hosting import expert_buffers, idc_checkpoints
from ddplug.hosting.names import Names
from ddplug.proxies.pool import ProxyPool, scheme_of
from ddplug.utils.output import say

Reader = Callable[[str, Names, Any, Mapping[str, Any]], ProxyPool]
"""Function from the text after the colon, the adapter, the host's options and the patch's keywords to a pool."""

SCHEMES: dict[str, Reader] = {"buffer": expert_buffers.read_for_host, "idc": idc_checkpoints.read_for_host}
"""Readers of foreign files, by the scheme in `SCHEME:PATH`."""


def resolve(given: str, adapter: Names, args: Any, context: Mapping[str, Any]) -> ProxyPool:
    """The pool that `given` names; for an empty string the host's experts, or a small pool from the cache or new.

    Raises:
        ProxyError: nothing there, an unknown scheme, a pool of other data, or no real data to train one on.
    """
    scheme = scheme_of(given)
    if scheme is not None:
        if scheme not in SCHEMES:
            kinds = ", ".join(f"{name}:PATH" for name in SCHEMES)
            raise ProxyError(f"unknown kind of proxies '{scheme}:'; expected a pool's folder, or {kinds}.")
        pool = SCHEMES[scheme](given[len(scheme) + 1 :], adapter, args, context)
    elif given:
        pool = ProxyPool.load(given)
    else:
        found = adapter.experts(args, context)
        if found is not None:
            say(f"ddplug: no proxies given; taking {adapter.name}'s own networks")
        pool = found if found is not None else _trained(adapter, args, context)
    pool.check_data(adapter.setting(args)[1])
    return pool


def _trained(adapter: Names, args: Any, context: Mapping[str, Any]) -> ProxyPool:
    data = adapter.real(args, context)
    if data is None:
        raise ProxyError(
            f"no proxies given, and {adapter.name} has no real data here to train some on. {expert_buffers.INSTEAD}"
        )
    from ddplug.proxies.pretrain import default_pool

    return default_pool(data)
