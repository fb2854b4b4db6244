"""A pool whose proxies come later, with the host's run, or not at all."""

from __future__ import annotations

from ddplug.proxies.pool import PoolInfo, ProxyPool
from ddplug.proxies.proxy import Proxy


class DeferredPool(ProxyPool):
    """Stands for the pool that `given` names until `fill` says what it is; has no proxies until then."""

    def __init__(self, given: object = "") -> None:
        self.given = given
        self.proxies: list[Proxy] = []
        self.info = PoolInfo()
        self._device = None

    @property
    def pending(self) -> bool:
        """True if the pool is not filled yet."""
        return not self.proxies

    def fill(self, pool: ProxyPool) -> None:
        """Become `pool`."""
        self.proxies, self.info, self._device = pool.proxies, pool.info, None

    def __repr__(self) -> str:
        return f"ProxyPool({self.given or 'to come from the host'})" if self.pending else super().__repr__()


def scheme_of(given: str) -> str | None:
    """The scheme of `SCHEME:PATH`; None for a folder, a Windows drive included."""
    name, colon, _ = given.partition(":")
    return name if colon and name.isalnum() and len(name) > 1 else None
