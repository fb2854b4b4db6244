"""Centroids of real images that are made in one pass over a data set and kept with the pool."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset
from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, Resize

import ddplug
from ddplug import InputSpace, ProxyPool
from ddplug.datasets.images import as_image_data
from ddplug.errors import DataError, InputError, ProxyError
from ddplug.networks.zoo import build, seeded
from ddplug.proxies.centroids import add_centroids
from ddplug.terms.cmi_real import RealCentroids

pytestmark = pytest.mark.numerical

LABELS = torch.tensor([4, 0, 2, 2, 0, 4, 4, 2, 0, 0, 2])
"""Classes of different sizes; 1 and 3 have no image."""
IMAGES = torch.rand(len(LABELS), 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
UNIT = InputSpace.unit(3)
SPACE = InputSpace.normalized((0.5, 0.4, 0.3), (0.25, 0.2, 0.2))


def pool(count: int = 2) -> ProxyPool:
    networks = []
    for seed in range(count):
        with seeded(seed):
            networks.append(build("convnet", num_classes=5, size=(8, 8), width=4, depth=2).double())
    return ProxyPool.from_modules(networks, input_space=SPACE)


def reference(proxy: Any, representation: str, temperature: float) -> dict[int, Tensor]:
    """Logs of the mean probabilities of each class, image by image."""
    features = proxy(UNIT.convert(IMAGES, SPACE), representation).double()
    logs = torch.log_softmax(features / temperature, 1)
    return {c: logs[c == LABELS].logsumexp(0) - (c == LABELS).sum().double().log() for c in LABELS.unique().tolist()}


class Pictures(Dataset[Any]):
    """Images with a transform, that counts the ones that are alive."""

    def __init__(self, *, transform: Any = None, sizes: tuple[int, ...] = (8,)) -> None:
        self.transform, self.sizes = transform, sizes
        self.alive: set[int] = set()
        self.most = 0

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        size = self.sizes[index % len(self.sizes)]
        image = IMAGES[index, :, :size, :size].clone()
        self.alive.add(index)
        weakref.finalize(image, self.alive.discard, index)
        self.most = max(self.most, len(self.alive))
        return (image if self.transform is None else self.transform(image)), int(LABELS[index])


@pytest.fixture(autouse=True)
def _nobody_draws() -> Iterator[None]:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
    yield
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index]
    assert random.getstate() == before[2]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("representation", ["logit", "feature"])
@pytest.mark.parametrize("temperature", [1.0, 0.002])
def test_means_in_batches_of_any_size(batch_size: int, representation: Any, temperature: float) -> None:
    """At T = 0.002 most probabilities underflow, but none of their sums' logs."""
    data = TensorDataset(IMAGES, LABELS)
    found = add_centroids(
        pool(), data, space="unit", batch_size=batch_size, representation=representation, temperature=temperature,
        progress=False,
    )  # fmt: skip
    for proxy in found:
        stored = proxy.centroids[representation, temperature]
        expected = reference(proxy, representation, temperature)
        assert stored.groups.classes.tolist() == sorted(expected)
        assert stored.groups.counts.tolist() == [4, 4, 3]
        assert torch.isfinite(stored.features).all()
        # Sums of eleven numbers in another order; logs reach 1e4, and their errors with them.
        for row, label in zip(stored.features, sorted(expected), strict=True):
            torch.testing.assert_close(row, expected[label], rtol=1e-12, atol=1e-12)


def test_the_gradient_is_that_of_the_divergence_from_them() -> None:
    """Against autograd, one image per class; the layer needs no data."""
    proxies = add_centroids(pool(1), TensorDataset(IMAGES, LABELS), space="unit", progress=False)
    (proxy,) = proxies
    images = SPACE.from_unit(IMAGES[:3].flip(0)).requires_grad_()
    labels = torch.tensor([4, 0, 2])
    lines: list[str] = []
    layer = ddplug.Regularizer(
        proxies, 0.7, weighting="absolute", term="cmi_real", representation="logit", announce=lines.append
    )
    layer(images, labels).sum().backward()
    known = reference(proxy, "logit", 1.0)
    log_p = torch.log_softmax(proxy(images, "logit"), 1)
    divergence = sum(((p.exp() * (p - known[c])).sum() for p, c in zip(log_p, [4, 0, 2], strict=True))) / 3
    (expected,) = torch.autograd.grad(divergence, images)
    assert images.grad is not None
    torch.testing.assert_close(images.grad - 1, 0.7 * expected, rtol=1e-10, atol=1e-12)
    assert layer.history.cmi[-1] == pytest.approx(float(divergence.detach()), rel=1e-10)
    assert sum("the centroids that the proxies have" in line for line in lines) == 1


def test_they_come_before_a_sample_of_data() -> None:
    """Data that hang on a trainer are not read."""
    proxies = add_centroids(pool(), TensorDataset(IMAGES, LABELS), space="unit", progress=False)
    layer = ddplug.Regularizer(proxies, 1, term="cmi_real", announce=lambda line: None)
    layer.real.sample_from(lambda: pytest.fail("the data were read"))
    other = ddplug.Regularizer(proxies, 1, term=RealCentroids(temperature=2.0))
    with pytest.raises(InputError, match="a pool with centroids, which ddplug.proxies.centroids.add_centroids"):
        other(SPACE.from_unit(IMAGES[:3]).requires_grad_(), LABELS[:3]).sum().backward()


def test_memory_is_that_of_a_batch() -> None:
    data = Pictures(transform=Normalize(SPACE.mean, SPACE.std))
    add_centroids(pool(1), data, batch_size=2, progress=False)
    gc.collect()
    assert data.most <= 4 < len(data), "images are kept after their batch"


def test_random_transforms_are_left_out() -> None:
    """And the normalisation is the data set's."""
    plain = Compose([Normalize(SPACE.mean, SPACE.std)])
    mirrored = Compose([RandomHorizontalFlip(0.9), Normalize(SPACE.mean, SPACE.std)])
    found = [add_centroids(pool(1), Pictures(transform=each), progress=False) for each in (plain, mirrored)]
    (first, second) = (each.proxies[0].centroids["logit", 1.0].features for each in found)
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


def test_kept_in_the_folder(tmp_path: Path) -> None:
    saved = tmp_path / "pool"
    pool().save(saved)
    split = IMAGES.float(), LABELS // 2
    data = as_image_data((split, split), space="unit")
    added = add_centroids(saved, data, progress=False)
    for budget in (1, 4 << 30):  # streamed, and in memory
        for proxy, other in zip(ProxyPool.load(saved, budget=budget), added, strict=True):
            torch.testing.assert_close(
                proxy.centroids["logit", 1.0].features, other.centroids["logit", 1.0].features, rtol=0, atol=0
            )
    added.save(tmp_path / "copy")
    assert ProxyPool.load(tmp_path / "copy").proxies[1].centroids.keys() == {("logit", 1.0)}
    file = saved / "centroids.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(ProxyError, match="missing or is not the file"):
        ProxyPool.load(saved)


def test_an_interrupted_write_leaves_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the pool had centroids before."""
    saved = tmp_path / "pool"
    pool(1).save(saved)
    add_centroids(saved, TensorDataset(IMAGES, LABELS), space="unit", progress=False)
    written = iter([None])

    def second_fails(*given: Any) -> None:
        if next(written, "second") == "second":
            raise KeyboardInterrupt
        original(*given)

    from ddplug.proxies import pool_files

    original = pool_files.write_header
    monkeypatch.setattr(pool_files, "write_header", second_fails)
    with pytest.raises(KeyboardInterrupt):
        add_centroids(saved, TensorDataset(IMAGES[:6], LABELS[:6]), space="unit", progress=False)
    assert not ProxyPool.load(saved).proxies[0].centroids


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (TensorDataset(IMAGES, LABELS), InputError, "Pass space=, such as 'unit'"),
        (Pictures(sizes=(8, 7)), DataError, r"transform=Compose\(\[Resize\(256\)"),
        (TensorDataset(IMAGES), DataError, "not \\(image, label\\)"),
        (Pictures(transform=Compose([Resize(6), Normalize(SPACE.mean, SPACE.std)])), ProxyError, "does not take"),
    ],
    ids=["space", "sizes", "labels", "shape"],
)
def test_refusals(data: Any, error: type[Exception], words: str) -> None:
    if isinstance(data, TensorDataset) and error is InputError:
        data = TensorDataset(3 * IMAGES - 1, LABELS)
    with pytest.raises(error, match=words):
        add_centroids(pool(1), data, progress=False)


def test_labels_that_the_pool_does_not_have() -> None:
    info = ddplug.proxies.pool.PoolInfo(class_names=("a", "b"), space=SPACE)
    with seeded(0):
        network: nn.Module = build("convnet", num_classes=2, size=(8, 8), width=4, depth=2).double()
    with pytest.raises(InputError, match="labels up to 4"):
        add_centroids(
            ProxyPool.from_modules(network, info=info), TensorDataset(IMAGES, LABELS), space="unit", progress=False
        )
