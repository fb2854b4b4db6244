"""A round that an exception ends was none: rounds, history, measurement and draws are as they were before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddplug
from ddplug.terms import Groups, Term

pytestmark = pytest.mark.numerical

Batch = tuple[Tensor, Tensor]


class Failing:
    """Fails when told to."""

    armed = False

    def look(self) -> None:
        if self.armed:
            raise KeyboardInterrupt


class FailingTerm(Term, Failing):
    def __call__(self, features: Tensor, groups: Groups) -> Tensor:
        self.look()
        return (features - groups.mean(features)[groups.index]).square().sum(-1).mean()


class FailingScale(Failing):
    def __call__(self) -> float:
        self.look()
        return 1.0


class FailingSchedule(Failing):
    def __call__(self, number: int) -> float:
        self.look()
        return 1.0


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)


def a_round(regularizer: ddplug.Regularizer, batch: Batch, how: str) -> Tensor:
    """Two calls, in one backward pass or in a round of two."""
    leaf = batch[0].clone().requires_grad_()
    parts = [(leaf[:5] * 2, batch[1][:5]), (leaf[5:] * 2, batch[1][5:])]
    if how == "one pass":
        sum(regularizer(*part).square().sum() for part in parts).backward()  # type: ignore[union-attr]
    else:
        with regularizer.round():
            for part in parts:
                regularizer(*part).square().sum().backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("how", ["one pass", "two passes"])
@pytest.mark.parametrize(
    ("name", "failing"),
    [
        ("term", FailingTerm),
        ("scale", FailingScale),
        ("schedule", FailingSchedule),
    ],
)
def test_an_exception_in_mid_round(
    network: Callable[..., nn.Module], batch: Batch, name: str, failing: type[Failing], how: str
) -> None:
    def made(given: Failing) -> ddplug.Regularizer:
        weighting = ddplug.Relative(3, schedule=given if name == "schedule" else None)
        options: dict[str, Any] = {"announce": lambda line: None, "weighting": weighting}
        options |= {} if name == "schedule" else {name: given}
        return ddplug.Regularizer([network(seed) for seed in range(3)], 0.7, **options)

    fails = failing()
    regularizer, other = made(fails), made(failing())
    for _ in range(2):
        a_round(regularizer, batch, how)
        a_round(other, batch, how)
    before = regularizer.state_dict()
    fails.armed = True
    with pytest.raises(KeyboardInterrupt):
        a_round(regularizer, batch, how)
    assert equal(regularizer.state_dict(), before)
    fails.armed = False
    for _ in range(3):
        assert torch.equal(a_round(regularizer, batch, how), a_round(other, batch, how))
    assert equal(regularizer.state_dict(), other.state_dict())
    assert regularizer.lam is not None


def test_a_round_whose_end_cannot_be_walked(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """The images' graph is shared with a penalty, and gone: nothing was added, and nothing is in the history."""
    regularizer = ddplug.Regularizer(pool, 0.7, weighting="relative", announce=lambda line: None)
    a_round(regularizer, batch, "two passes")
    before = regularizer.state_dict()
    leaf = batch[0].clone().requires_grad_()
    images = leaf.exp()  # keeps what its derivative needs
    with pytest.raises(RuntimeError, match="retain_graph"), regularizer.round():
        views = regularizer(images, batch[1])
        views.square().sum().backward(retain_graph=True)
        images.sum().backward()
    assert equal(regularizer.state_dict(), before)


def test_the_hosts_own_exception(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """Between two calls of a round: the round is undone when the next begins."""

    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, views: Tensor) -> Tensor:
            return views.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
            raise MemoryError

    regularizer = ddplug.Regularizer(pool, 0.7, weighting="absolute", announce=lambda line: None)
    expected = a_round(regularizer, batch, "one pass")
    leaf = batch[0].clone().requires_grad_()
    first = regularizer(leaf[:5] * 2, batch[1][:5])
    second = regularizer(Breaks.apply(first[:2] * 1), batch[1][:2])
    with pytest.raises(MemoryError):
        (first.sum() + second.sum()).backward()
    assert len(regularizer.history) == 1
    assert regularizer.rounds == 1
    assert torch.equal(a_round(regularizer, batch, "one pass"), expected)
    assert [round_.number for round_ in regularizer.history] == [0, 1]
