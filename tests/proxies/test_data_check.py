"""Proxies of other data than those that they are to look at are refused, in one way everywhere."""

from __future__ import annotations

import pytest

from ddplug import PoolError, PoolInfo
from ddplug.proxies.data_check import check_data

OURS = PoolInfo("cifar10", fingerprint="0123")


@pytest.mark.parametrize("name", ["cifar10", "CIFAR10", "CIFAR-10", "cifar_10"])
def test_names_as_people_write_them(name: str) -> None:
    check_data(OURS, name)
    check_data(OURS, name, "0123")
    check_data(PoolInfo("cifar10"), name, "4567")


def test_what_is_not_known_is_not_compared() -> None:
    check_data(PoolInfo(), "svhn", "4567")
    with pytest.raises(PoolError, match=r"pool in 'x' was trained on an unknown data set, not on svhn\."):
        check_data(PoolInfo(), "svhn", pool="the pool in 'x'", unknown=False)
    with pytest.raises(PoolError, match="another edition of svhn"):
        check_data(PoolInfo(fingerprint="0123"), "svhn", "4567")


def test_other_data_are_refused() -> None:
    with pytest.raises(PoolError, match=r"trained on cifar10, not on svhn \(it holds digits\)\. .*ddplug pretrain"):
        check_data(OURS, "svhn", "0123", because="it holds digits")
    with pytest.raises(PoolError, match=r"trained on another edition of CIFAR10\. A proxy"):
        check_data(OURS, "CIFAR10", "4567")
