"""Sources of a host's proxies: a pool, the user's own networks, the host's experts, or a small pool.

`resolve` understands a pool's folder and `SCHEME:PATH`, where a scheme is the name of a reader of foreign files.
Readers are known by name only and imported when they are asked for; see `SCHEMES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from ddplug.errors import PoolError
from ddplug.hosting.names import Names
from ddplug.proxies.pool import DeferredPool, ProxyPool, scheme_of
from ddplug.utils.output import say

__all__ = ["DeferredPool", "resolve", "scheme_of"]

Reader = Callable[[str, Names, Any, Mapping[str, Any]], ProxyPool]
"""From what follows the colon, the adapter, the host's options and what the patch passed to `start`, to a pool."""

SCHEMES: dict[str, str | Reader] = {
    "buffer": "ddplug.hosting.expert_buffers:read_for_host",
    "idc": "ddplug.hosting.idc_checkpoints:read_for_host",
}
"""Readers by scheme: a function, or "module:function" to be imported."""


def resolve(given: str, adapter: Names, args: Any, context: Mapping[str, Any]) -> ProxyPool:
    """The pool meant by what the user gave; for an empty string the host's experts, else the cache, else a new pool.

    Raises:
        PoolError: nothing there, an unknown scheme, a pool of other data, or no real data to train one on.
    """
    if given:
        scheme = scheme_of(given)
        if scheme is None:
            pool = ProxyPool.load(given)
        else:
            pool = _reader(scheme)(given[len(scheme) + 1 :], adapter, args, context)
    else:
        found = adapter.experts(args, context)
        if found is not None:
            say(f"ddplug: no proxies given; taking {adapter.name}'s own networks")
        pool = found if found is not None else _trained(adapter, args, context)
    pool.check_data(adapter.setting(args)[1])
    return pool


def _reader(scheme: str) -> Reader:
    known = SCHEMES.get(scheme)
    if known is None:
        kinds = ", ".join(f"{name}:PATH" for name in SCHEMES)
        raise PoolError(f"unknown kind of proxies '{scheme}:'; expected a pool's folder, or {kinds}.")
    if isinstance(known, str):
        module, _, name = known.partition(":")
        reader: Reader = getattr(import_module(module), name)
        return reader
    return known


def _trained(adapter: Names, args: Any, context: Mapping[str, Any]) -> ProxyPool:
    data = adapter.real(args, context)
    if data is None:
        raise PoolError(
            f"no proxies given, and {adapter.name} has no real data here to train some on. Name some: "
            "--cmi_proxies FOLDER (made by `ddplug pretrain`), or with `ddplug run`, --proxies."
        )
    from ddplug.proxies.pretrain import default_pool

    return default_pool(data)
