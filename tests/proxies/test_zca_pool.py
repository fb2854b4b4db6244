"""A whitened host and a pool: exact conversion both ways, saved with the pool, refused where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ddplug
from ddplug.datasets.images import ImageData, load
from ddplug.datasets.synthetic import SyntheticSet, load_set, save_set
from ddplug.datasets.zca import ZCASpace
from ddplug.proxies.pool import PoolInfo
from ddplug.proxies.pretrain import pretrain

pytestmark = pytest.mark.numerical


@pytest.fixture(scope="module")
def whitening() -> ZCASpace:
    """Of 3 x 4 x 4 images, in float64."""
    images = torch.rand(200, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return ZCASpace.fit(images)


NORMALIZED = ddplug.InputSpace.normalized((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


@pytest.mark.parametrize("pool_is_whitened", [False, True])
def test_the_layer_converts_exactly(
    network: Callable[..., nn.Module], batch: tuple[Tensor, Tensor], whitening: ZCASpace, pool_is_whitened: bool
) -> None:
    images, labels = batch
    theirs, ours = (NORMALIZED, whitening) if pool_is_whitened else (whitening, NORMALIZED)
    pool = ddplug.ProxyPool.from_modules([network(7)], info=PoolInfo(space=ours))
    by_hand = ddplug.ProxyPool.from_modules([network(7)])
    leaf, again = (images.clone().requires_grad_() for _ in range(2))
    ddplug.Regularizer(pool, 0.7, weighting="absolute", input_space=theirs)(leaf, labels).sum().backward()
    (again.sum() + 0.7 * ddplug.CMI(by_hand)(ours.from_unit(theirs.to_unit(again)), labels)).backward()
    torch.testing.assert_close(leaf.grad, again.grad, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(leaf.grad, torch.ones_like(images))  # type: ignore[arg-type]


def test_a_mismatch_names_both_spaces(network: Callable[..., nn.Module], whitening: ZCASpace) -> None:
    other = torch.rand(99, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pool = ddplug.ProxyPool.from_modules([network(7, size=8)], info=PoolInfo(space=ZCASpace.fit(other, eps=1.0)))
    views = other[:4].clone().requires_grad_()
    regularizer = ddplug.Regularizer(pool, 0.1, input_space=NORMALIZED)
    regularizer(views, torch.arange(4) % 2)  # per channel to ZCA is a conversion
    regularizer = ddplug.Regularizer(pool, 0.1, input_space=whitening)
    with pytest.raises(ddplug.errors.InputError, match=r"ZCA-whitened 3 x 4 x 4"):
        regularizer(views, torch.arange(4) % 2)
    grey = ddplug.ProxyPool.from_modules([network(7)], info=PoolInfo(space=ddplug.InputSpace.unit(1)))
    with pytest.raises(ddplug.errors.InputError, match=r"from normalised by mean .* to \[0, 1\] x 1 channels"):
        ddplug.CMI(grey, input_space=NORMALIZED)(views[..., :4, :4], torch.arange(4) % 2)


def digits() -> ImageData:
    data = load("digits")
    return data.to_space(ZCASpace.fit(data.space.to_unit(data.train_images).clamp(0, 1)))


def test_a_whitened_pool_is_saved_with_its_matrices(tmp_path: Path) -> None:
    data = digits()
    pool = pretrain(data, tmp_path / "pool", count=1, epochs=1, options={"width": 8}, progress=False)
    loaded = ddplug.ProxyPool.load(tmp_path / "pool", dataset="digits")
    assert loaded.info.space == data.space == pool.info.space
    labels = data.test_labels[:50]
    values = [ddplug.CMI(p, input_space=data.space)(data.test_images[:50], labels).item() for p in (pool, loaded)]
    assert values[0] == values[1]
    plain = load("digits")
    same = ddplug.CMI(loaded, input_space=plain.space)(plain.test_images[:50], labels).item()
    assert same == pytest.approx(values[0], rel=1e-3)
    (tmp_path / "pool" / "space.safetensors").unlink()
    with pytest.raises(ddplug.errors.ProxyError, match=r"space\.safetensors.*is missing or is not"):
        ddplug.ProxyPool.load(tmp_path / "pool")


def test_a_whitened_set_is_saved_with_its_matrices(tmp_path: Path) -> None:
    data = digits()
    save_set(SyntheticSet(data.test_images[:5], data.test_labels[:5], data.space, "digits"), tmp_path / "set.pt")
    assert load_set(tmp_path / "set.pt").space == data.space
