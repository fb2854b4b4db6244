"""A sustained share: held while both gradients change, bounded, the same however a set is cut, and resumable."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import ddplug
from ddplug.core.weighting import BOUND, Lambda

pytestmark = pytest.mark.numerical

Batch = tuple[Tensor, Tensor]


def norms(host: float, own: float) -> tuple[Tensor, Tensor]:
    return torch.tensor(host, dtype=torch.float64), torch.tensor(own, dtype=torch.float64)


def layer(pool: ddplug.ProxyPool, weight: float = 0.5, **options: Any) -> ddplug.Regularizer:
    options = {
        "weighting": ddplug.Sustained(2),
        "compute": ddplug.Compute(precision="exact"),
        "announce": lambda line: None,
        "representation": "feature",
        **options,
    }
    return ddplug.Regularizer(pool, weight, **options)


def step(regularizer: ddplug.Regularizer, images: Tensor, labels: Tensor, factor: float = 1.0) -> Tensor:
    """A host whose gradient is `factor` on every pixel."""
    leaf = images.clone().requires_grad_()
    (regularizer(leaf, labels).sum() * factor).backward()
    assert leaf.grad is not None
    return leaf.grad


@given(
    share=st.floats(0.01, 10),
    own=st.lists(st.floats(0.2, 5), min_size=12, max_size=12),
    host=st.lists(st.floats(0.2, 5), min_size=12, max_size=12),
)
def test_lambda_is_the_share_of_the_rounds_before(share: float, own: list[float], host: list[float]) -> None:
    """By definition: the median of the ratios in the last three complete rounds, within the bound."""
    weighting = Lambda(share, ddplug.Sustained(3))
    for number, (h, o) in enumerate(zip(host, own, strict=True), 1):
        weighting.observe(*norms(h, o), ends=True)
        if number % 3 == 0:
            last = slice(number - 3, number)
            expected = share * median(math.sqrt(h / o) for h, o in zip(host[last], own[last], strict=True))
            assert weighting.first is not None
            assert weighting.lam == pytest.approx(min(expected, BOUND * weighting.first), rel=1e-12)
        assert weighting.measuring


def test_the_share_stays_where_a_frozen_one_decays(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """Descend on CMI alone beside a host of constant gradient, so that CMI's own gradient falls."""
    shares = {}
    for weighting, kind in (("relative", ddplug.Relative(2)), ("sustained", ddplug.Sustained(2))):
        regularizer, images = layer(pool, weighting=kind), batch[0].clone()
        for _ in range(100):
            grad = step(regularizer, images, batch[1], 0.01)
            images = images - 0.5 * (grad - 0.01)
        shares[weighting] = [share or 0.0 for share in regularizer.history.share[50:]]
    assert max(shares["relative"]) < 0.5 * 0.5  # else there would be nothing to sustain
    # A round goes by norms of up to four rounds before, in which they change by up to a third either way.
    assert sum(shares["sustained"]) / 50 == pytest.approx(0.5, rel=0.1)
    assert all(0.33 < share < 0.75 for share in shares["sustained"])


def test_a_vanishing_term_does_not_blow_lambda_up() -> None:
    told, weighting = [], Lambda(1.0, ddplug.Sustained(1))
    for power in range(30):
        told.append(weighting.observe(*norms(1.0, 10.0**-power), ends=True))
    assert weighting.first == 1.0
    assert weighting.lam == BOUND
    assert [text for text in told if text] == [
        "lambda = 1 for now, measured anew every 1 rounds",
        "lambda = 10, 10 times the first, and grows no further",
    ]
    weighting.observe(*norms(1.0, 1.0), ends=True)
    assert weighting.lam == 1.0  # and it comes back


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_rounds_without_a_finite_gradient_do_not_count(bad: float) -> None:
    weighting = Lambda(1.0, ddplug.Sustained(2))
    for own in (bad, 4.0, 4.0):
        weighting.observe(*norms(1.0, own), ends=True)
    assert weighting.lam == 0.5
    for own in (bad, 16.0):  # later ones take their time, and are left out of the sums
        weighting.observe(*norms(1.0, own), ends=True)
    assert weighting.lam == 0.25
    for own in (bad, bad):
        weighting.observe(*norms(1.0, own), ends=True)
    assert weighting.lam == 0.25  # nothing was measured


@pytest.mark.parametrize("parts", [[0.5, 0.5], [0.1] * 10, [0.25, 0.7, 0.05]])
def test_parts_of_a_set_count_as_the_set(parts: list[float]) -> None:
    """A round of a part of the set has that part of both squared norms."""
    whole, cut = Lambda(1.0, ddplug.Sustained(2)), Lambda(1.0, ddplug.Sustained(2))
    for own in (4.0, 5.0, 6.0, 7.0, 8.0, 9.0):
        whole.observe(*norms(3.0, own), ends=True)
        for number, part in enumerate(parts, 1):
            cut.observe(*norms(3.0 * part, own * part), ends=number == len(parts))
        assert (cut.lam or 0.0) == pytest.approx(whole.lam or 0.0, rel=1e-12)
    assert whole.lam == pytest.approx(math.sqrt(3 / 9))


def test_of_some_classes_the_share_is_that_of_all(pool: ddplug.ProxyPool) -> None:
    """An estimate on one of three classes has three times the squared norm in the mean, of which the share knows."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(30, 3, 4, 4, generator=generator, dtype=torch.float64)
    labels = torch.arange(30) % 3
    lams = {}
    for classes in (None, 1):
        regularizer = layer(
            pool, compute=ddplug.Compute(precision="exact", classes=classes), weighting=ddplug.Sustained(300)
        )
        for _ in range(600):
            step(regularizer, images, labels)
        assert regularizer.lam is not None
        lams[classes] = regularizer.lam
    # The mean of 300 draws among three classes: each is drawn 100 +- 8 times, so the mean square is right to a tenth,
    # whereas without the correction lambda would be 0.58 times as large.
    assert lams[1] == pytest.approx(lams[None], rel=0.1)


def test_all_calls_of_a_round_have_one_lambda(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """Also where another round ends, and changes lambda, between two of its calls."""
    images, labels = batch
    regularizer = layer(pool, weighting=ddplug.Sustained(1))
    step(regularizer, images, labels)
    leaf, other = images.clone().requires_grad_(), images.clone().requires_grad_()

    class Between(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            with torch.enable_grad():
                step(regularizer, images, labels, 50.0)
            return grads[0]

    # Autograd goes back from what was made last: the second call, then a round of its own, then the first call.
    first = Between.apply(regularizer(leaf, labels))
    second = regularizer(other, labels)
    (first + second).sum().backward()
    assert [r.number for r in regularizer.history] == [0, 2, 1]
    assert leaf.grad is not None
    assert other.grad is not None
    assert torch.allclose(leaf.grad, other.grad, rtol=1e-12, atol=0)  # the halves of one round on equal images


def test_a_run_goes_on_from_its_state(pool: ddplug.ProxyPool, batch: Batch) -> None:
    images, labels = batch
    whole, first = layer(pool, weighting=ddplug.Sustained(3)), layer(pool, weighting=ddplug.Sustained(3))
    expected = [step(whole, images + 0.1 * shift, labels, 1 + shift) for shift in range(11)]
    got = [step(first, images + 0.1 * shift, labels, 1 + shift) for shift in range(5)]
    second = layer(pool, weighting=ddplug.Sustained(3))
    second.load_state_dict(first.state_dict())
    got += [step(second, images + 0.1 * shift, labels, 1 + shift) for shift in range(5, 11)]
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    assert second.lam == whole.lam
    with pytest.raises(ddplug.errors.InputError, match="was made with"):
        layer(pool, weighting=ddplug.Relative(3)).load_state_dict(first.state_dict())


def test_it_is_announced_as_what_it_is(pool: ddplug.ProxyPool, batch: Batch) -> None:
    said: list[str] = []
    regularizer = layer(pool, announce=said.append)
    for _ in range(5):
        step(regularizer, *batch)
    (line,) = said
    assert "for now, measured anew every 2 rounds (weight 0.5, sustained, after 2 rounds; CMI" in line
    assert "sustained" in repr(regularizer)


def test_the_layer_adds_the_share_it_says(network: Callable[..., nn.Module], batch: Batch) -> None:
    """The first settled round, by hand."""
    images, labels = batch
    pool = ddplug.ProxyPool.from_modules([network(7)])
    regularizer = layer(pool, weighting=ddplug.Sustained(1), weight=0.3)
    assert torch.equal(step(regularizer, images, labels), torch.ones_like(images))  # only measures
    added = step(regularizer, images, labels) - 1
    assert added.norm().item() == pytest.approx(0.3 * torch.ones_like(images).norm().item(), rel=1e-12)
