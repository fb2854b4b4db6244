"""CMI around real images' centroids: its definition, and what it has to do with the batch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ddplug
from ddplug.terms import Real, make
from ddplug.terms.base import Groups, Term, group
from ddplug.terms.cmi_real import RealCentroids

pytestmark = pytest.mark.numerical


def groups_of(labels: Tensor) -> Groups:
    return group(labels, len(labels), "cpu")


@st.composite
def pairs(draw: st.DrawFn, *, spread: float | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """Features (n, d) and labels of a batch, others of the same classes that the centroids are of, and T."""
    classes = draw(st.integers(1, 5))
    names = torch.tensor(draw(st.lists(st.integers(0, 1000), min_size=classes, max_size=classes, unique=True)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    d = draw(st.integers(2, 20))
    scale = spread or draw(st.sampled_from([0.01, 1.0, 10.0, 300.0]))
    found: list[Tensor] = []
    for _ in range(2):
        counts = torch.tensor([draw(st.integers(1, 5)) for _ in range(classes)])
        labels = names.repeat_interleave(counts)
        labels = labels[torch.randperm(len(labels), generator=generator)]
        found += [torch.randn(len(labels), d, generator=generator, dtype=torch.float64) * scale, labels]
    return found[0], found[1], found[2], found[3], draw(st.sampled_from([0.5, 1.0, 4.0]))


def stored(features: Tensor, labels: Tensor, temperature: float) -> RealCentroids:
    """The term around the centroids of such images."""
    return RealCentroids(temperature).against(Real(features, groups_of(labels)))


def naive(features: Tensor, labels: Tensor, others: Tensor, theirs: Tensor, temperature: float) -> tuple[float, float]:
    """Mean KL to the others' centroids, and sum_y (n_y/n) * KL(Q_y || R_y), image by image and class by class."""
    p, r = torch.softmax(features / temperature, -1), torch.softmax(others / temperature, -1)
    whole, between = 0.0, 0.0
    for label in torch.unique(labels).tolist():
        own, centroid = p[labels == label], r[theirs == label].mean(0)
        for image in own:
            whole += sum(float(a * (a / b).log()) for a, b in zip(image, centroid, strict=True)) / len(labels)
        between += len(own) / len(labels) * float((own.mean(0) * (own.mean(0) / centroid).log()).sum())
    return whole, between


@settings(max_examples=20)
@given(pairs(spread=1.0))
def test_is_the_definition_and_its_two_parts(drawn: tuple[Tensor, Tensor, Tensor, Tensor, float]) -> None:
    features, labels, others, theirs, temperature = drawn
    whole, between = naive(*drawn)
    batch = (
        ddplug.cmi(features, labels, temperature=temperature).item() if len(labels) > len(torch.unique(labels)) else 0
    )
    value = stored(others, theirs, temperature)(features, groups_of(labels)).item()
    assert value == pytest.approx(whole, rel=1e-10, abs=1e-12)
    assert value == pytest.approx(batch + between, rel=1e-10, abs=1e-12)


@given(pairs())
def test_around_the_batchs_own_it_is_the_batchs(drawn: tuple[Tensor, Tensor, Tensor, Tensor, float]) -> None:
    """Real images that are the batch."""
    features, labels, _, _, temperature = drawn
    groups = groups_of(labels)
    expected = make("cmi", temperature=temperature).value_and_grad(features, groups)
    term = stored(features, labels, temperature)
    for found in (term.value_and_grad(features, groups), Term.value_and_grad(term, features, groups)):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@given(pairs())
def test_never_less_than_the_batchs(drawn: tuple[Tensor, Tensor, Tensor, Tensor, float]) -> None:
    features, labels, others, theirs, temperature = drawn
    batch = make("cmi", temperature=temperature)(features, groups_of(labels)).item()
    # Both are sums of terms of the size of KL, in float64.
    value = stored(others, theirs, temperature)(features, groups_of(labels)).item()
    assert value >= batch - 1e-12 * (1 + value)


@settings(max_examples=8)
@given(pairs(spread=1.0))
def test_derivatives(drawn: tuple[Tensor, Tensor, Tensor, Tensor, float]) -> None:
    features, labels, others, theirs, temperature = drawn
    groups = groups_of(labels)
    features.requires_grad_()
    term = stored(others, theirs, temperature)
    assert torch.autograd.gradcheck(lambda f: term(f, groups), features)
    assert torch.autograd.gradgradcheck(lambda f: term(f, groups), features)
    expected = Term.value_and_grad(term, features, groups)
    torch.testing.assert_close(term.value_and_grad(features.detach(), groups), expected, rtol=1e-10, atol=1e-13)


def test_at_the_centroid_the_gradient_is_exactly_zero() -> None:
    """One image of each class, which is the real one."""
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(4, 9, generator=generator, dtype=torch.float64), torch.arange(4)
    value, grad = stored(features, labels, 1.0).value_and_grad(features, groups_of(labels))
    assert value == 0
    assert not grad.any()


@pytest.mark.parametrize("size", [1e3, 1e5, 1e30])
def test_underflowed_probabilities_have_logs(size: float) -> None:
    """Means of images that are each sure of another class, met by one sure of a third."""
    labels, one_hot = groups_of(torch.tensor([0, 0])), size * torch.eye(4, dtype=torch.float64)
    term = RealCentroids().against(Real(one_hot[[0, 1]], labels))
    value, grad = term.value_and_grad(one_hot[[2, 3]], labels)
    # log P of the other classes is -size, and so is a mean's log there, but for log 4 and less.
    assert value.item() == pytest.approx(size, rel=2 / size + 1e-15)
    assert torch.isfinite(grad).all()


def test_a_class_without_real_images_is_refused() -> None:
    term = RealCentroids().against(Real(torch.randn(2, 5), groups_of(torch.arange(2))))
    with pytest.raises(ddplug.errors.InputError, match="no real images of class 2"):
        term(torch.randn(3, 5), groups_of(torch.arange(3)))
