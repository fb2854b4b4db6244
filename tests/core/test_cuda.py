"""The same contracts on a CUDA device: what is computed there equals the CPU's, and nothing is left behind."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddplug
from ddplug.networks.zoo import build, seeded

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_estimator_equals_the_cpus(dtype: torch.dtype) -> None:
    features = torch.randn(200, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.arange(200) % 7
    there = features.cuda().requires_grad_()
    here = features.clone().requires_grad_()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    value, expected = ddplug.cmi(there, labels.cuda()), ddplug.cmi(here, labels)
    assert value.item() == pytest.approx(expected.item(), rel=tolerance)
    (got,), (wanted,) = torch.autograd.grad(value, there), torch.autograd.grad(expected, here)
    torch.testing.assert_close(got.cpu(), wanted)


def test_the_layer_equals_the_cpus(network: Callable[..., nn.Module], batch: tuple[Tensor, Tensor]) -> None:
    """Labels may stay on the CPU; the pool follows the views; history is read in blocks."""
    images, labels = batch
    gradients = []
    for device in ("cpu", "cuda"):
        pool = ddplug.ProxyPool.from_modules([network(seed) for seed in range(3)])
        regularizer = ddplug.Regularizer(pool, 0.5, weighting=ddplug.Relative(3), announce=lambda line: None)
        leaf = images.to(device).requires_grad_()
        for _ in range(100):
            (regularizer(leaf * 2, labels) ** 2).sum().backward()
        assert leaf.grad is not None
        gradients.append((leaf.grad.cpu(), regularizer.history.cmi, regularizer.lam))
    torch.testing.assert_close(gradients[1][0], gradients[0][0])
    assert gradients[1][1] == pytest.approx(gradients[0][1])
    assert gradients[1][2] == pytest.approx(gradients[0][2])


def test_random_state_and_memory_of_the_device(network: Callable[..., nn.Module]) -> None:
    pool = ddplug.ProxyPool.from_modules([network(0), network(1)])
    regularizer = ddplug.Regularizer(pool, 1.0, weighting="absolute", announce=lambda line: None)
    labels = torch.arange(64, device="cuda") % 3

    def rounds(number: int) -> None:
        for _ in range(number):
            leaf = torch.ones(64, 3, 4, 4, dtype=torch.float64, device="cuda", requires_grad=True)
            regularizer(leaf * 2, labels).sum().backward()

    rounds(70)
    state, used = torch.cuda.get_rng_state(), torch.cuda.memory_allocated()
    rounds(200)
    torch.cuda.synchronize()
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert torch.cuda.memory_allocated() == used


def test_a_bad_round_is_skipped_without_waiting(network: Callable[..., nn.Module]) -> None:
    regularizer = ddplug.Regularizer(network(0), 1.0, weighting="absolute", announce=lambda line: None)
    labels = torch.arange(6, device="cuda") % 2
    broken = torch.full((6, 3, 4, 4), torch.nan, dtype=torch.float64, device="cuda", requires_grad=True)
    regularizer(broken, labels).nan_to_num().sum().backward()
    assert broken.grad is not None
    assert torch.isfinite(broken.grad).all()
    assert regularizer.history.skipped == 1


def test_attach_to_a_trainer_on_the_device(network: Callable[..., nn.Module]) -> None:
    class Trainer:
        labels = torch.arange(6) % 2

        def augment(self, images: Tensor, labels: Tensor) -> Tensor:
            return images * 1.5

    trainer = Trainer()
    leaf = torch.randn(6, 3, 4, 4, dtype=torch.float64, device="cuda", requires_grad=True)
    proxy = copy.deepcopy(network(0))
    with ddplug.attach(trainer, 0.1, proxies=proxy, augment="kornia", announce=lambda line: None) as handle:
        trainer.augment(leaf, trainer.labels).sum().backward()
    assert len(handle.history) == 1
    assert next(proxy.parameters()).device.type == "cpu"  # the user's own network stays where it is


def convnets(count: int = 3, **options: object) -> list[nn.Module]:
    found = []
    for seed in range(count):
        with seeded(seed):
            found.append(build("convnet", num_classes=10, **options))
    return found


def gradients(pool: ddplug.ProxyPool, rounds: int = 8, images: int = 60, **options: Any) -> tuple[list[Tensor], Any]:
    regularizer = ddplug.Regularizer(pool, 1.0, weighting="absolute", announce=lambda line: None, **options)
    labels = torch.arange(images) % 10
    found = []
    for number in range(rounds):
        leaf = torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(number)).cuda().requires_grad_()
        (regularizer(leaf * 1.5, labels) ** 2).sum().backward()
        assert leaf.grad is not None
        found.append(leaf.grad.clone())
    return found, regularizer


def test_precision_on_the_device() -> None:
    pool = ddplug.ProxyPool.from_modules(convnets(1))
    exact, _ = gradients(pool, 1, compute=ddplug.Compute(precision="exact"))
    auto, _ = gradients(pool, 1, compute=ddplug.Compute(precision="auto"))
    assert torch.cosine_similarity(auto[0].flatten(), exact[0].flatten(), 0).item() >= 0.999


def test_pieces_equal_the_whole_batch_on_the_device() -> None:
    pool = ddplug.ProxyPool.from_modules([network.double() for network in convnets(1, width=16)])
    whole, _ = gradients(pool, 1, compute=ddplug.Compute(chunk=60))
    pieces, _ = gradients(pool, 1, compute=ddplug.Compute(chunk=7))
    assert ((pieces[0] - whole[0]).norm() / whole[0].norm()).item() < 1e-6


def test_a_pool_streams_to_the_device(tmp_path: Path) -> None:
    ddplug.ProxyPool.from_modules(convnets(5)).save(tmp_path / "pool")
    streamed, _ = gradients(ddplug.ProxyPool.load(tmp_path / "pool", budget=1), 12)
    resident, _ = gradients(ddplug.ProxyPool.load(tmp_path / "pool"), 12)
    for got, expected in zip(streamed, resident, strict=True):
        torch.testing.assert_close(got, expected)


def test_five_hundred_rounds_leave_memory_flat() -> None:
    pool = ddplug.ProxyPool.from_modules(convnets(width=16))
    regularizer = ddplug.Regularizer(pool, 1.0, weighting="absolute", announce=lambda line: None)
    leaf, labels = torch.randn(20, 3, 32, 32, device="cuda", requires_grad=True), torch.arange(20, device="cuda") % 10

    def rounds(number: int) -> int:
        for _ in range(number):
            leaf.grad = None
            regularizer(leaf * 2, labels).sum().backward()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    used = rounds(70)
    assert rounds(500) == used


def test_nothing_stays_on_the_device_after_detaching() -> None:
    gc.collect()
    before = torch.cuda.memory_allocated()

    def run() -> None:
        _, regularizer = gradients(ddplug.ProxyPool.from_modules(convnets(width=16)))
        regularizer.detach()

    run()
    gc.collect()
    assert torch.cuda.memory_allocated() == before
