"""Rounds against plain autograd: whatever a host does between two steps, its images follow L + lambda * CMI."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from statistics import median_low
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import ddplug

pytestmark = pytest.mark.numerical

SHARE, LR, MOMENTUM, ROUNDS = 0.7, 0.4, 0.5, 2
LABELS = torch.tensor([2, 0, 1, 1, 0, 2, 1, 0, 1, 2, 1, 1])


def small(seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.6)
    return network


PROXY, HOST = small(1), small(2)
IMAGES = torch.randn(12, 3, 2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def host_loss(views: Tensor, labels: Tensor) -> Tensor:
    """A mean over all twelve images, in parts that add up."""
    return F.cross_entropy(HOST(views), labels, reduction="sum") / len(LABELS)


# The reference: no code of ddplug


def cmi(views: Tensor) -> Tensor:
    """The mean over the images of KL(P || the mean P of their class)."""
    logs = PROXY(views).log_softmax(1)
    member = F.one_hot(LABELS).double()
    centroids = (member.T @ logs.exp()) / member.sum(0)[:, None]
    return (logs.exp() * (logs - centroids.log()[LABELS])).sum(1).mean()


class Reference:
    """Descent on L + lambda * CMI, with lambda by its definition."""

    def __init__(self, weighting: str, every: int) -> None:
        self.images, self.speed = IMAGES.clone(), torch.zeros_like(IMAGES)
        self.weighting, self.every = weighting, every
        self.ratios: list[float] = []
        self.lam: float | None = None
        self.history: list[tuple[float, float, float]] = []

    def step(self, number: int) -> None:
        views = (1.5 * self.images).requires_grad_()
        (host,) = torch.autograd.grad(host_loss(views, LABELS), views)
        total = host
        if number % self.every == 0:
            value = cmi(views)
            (own,) = torch.autograd.grad(value, views)
            ratio = (host.norm() / own.norm()).item()
            measured = SHARE * median_low(self.ratios) if self.ratios else 0.0
            applied = self.every * (measured if self.lam is None else self.lam)
            total = host + applied * own
            self.history.append((value.item(), applied, applied / ratio))
            self.measure(ratio)
        self.speed = MOMENTUM * self.speed + 1.5 * total
        self.images = self.images - LR * self.speed

    def measure(self, ratio: float) -> None:
        if self.lam is not None and self.weighting == "relative":
            return
        self.ratios.append(ratio)
        if len(self.ratios) == ROUNDS:
            self.lam, self.ratios = SHARE * median_low(self.ratios), []


# The host: everything but a step leaves no trace


class Loop:
    """A trainer with a layer, whose steps are cut and disturbed."""

    def __init__(self, weighting: str, every: int) -> None:
        self.images = IMAGES.clone().requires_grad_()
        self.optimizer = torch.optim.SGD([self.images], lr=LR, momentum=MOMENTUM)
        kind = {"relative": ddplug.Relative, "sustained": ddplug.Sustained}[weighting]
        self.layer = ddplug.Regularizer(
            ddplug.ProxyPool.from_modules([PROXY]),
            SHARE,
            weighting=kind(ROUNDS),
            compute=ddplug.Compute(every=every, precision="exact"),
            announce=lambda line: None,
        )
        self.layer.watch.expect("several passes")  # a pass for a log, before a gradient that is set by hand
        self.rows: list[Tensor] = [torch.arange(12)]
        self.block = False

    def losses(self) -> list[Tensor]:
        """The loss of each part, by a call of the layer for each."""
        return [host_loss(self.layer(1.5 * self.images[rows], LABELS[rows]), LABELS[rows]) for rows in self.rows]

    def loss(self) -> Tensor:
        return torch.stack(self.losses()).sum()

    def whole_pass(self) -> None:
        """The pass that counts, as one backward pass or as one for each part."""
        if not self.block:
            self.loss().backward()
            return
        with self.layer.round():
            for loss in self.losses():
                loss.backward()

    def hooked(self, loss: Tensor, **options: Any) -> None:
        def boom(*_: object) -> None:
            raise MemoryError

        handle = self.images.register_hook(boom)
        with pytest.raises(MemoryError):
            loss.backward(**options)
        handle.remove()


def wiped(loop: Loop) -> None:
    loop.whole_pass()
    loop.optimizer.zero_grad()


def wiped_to_zeros(loop: Loop) -> None:
    loop.whole_pass()
    loop.optimizer.zero_grad(set_to_none=False)


def raised(loop: Loop) -> None:
    loop.hooked(loop.loss())
    loop.optimizer.zero_grad()


def block_raised(loop: Loop) -> None:
    with pytest.raises(MemoryError), loop.layer.round():
        loop.losses()[0].backward()
        raise MemoryError
    loop.optimizer.zero_grad()


def logged(loop: Loop) -> None:
    torch.autograd.grad(loop.loss(), loop.images)


def called(loop: Loop) -> None:
    """Views that nobody backpropagates, and others that need no gradient."""
    kept = loop.losses()
    loop.layer(1.5 * loop.images.detach(), LABELS)
    del kept


def network_trained(loop: Loop) -> None:
    """A pass for another optimizer's step, which goes through to the images too, as HaBa's do."""
    other = nn.Parameter(torch.ones((), dtype=torch.float64))
    optimizer = torch.optim.SGD([other], lr=0.1)
    (loop.loss() * other).backward()
    optimizer.step()
    loop.optimizer.zero_grad()


BEFORE: list[Callable[[Loop], None]] = [wiped, wiped_to_zeros, raised, block_raised, logged, called, network_trained]


def plain(loop: Loop) -> None:
    loop.whole_pass()


def log_on_the_graph(loop: Loop) -> None:
    loss = loop.loss()
    torch.autograd.grad(3 * loss, loop.images, retain_graph=True)
    loss.backward()


def wiped_on_the_graph(loop: Loop) -> None:
    loss = loop.loss()
    loss.backward(retain_graph=True)
    loop.optimizer.zero_grad()
    loss.backward()


def retried_on_the_graph(loop: Loop) -> None:
    loss = loop.loss()
    loop.hooked(loss, retain_graph=True)
    loss.backward()


def log_afterwards(loop: Loop) -> None:
    loop.whole_pass()
    torch.autograd.grad(loop.loss(), loop.images)


def assigned(loop: Loop) -> None:
    (loop.images.grad,) = torch.autograd.grad(loop.loss(), loop.images)


PASSES: list[Callable[[Loop], None]] = [
    plain, log_on_the_graph, wiped_on_the_graph, retried_on_the_graph, log_afterwards, assigned
]  # fmt: skip


@st.composite
def cuts(draw: st.DrawFn) -> tuple[list[list[int]], bool]:
    """The rows of each call, by class in any order or in parts of any order, and True for a pass of each."""
    if draw(st.booleans()):
        parts = [(label == LABELS).nonzero().flatten().tolist() for label in draw(st.permutations(range(3)))]
    else:
        order = draw(st.permutations(range(12)))
        ends = [0, *sorted(draw(st.sets(st.integers(1, 11), max_size=3))), 12]
        parts = [list(order[a:b]) for a, b in pairwise(ends)]
    return parts, draw(st.booleans())


STEP = st.tuples(cuts(), st.lists(st.sampled_from(BEFORE), max_size=2), st.sampled_from(PASSES))


@given(
    steps=st.lists(STEP, min_size=3, max_size=6),
    weighting=st.sampled_from(["relative", "sustained"]),
    every=st.sampled_from([1, 1, 2]),
    last=st.lists(st.sampled_from(BEFORE), max_size=1),
)
def test_images_lambda_and_history_are_those_of_plain_autograd(
    steps: list[Any], weighting: str, every: int, last: list[Callable[[Loop], None]]
) -> None:
    reference, loop = Reference(weighting, every), Loop(weighting, every)
    for number, ((parts, loop.block), before, pass_) in enumerate(steps):
        loop.rows = [torch.tensor(rows) for rows in parts]
        loop.optimizer.zero_grad()
        for disturb in before:
            disturb(loop)
        pass_(loop)
        loop.optimizer.step()
        reference.step(number)
    for disturb in last:
        disturb(loop)
    # Sums of some hundred float64 products in another order, 1e-14 relative, through six steps of a smooth descent.
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(loop.images.detach(), reference.images, **close)
    assert loop.layer.rounds == len(steps)
    assert loop.layer.lam == pytest.approx(reference.lam, rel=1e-10)
    got = [[round_.value, round_.lam, round_.share] for round_ in loop.layer.history]
    torch.testing.assert_close(
        torch.tensor(got, dtype=torch.float64), torch.tensor(reference.history, dtype=torch.float64), **close
    )
    assert all(round_.images == 12 for round_ in loop.layer.history)
