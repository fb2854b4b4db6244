"""Networks, labels and draws of kinds that torch treats specially: taken as they are, or refused by name."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ddplug
from ddplug.errors import HostError, ProxyError

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
IMAGES = torch.randn(6, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def acted(proxy: nn.Module, labels: Tensor = LABELS) -> list[float]:
    layer = ddplug.Regularizer([proxy], 1.0, announce=lambda _: None)
    layer(IMAGES.clone().requires_grad_() * 1, labels).square().sum().backward()
    layer.detach()
    return layer.history.values


class Around(nn.Module):
    """A network with something done to its input."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.change = network(), change

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.network(self.change(images))
        return found


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "parametrizations.weight_norm"])
def test_weights_that_are_computed_anew_in_each_pass(name: str, used: bool) -> None:
    """Kind: modules that deepcopy does not take. Looked at: both kinds of weight norms, used before and not."""
    norm: Any = nn.utils
    for part in name.split("."):
        norm = getattr(norm, part)
    given = network()
    given[1] = norm(given[1])
    if used:
        given(IMAGES)
    assert acted(given) == pytest.approx(acted(given), rel=1e-12)


@pytest.mark.parametrize("kind", [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int16])
def test_labels_of_every_integer_type(kind: torch.dtype) -> None:
    """Kind: dtypes that torch cannot compare. Looked at: the layer, the loss form, `cmi`, the metrics."""
    assert acted(network(), LABELS.to(kind)) == acted(network())
    features = network()(IMAGES)
    torch.testing.assert_close(ddplug.cmi(features, LABELS.to(kind)), ddplug.cmi(features, LABELS))
    assert ddplug.CMI([network()])(IMAGES, LABELS.to(kind)) > 0


CHANGES: dict[str, Callable[[Tensor], object]] = {
    "a method": lambda images: images.add_(0.5),
    "a view": lambda images: images[:, :1].mul_(2),
    "out=": lambda images: torch.clamp(images, 0, out=images),
    ".data": lambda images: images.data.add_(0.5),
    "NumPy": lambda images: images.detach().numpy().fill(0),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_proxy_that_changes_its_input_is_refused_before_it_does(kind: str) -> None:
    """Kind: proxies that alter what is the host's.

    Looked at: its views, with the knowledge of autograd and behind its back, its generators (below), its own module.
    """

    def change(images: Tensor) -> Tensor:
        CHANGES[kind](images)
        return images

    proxy, leaf = Around(change), IMAGES.clone().requires_grad_()
    views = leaf * 1
    before = views.detach().clone()
    with pytest.raises(ProxyError, match="in place"):
        ddplug.Regularizer([proxy], 1.0)(views, LABELS)
    assert torch.equal(views, before)
    with pytest.raises(ProxyError, match="in place"):
        ddplug.CMI([proxy])(leaf * 1, LABELS)


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch": lambda images: images + 0 * torch.rand(1),
    "torch in batches": lambda images: images + 0 * torch.rand(1) if len(images) > 1 else images,
    "dropout": lambda images: nn.functional.dropout(images),
    "NumPy": lambda images: images + 0 * np.random.rand(),
    "Python": lambda images: images + 0 * random.random(),
    "a seed of torch": lambda images: (torch.manual_seed(3), images)[1],
    "a seed of NumPy": lambda images: (np.random.seed(3), images)[1],
    "a seed of Python": lambda images: (random.seed(3), images)[1],
}


@pytest.mark.parametrize("kind", DRAWS)
def test_a_proxy_that_draws(kind: str) -> None:
    """Kind: draws from generators that are not the proxy's, and their seeds.

    Looked at: torch, NumPy, `random`, for batches only.
    """
    with pytest.raises(ProxyError, match="draws random numbers"):
        acted(Around(DRAWS[kind]))
    torch.rand(1), np.random.rand(), random.random()  # so that the same seed has an effect again
    with pytest.raises(ProxyError, match="draws random numbers"):
        ddplug.CMI([Around(DRAWS[kind])])(IMAGES, LABELS)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_network_of_torch_jit_is_refused_by_name() -> None:
    """The layers of such a network cannot be read, so that naming the head, as another message advised, failed."""
    for given in (torch.jit.script(network()), torch.jit.trace(network(), IMAGES)):
        with pytest.raises(ProxyError, match=r"not one of torch\.jit"):
            ddplug.ProxyPool.from_modules([given], head="3")


def test_a_proxy_with_a_generator_of_its_own() -> None:
    generator = torch.Generator()
    assert acted(Around(lambda images: images + 0 * torch.rand(1, generator=generator)))


def test_draws_of_another_thread_are_not_the_proxys() -> None:
    end = threading.Event()

    def draw() -> None:
        while not end.is_set():
            torch.rand(1)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        for _ in range(20):
            acted(network())
    finally:
        end.set()
        thread.join()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_compiled_augmentation_is_refused_by_name() -> None:
    class Flip(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flip(3)

    class Trainer:
        def __init__(self) -> None:
            self.images, self.labels = IMAGES.clone().requires_grad_(), LABELS
            self.optimizer = torch.optim.SGD([self.images], lr=0.1)
            self.augment = torch.jit.script(Flip())

    with pytest.raises(HostError, match=r"torch\.jit"):
        ddplug.attach(Trainer(), weight=1, proxies=[network()])
