"""CMI around stored centroids: its definition, what it has to do with the batch's own, and what it keeps."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ddplug
from ddplug.terms import Real, Sum, make
from ddplug.terms.around import Around, AroundReal, AroundRunning, around
from ddplug.terms.base import Groups, Term, group

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


def stored(features: Tensor, labels: Tensor, temperature: float) -> list[Around]:
    """The term around the centroids of such images, of either kind."""
    running = AroundRunning(temperature)
    running.saw(features, groups_of(labels))
    return [running, AroundReal(temperature).against(Real(features, groups_of(labels)))]


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
    for term in stored(others, theirs, temperature):
        value = term(features, groups_of(labels)).item()
        assert value == pytest.approx(whole, rel=1e-10, abs=1e-12)
        assert value == pytest.approx(batch + between, rel=1e-10, abs=1e-12)


@given(pairs())
def test_around_the_batchs_own_it_is_the_batchs(drawn: tuple[Tensor, Tensor, Tensor, Tensor, float]) -> None:
    """Real images that are the batch; a first round; and after rounds of the same images, whatever the momentum."""
    features, labels, _, _, temperature = drawn
    groups = groups_of(labels)
    expected = make("cmi", temperature=temperature).value_and_grad(features, groups)
    again = AroundRunning(temperature, momentum=1)
    again.saw(features.flip(0), groups)
    again.saw(features, groups)
    for term in (*stored(features, labels, temperature), AroundRunning(temperature), again):
        for found in (term.value_and_grad(features, groups), Term.value_and_grad(term, features, groups)):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@given(pairs())
def test_never_less_than_the_batchs(drawn: tuple[Tensor, Tensor, Tensor, Tensor, float]) -> None:
    features, labels, others, theirs, temperature = drawn
    batch = make("cmi", temperature=temperature)(features, groups_of(labels)).item()
    for term in stored(others, theirs, temperature):
        # Both are sums of terms of the size of KL, in float64.
        value = term(features, groups_of(labels)).item()
        assert value >= batch - 1e-12 * (1 + value)


@settings(max_examples=8)
@given(pairs(spread=1.0))
def test_derivatives(drawn: tuple[Tensor, Tensor, Tensor, Tensor, float]) -> None:
    """Also where a class is new, whose own centroid moves with the features."""
    features, labels, others, theirs, temperature = drawn
    groups = groups_of(labels)
    some = theirs != labels[0]
    terms: list[Around] = [*stored(others, theirs, temperature), AroundRunning(temperature)]
    if some.any():
        terms.append(stored(others[some], theirs[some], temperature)[0])
    features.requires_grad_()
    for term in terms:
        assert torch.autograd.gradcheck(lambda f, term=term: term(f, groups), features)
        assert torch.autograd.gradgradcheck(lambda f, term=term: term(f, groups), features)
        expected = Term.value_and_grad(term, features, groups)
        torch.testing.assert_close(term.value_and_grad(features.detach(), groups), expected, rtol=1e-10, atol=1e-13)


def test_at_the_centroid_the_gradient_is_exactly_zero() -> None:
    """A calibration does not count such rounds, as a first one of one image per class."""
    features, groups = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)), groups_of(torch.arange(4))
    value, grad = AroundRunning().value_and_grad(features, groups)
    assert value == 0
    assert not grad.any()


@pytest.mark.parametrize("size", [1e3, 1e5, 1e30])
@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0])
def test_underflowed_probabilities_have_logs(size: float, momentum: float) -> None:
    """Means of images that are each sure of another class, met by one sure of a third."""
    labels, term = groups_of(torch.tensor([0, 0])), AroundRunning(momentum=momentum)
    one_hot = size * torch.eye(4, dtype=torch.float64)
    for rows in ([0, 0], [1, 1], [0, 1]):
        term.saw(one_hot[rows], labels)
    found = [term, AroundReal().against(Real(one_hot[[0, 1]], labels))]
    for each in found:
        value, grad = each.value_and_grad(one_hot[[2, 3]], labels)
        # log P of the other classes is -size, and so is a mean's log there, but for log 4 and less.
        assert value.item() == pytest.approx(size, rel=2 / size + 1e-15)
        assert torch.isfinite(grad).all()


def test_a_round_that_is_not_finite_is_forgotten() -> None:
    term, groups = AroundRunning(), groups_of(torch.arange(3))
    features = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    term.saw(features, groups)
    before = term.state()
    features[1, 2] = math.nan
    term.saw(features, groups)
    term.saw(features, groups_of(torch.tensor([0, 7, 9])))
    assert all(torch.equal(before[""][name], tensor) for name, tensor in term.state()[""].items())


def test_the_mean_is_of_all_rounds_and_then_moves_by_the_momentum() -> None:
    """Classes come and go, in any order; each has its own count."""
    generator = torch.Generator().manual_seed(0)
    term, seen = AroundRunning(momentum=0.25), dict[int, list[Tensor]]()
    for labels in ([5, 2, 2], [9], [2, 9], [5], [2], [2, 7], [2], [2, 5]):
        features = torch.randn(len(labels), 6, generator=generator, dtype=torch.float64)
        term.saw(features, groups_of(torch.tensor(labels)))
        for label in set(labels):
            own = features[torch.tensor(labels) == label].softmax(-1).mean(0)
            seen.setdefault(label, []).append(own)
    (held,) = term.state().values()
    assert held["classes"].tolist() == [2, 5, 7, 9]
    assert held["rounds"].tolist() == [6, 3, 1, 2]
    for label, log in zip(held["classes"].tolist(), held["logs"], strict=True):
        rounds = seen[label]
        expected = torch.stack(rounds[:4]).mean(0)
        for later in rounds[4:]:
            expected = 0.75 * expected + 0.25 * later
        torch.testing.assert_close(log.exp(), expected, rtol=1e-13, atol=0)


def test_every_proxy_has_its_own_means() -> None:
    generator = torch.Generator().manual_seed(0)
    groups, term = groups_of(torch.arange(3)), AroundRunning()
    tables = {key: torch.randn(3, 5, generator=generator, dtype=torch.float64) for key in ("a", "b")}
    for key, features in tables.items():
        term.of_proxy(key).saw(features, groups)
    for key, features in tables.items():
        assert term.of_proxy(key)(features, groups).item() == pytest.approx(0, abs=1e-15)
        assert term.of_proxy({"a": "b", "b": "a"}[key])(features, groups).item() > 0.1
    other = AroundRunning()
    other.set_state(term.state())
    assert other.of_proxy("a")(tables["b"], groups) == term.of_proxy("a")(tables["b"], groups)
    copied = copy.deepcopy(term)
    copied.of_proxy("a").saw(tables["b"], groups)
    assert term.state()["a"]["rounds"].tolist() == [1, 1, 1]


def test_what_means_nothing_is_refused() -> None:
    cmi = make("cmi", temperature=2.0)
    assert around(cmi, "batch") is cmi
    for kind in ("running", "real"):
        assert around(cmi, kind).settings()["temperature"] == 2.0
    with pytest.raises(ddplug.InputError, match="unknown centroids='stored', expected 'batch', 'running', 'real'"):
        around(cmi, "stored")  # type: ignore[arg-type]
    for term in ("ncmi", "cmi+0.3*centralisation"):
        with pytest.raises(ddplug.InputError, match="centroids='running' is of CMI, and the term is"):
            around(make(term), "running")
    for momentum in (-0.1, 1.1, math.nan):
        with pytest.raises(ddplug.InputError, match="momentum"):
            AroundRunning(momentum=momentum)
    with pytest.raises(ddplug.InputError, match="keeps something from round to round, which a sum cannot"):
        Sum([(1, cmi), (1, AroundRunning())])
    labels = groups_of(torch.arange(3))
    with pytest.raises(ddplug.InputError, match="no real images of class 2"):
        AroundReal().against(Real(torch.randn(2, 5), groups_of(torch.arange(2))))(torch.randn(3, 5), labels)
    damaged = {"proxy": {"classes": torch.arange(3), "logs": torch.zeros(2, 5), "rounds": torch.ones(3)}}
    with pytest.raises(ddplug.InputError, match="damaged"):
        AroundRunning().set_state(damaged)
