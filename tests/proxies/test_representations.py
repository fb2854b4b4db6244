"""What CMI is made of: features, pooled features, logits; and the name that the choice had before."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddplug
from ddplug import ProxyPool
from ddplug.core.compiled import Compiled
from ddplug.core.step import PieceByPiece
from ddplug.errors import ProxyError
from ddplug.lab.measure import measure
from ddplug.networks.zoo import build, seeded
from ddplug.proxies.proxy import Proxy, StreamedProxy
from ddplug.terms import make
from ddplug.terms.base import group

pytestmark = pytest.mark.numerical

LABELS = torch.arange(6) % 3


def images(n: int = 6, size: int = 16, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def network(architecture: str = "convnet", seed: int = 0) -> nn.Module:
    sizes: dict[str, Any] = {} if architecture == "resnet18" else {"size": (16, 16)}
    with seeded(seed):
        return build(architecture, num_classes=3, channels=3, width=8, **sizes)


def by_hand(proxy: Proxy, x: Tensor, shape: tuple[int, int, int]) -> Tensor:
    return proxy(x).view(len(x), *shape).mean((2, 3))


class Odd(nn.Module):
    """Maps and a head, joined as told."""

    def __init__(self, join: Any, features: int) -> None:
        super().__init__()
        self.maps, self.join, self.head = nn.Conv2d(3, 4, 3, padding=1), join, nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.join(self.maps(x)))
        return logits


# --- pooled features


@pytest.mark.parametrize(("size", "shape"), [(16, (8, 2, 2)), (24, (8, 3, 3))])
def test_pooled_features_of_a_convnet_are_its_maps_averaged(size: int, shape: tuple[int, int, int]) -> None:
    with seeded(0):
        proxy = Proxy(build("convnet", num_classes=3, channels=3, width=8, size=(size, size)))
    assert torch.equal(proxy(images(size=size), "pooled"), by_hand(proxy, images(size=size), shape))


def test_a_resnet_has_pooled_them_already() -> None:
    proxy = Proxy(network("resnet18"))
    assert torch.equal(proxy(images(), "pooled"), proxy(images()))


@pytest.mark.parametrize(
    ("join", "features", "shape"),
    [
        (nn.Flatten(), 1024, (4, 16, 16)),
        (lambda maps: maps.view(len(maps), -1), 1024, (4, 16, 16)),
        (lambda maps: maps.to(memory_format=torch.channels_last).reshape(len(maps), -1), 1024, (4, 16, 16)),
        (lambda maps: torch.relu(maps).flatten(1), 1024, (4, 16, 16)),
        (lambda maps: torch.relu(maps.flatten(1)), 1024, (4, 16, 16)),
        (lambda maps: nn.functional.avg_pool2d(maps, 8).flatten(1), 16, (4, 2, 2)),
        (lambda maps: nn.functional.adaptive_avg_pool2d(maps, 1).squeeze(-1).squeeze(-1), 4, (4, 1, 1)),
        (lambda maps: maps.flatten(2).mean(2), 4, (4, 1, 1)),
        (lambda maps: maps.amax((2, 3)), 4, (4, 1, 1)),
        (lambda maps: maps.permute(0, 2, 3, 1).mean((1, 2)).view(len(maps), 4, 1, 1).flatten(1), 4, (4, 1, 1)),
    ],
)
def test_however_maps_become_rows(join: Any, features: int, shape: tuple[int, int, int]) -> None:
    proxy = Proxy(Odd(join, features))
    assert torch.allclose(proxy(images(), "pooled"), by_hand(proxy, images(), shape))


@pytest.mark.parametrize(
    ("join", "features"),
    [
        (lambda maps: maps.permute(0, 2, 3, 1).flatten(1), 1024),
        (lambda maps: maps.flatten(1) @ torch.ones(1024, 8), 8),
        (lambda maps: torch.cat([maps.flatten(1), maps.mean((2, 3))], 1), 1028),
    ],
    ids=["positions first", "mixed", "joined"],
)
def test_rows_of_no_known_maps_are_refused(join: Any, features: int) -> None:
    proxy = Proxy(Odd(join, features), name="odd")
    assert proxy(images()).shape == (6, features)
    with pytest.raises(ProxyError, match=r"head 'head' of proxy 'odd' \(Odd\) is not seen to be maps"):
        proxy(images(), "pooled")
    regularizer = ddplug.Regularizer(proxy.network, representation="pooled")
    with pytest.raises(ProxyError, match="is not seen to be maps"):  # before anything is added
        regularizer(images().requires_grad_(), LABELS)


def test_a_head_that_takes_maps_has_them_averaged() -> None:
    convolutions = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 14), nn.Flatten())
    proxy = Proxy(convolutions, "1")
    assert torch.equal(proxy(images(), "pooled"), convolutions[0](images()).mean((2, 3)))


def test_the_loss_form_is_differentiable_twice() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)).double()
    loss = ddplug.CMI(net, "pooled")
    x = images(6, 4, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, LABELS), x)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, LABELS), x, fast_mode=True)


@pytest.mark.parametrize("chunk", ["auto", 1, 4])
def test_in_pieces_and_at_once(chunk: Any) -> None:
    """The layer's gradient is that of the loss form, whatever the pieces."""
    net = network().double()
    x = images(dtype=torch.float64).requires_grad_()
    (expected,) = torch.autograd.grad(ddplug.CMI(net, "pooled")(x, LABELS), x)
    step = PieceByPiece("pooled", make("cmi"), lambda views: views, ddplug.Compute(precision="exact", chunk=chunk))
    value, got = step(Proxy(copy.deepcopy(net)), x.detach(), group(LABELS, 6, x.device))
    assert torch.allclose(got, expected, rtol=1e-9, atol=1e-14)
    assert value.item() == pytest.approx(measure(net, x.detach(), LABELS, representation="pooled").cmi)


def test_a_streamed_proxy_gives_the_same(tmp_path: Path) -> None:
    pool = ProxyPool.from_modules([network(seed=seed) for seed in range(3)])
    expected = [proxy(images(), "pooled") for proxy in pool]
    pool.save(tmp_path / "pool")
    for proxy, features in zip(ProxyPool.load(tmp_path / "pool", budget=1), expected, strict=True):
        assert isinstance(proxy, StreamedProxy)
        assert torch.equal(proxy(images(), "pooled"), features)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_network_gives_the_same() -> None:
    first, second = (Proxy(network(seed=seed)) for seed in range(2))
    compiled = Compiled(first, "pooled")
    for proxy, size in ((first, 16), (second, 16)):
        compiled.take(proxy)
        compiled.check(proxy, images(2, size))
        assert torch.allclose(compiled(images(4, size), "pooled"), proxy(images(4, size), "pooled"), atol=1e-5)
