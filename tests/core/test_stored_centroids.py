"""CMI around real images' centroids in the layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddplug
from ddplug.datasets.images import ImageData, as_image_data
from ddplug.networks.zoo import build, seeded

pytestmark = pytest.mark.numerical

Batch = tuple[Tensor, Tensor]
QUIET: dict[str, Any] = {"weighting": "absolute", "announce": lambda line: None}


def layer(proxies: Any, **options: Any) -> ddplug.Regularizer:
    return ddplug.Regularizer(proxies, options.pop("weight", 0.7), **{**QUIET, **options})


def train(regularizer: Any, images: Tensor, labels: Tensor, steps: int = 4, start: int = 0) -> Tensor:
    """The gradients, (steps, n, c, h, w), on images that differ from step to step."""
    gradients = []
    for step in range(start, start + steps):
        leaf = (images * (1 + 0.2 * step)).requires_grad_()
        regularizer(leaf, labels).sum().backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad - 1)
    return torch.stack(gradients)


@pytest.fixture
def several(network: Callable[..., nn.Module]) -> ddplug.ProxyPool:
    return ddplug.ProxyPool.from_modules([network(seed) for seed in range(3)])


@pytest.fixture
def ones(batch: Batch) -> Batch:
    """One image of each of three classes."""
    return batch[0][:3], torch.tensor([2, 0, 1])


@pytest.fixture
def data(batch: Batch) -> ImageData:
    """The batch as real data, in float32."""
    split = (batch[0].float(), batch[1])
    return as_image_data((split, split), space=ddplug.InputSpace.normalized([0.5] * 3, [0.25] * 3))


def test_real_centroids_of_the_batch_are_the_batchs(several: ddplug.ProxyPool, data: ImageData) -> None:
    """The sample of data that have no more images is these images; each proxy has centroids of its own."""
    images, labels = data.train_images.double(), data.train_labels
    around, batch = (layer(several, **options) for options in ({"term": "cmi_real", "data": data}, {}))
    for _ in range(4):
        got, expected = train(around, images, labels, 1), train(batch, images, labels, 1)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert around.history.cmi == pytest.approx(batch.history.cmi, rel=1e-12)


def test_one_image_per_class_has_a_gradient(several: ddplug.ProxyPool, ones: Batch, data: ImageData) -> None:
    """Around its own centroid it has none, which is warned about."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = train(layer(several, term="cmi_real", data=data, compute=ddplug.Compute(draw=3)), *ones)
    assert found.flatten(1).norm(dim=1).min() > 1e-4


def test_some_classes_stand_for_all(pool: ddplug.ProxyPool, ones: Batch, data: ImageData) -> None:
    """Around real centroids the mean over draws of one class is the gradient of all three."""
    options = {"term": "cmi_real", "data": data}
    expected = train(layer(pool, **options), *ones, steps=1)
    some = train(layer(pool, compute=ddplug.Compute(classes=1), **options), *ones, steps=1)
    drawn = some[0].flatten(1).any(1)
    assert drawn.sum() == 1
    torch.testing.assert_close(some[0, drawn], 3 * expected[0, drawn], rtol=1e-12, atol=1e-12)


def test_proxies_in_one_module_have_centroids_of_their_own(tmp_path: Path) -> None:
    """A streamed pool computes all of a kind with one module."""
    networks = []
    for seed in range(3):
        with seeded(seed):
            networks.append(build("convnet", num_classes=3, size=(8, 8), width=4, depth=2))
    ddplug.ProxyPool.from_modules(networks).save(tmp_path / "pool")
    images = torch.randn(9, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(9) % 3
    data = as_image_data(
        ((images, labels), (images, labels)), space=ddplug.InputSpace.normalized([0.5] * 3, [0.25] * 3)
    )
    pools = ddplug.ProxyPool.load(tmp_path / "pool", budget=1), ddplug.ProxyPool.load(tmp_path / "pool")
    options = {"term": "cmi_real", "data": data, "input_space": None}
    found = [train(layer(pool, **options), images[:3], labels[:3], steps=9) for pool in pools]
    # The same operations on the same numbers, in another order at most.
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-7)


def test_a_sample_is_seen_once_by_every_proxy(several: ddplug.ProxyPool, ones: Batch, data: ImageData) -> None:
    """And is the same with any seed; batches that the host shows are not compared with."""
    seen: list[int] = []
    for proxy in several:
        proxy.network.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    regularizer = layer(several, term="cmi_real", data=data, compute=ddplug.Compute(chunk=100, draw=3))
    other = torch.randn(5, 3, 4, 4, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2])
    regularizer.passed_by(*other)
    first = train(regularizer, *ones)
    assert seen.count(12) == 3
    again = layer(several, term="cmi_real", data=data, compute=ddplug.Compute(draw=3), seed=7)
    # Other chunks, and another order of the proxies: sums of at most some thousand float64 numbers in another order.
    torch.testing.assert_close(train(again, *ones), first, rtol=1e-11, atol=1e-11)


def test_real_data_are_needed(pool: ddplug.ProxyPool, ones: Batch) -> None:
    with pytest.raises(ddplug.errors.InputError, match="Pass data=, .*, or a pool with centroids.*; --data for"):
        train(layer(pool, term="cmi_real"), *ones)
