"""Pools larger than their budget: the same numbers as a pool that is all there, from memory-mapped files."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddplug
from ddplug import ProxyPool, networks
from ddplug.errors import ProxyError
from ddplug.lab.measure import measure
from ddplug.networks import zoo
from ddplug.networks.zoo import build, seeded
from ddplug.proxies.proxy import StreamedProxy

pytestmark = pytest.mark.numerical

COUNT = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five networks, one of them of another architecture."""
    networks = []
    for seed in range(COUNT):
        with seeded(seed):
            width = 6 if seed == 3 else 4
            networks.append(build("convnet", num_classes=3, channels=3, size=(8, 8), width=width, depth=2))
    where = tmp_path_factory.mktemp("pools") / "pool"
    ProxyPool.from_modules(networks).save(where)
    return where


def views(count: int = 9, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def gradients(pool: ProxyPool, rounds: int = 12, **options: Any) -> list[Tensor]:
    regularizer = ddplug.Regularizer(pool, 1.0, weighting="absolute", announce=lambda line: None, **options)
    found = []
    for number in range(rounds):
        leaf = views(seed=number).requires_grad_()
        regularizer(leaf, torch.arange(9) % 3).sum().backward()
        assert leaf.grad is not None
        found.append(leaf.grad)
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compute": ddplug.Compute(draw=3)},
        {"compute": ddplug.Compute(chunk=2)},
        {"compute": ddplug.Compute(every=2)},
    ],
)
def test_streamed_is_resident(folder: Path, options: dict[str, Any]) -> None:
    streamed, resident = ProxyPool.load(folder, budget=1), ProxyPool.load(folder)
    assert not any(isinstance(proxy, StreamedProxy) for proxy in resident)
    assert all(isinstance(proxy, StreamedProxy) for proxy in streamed)
    for got, expected in zip(gradients(streamed, **options), gradients(resident, **options), strict=True):
        assert torch.equal(got, expected)


def test_the_loss_form_sees_several_networks_in_one_graph(folder: Path) -> None:
    """Their weights change places between the forward and the backward pass."""
    found = []
    for budget in (1, 1 << 30):
        cmi, leaf = ddplug.CMI(ProxyPool.load(folder, budget=budget), draw="all"), views().requires_grad_()
        labels = torch.arange(9) % 3
        loss = cmi(leaf, labels) + 2 * cmi(leaf.sin(), labels)
        loss.backward()
        found.append(leaf.grad)
    assert found[0] is not None
    assert found[1] is not None
    assert torch.equal(found[0], found[1])


def test_everything_else_is_as_with_a_resident_pool(folder: Path, tmp_path: Path) -> None:
    streamed, resident = ProxyPool.load(folder, budget=1), ProxyPool.load(folder)
    assert [proxy.digest() for proxy in streamed] == [proxy.digest() for proxy in resident]
    assert [(p.name, p.head, p.record) for p in streamed] == [(p.name, p.head, p.record) for p in resident]
    assert [p.kind == streamed.proxies[0].kind for p in streamed] == [True, True, True, False, True]
    streamed.save(tmp_path / "copy")
    for copied in (ProxyPool.load(tmp_path / "copy"), copy.deepcopy(streamed), pickle.loads(pickle.dumps(streamed))):
        for proxy, expected in zip(copied, resident, strict=True):
            assert torch.equal(proxy(views(), "logit"), expected(views(), "logit"))
    labels = torch.arange(9) % 3
    assert measure(streamed, views(), labels) == measure(resident, views(), labels)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_weights_of_any_dtype_are_taken_as_a_resident_pool_takes_them(dtype: torch.dtype, tmp_path: Path) -> None:
    networks = [build("convnet", num_classes=3, channels=3, size=(8, 8), width=4, depth=2).to(dtype) for _ in range(3)]
    ProxyPool.from_modules(networks).save(tmp_path / "pool")
    streamed, resident = ProxyPool.load(tmp_path / "pool", budget=1), ProxyPool.load(tmp_path / "pool")
    for got, expected in zip(streamed, resident, strict=True):
        assert torch.equal(got(views()), expected(views()))


class Tied(networks.Network):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(192, 192)
        self.second = self.first
        self.classifier = nn.Linear(192, 3)

    def embed(self, images: Tensor) -> Tensor:
        rows: Tensor = self.second(self.first(images.flatten(1)).tanh())
        return rows


def tied() -> networks.Network:
    return Tied()


def test_a_layer_used_twice_and_a_host_that_goes_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "_REGISTRY", dict(zoo._REGISTRY))
    make = networks.register(tied)
    ProxyPool.from_modules([make() for _ in range(3)]).save(tmp_path / "pool")
    monkeypatch.chdir(tmp_path)
    streamed, resident = (ProxyPool.load("pool", budget=b) for b in (1, 1 << 30))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for got, expected in zip(streamed, resident, strict=True):
        assert torch.equal(got(views()), expected(views()))


def test_a_damaged_file_is_refused_when_the_pool_is_opened(folder: Path, tmp_path: Path) -> None:
    pool = ProxyPool.load(folder)
    pool.save(tmp_path / "pool")
    last = tmp_path / "pool" / f"proxy_{COUNT - 1:03d}.safetensors"
    last.write_bytes(last.read_bytes()[:-1] + b"x")
    with pytest.raises(ProxyError, match="is not the file that the pool's header describes"):
        ProxyPool.load(tmp_path / "pool", budget=1)


def test_a_file_that_goes_missing_in_use_is_said(folder: Path, tmp_path: Path) -> None:
    ProxyPool.load(folder).save(tmp_path / "pool")
    pool = ProxyPool.load(tmp_path / "pool", budget=1)
    (tmp_path / "pool" / "proxy_002.safetensors").unlink()
    with pytest.raises(ProxyError, match="cannot be read.*Did the pool's folder"):
        pool.proxies[2](views())
