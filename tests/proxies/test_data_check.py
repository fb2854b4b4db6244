"""Proxies of other data than those that they are to look at are refused, in one way everywhere."""

from __future__ import annotations

import pytest

from ddplug.errors import ProxyError
from ddplug.networks.zoo import build
from ddplug.proxies.pool import PoolInfo, ProxyPool


def pool(**info: str) -> ProxyPool:
    return ProxyPool.from_modules(build("convnet", width=2), info=PoolInfo(**info))  # type: ignore[arg-type]


OURS = pool(dataset="cifar10", fingerprint="0123")


@pytest.mark.parametrize("name", ["cifar10", "CIFAR10", "CIFAR-10", "cifar_10"])
def test_names_as_people_write_them(name: str) -> None:
    OURS.check_data(name)
    OURS.check_data(name, "0123")
    pool(dataset="cifar10").check_data(name, "4567")


def test_what_is_not_known_is_not_compared() -> None:
    pool().check_data("svhn", "4567")
    with pytest.raises(ProxyError, match="another edition of svhn"):
        pool(fingerprint="0123").check_data("svhn", "4567")


def test_other_data_are_refused() -> None:
    with pytest.raises(ProxyError, match=r"trained on cifar10, not on svhn \(it holds digits\)\. .*ddplug pretrain"):
        OURS.check_data("svhn", "0123", because="it holds digits")
    with pytest.raises(ProxyError, match=r"trained on another edition of CIFAR10\. A proxy"):
        OURS.check_data("CIFAR10", "4567")
