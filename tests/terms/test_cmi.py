"""The estimator against its mathematics, as properties over drawn features and labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import ddplug
from ddplug.terms.base import group
from ddplug.terms.cmi import class_sums, closed_form
from ddplug.terms.separation import class_separation, cmi_per_class, ncmi

pytestmark = pytest.mark.numerical


@st.composite
def sets(draw: st.DrawFn, *, least_classes: int = 1) -> tuple[Tensor, Tensor, float]:
    """Float64 features (n, d), labels (n,) with gaps, in any order, of any class sizes >= 2 in at least one, and T."""
    classes = draw(st.integers(least_classes, 5))
    counts = [draw(st.integers(1, 6)) for _ in range(classes)]
    counts[draw(st.integers(0, classes - 1))] += 1
    names = draw(st.lists(st.integers(0, 1000), min_size=classes, max_size=classes, unique=True))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    n, d = sum(counts), draw(st.integers(2, 20))
    scale = draw(st.sampled_from([0.01, 1.0, 10.0, 300.0]))
    features = torch.randn(n, d, generator=generator, dtype=torch.float64) * scale
    labels = torch.tensor(names).repeat_interleave(torch.tensor(counts))[torch.randperm(n, generator=generator)]
    return features, labels, draw(st.sampled_from([0.5, 1.0, 4.0]))


def reference(features: Tensor, labels: Tensor, temperature: float) -> dict[int, float]:
    """Per-class CMI by the definition, class by class and image by image, in NumPy float64."""
    z = features.detach().double().numpy() / temperature
    log_p = z - z.max(1, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(1, keepdims=True))
    result = {}
    for label in sorted(set(labels.tolist())):
        own = log_p[labels.numpy() == label]
        q = np.mean(np.exp(own), axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(np.exp(own) > 0, np.exp(own) * (own - np.log(q)), 0.0)
        result[label] = float(terms.sum(1).mean())
    return result


def entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(-1)


@given(sets())
def test_equals_the_definition(drawn: tuple[Tensor, Tensor, float]) -> None:
    features, labels, temperature = drawn
    by_class = reference(features, labels, temperature)
    whole = float(np.mean([by_class[label] for label in labels.tolist()]))
    value = ddplug.cmi(features, labels, temperature=temperature)
    assert value.dtype == torch.float64
    assert abs(value.item() - whole) <= 1e-10
    per_class = cmi_per_class(features, labels, temperature=temperature)
    assert per_class.tolist() == pytest.approx(list(by_class.values()), abs=1e-10)
    single = features.float()
    assert ddplug.cmi(single, labels, temperature=temperature).item() == pytest.approx(
        np.mean([reference(single, labels, temperature)[label] for label in labels.tolist()]), rel=1e-5, abs=1e-6
    )


@given(sets())
def test_is_entropy_of_the_centroid_minus_mean_entropy(drawn: tuple[Tensor, Tensor, float]) -> None:
    features, labels, temperature = drawn
    p = torch.softmax(features / temperature, -1)
    expected = sum(
        (labels == label).double().mean() * (entropy(own.mean(0)) - entropy(own).mean())
        for label in labels.unique()
        for own in [p[labels == label]]
    )
    assert ddplug.cmi(features, labels, temperature=temperature).item() == pytest.approx(float(expected), abs=1e-9)


@given(sets())
def test_bounds(drawn: tuple[Tensor, Tensor, float]) -> None:
    features, labels, temperature = drawn
    for given_features in (features, features.float(), features.clamp(-1e4, 1e4).half()):
        value = ddplug.cmi(given_features, labels, temperature=temperature).item()
        counts = labels.unique(return_counts=True)[1].double()
        most = min((counts / len(labels) * counts.log()).sum().item(), float(np.log(features.shape[1])))
        assert 0 <= value <= most + 1e-5


def test_reaches_its_upper_bound() -> None:
    """Four one-hot images in two classes of two: log 2, which a wrong base or normalisation would miss."""
    features = 1e4 * torch.eye(4)
    assert ddplug.cmi(features, torch.tensor([0, 0, 1, 1])).item() == pytest.approx(np.log(2), rel=1e-6)


@given(sets(), st.integers(0, 2**32 - 1))
def test_invariances(drawn: tuple[Tensor, Tensor, float], seed: int) -> None:
    features, labels, temperature = drawn
    generator = torch.Generator().manual_seed(seed)
    value = ddplug.cmi(features, labels, temperature=temperature).item()

    def same(other_features: Tensor, other_labels: Tensor) -> None:
        again = ddplug.cmi(other_features, other_labels, temperature=temperature).item()
        assert again == pytest.approx(value, rel=1e-9, abs=1e-11)

    images = torch.randperm(len(labels), generator=generator)
    same(features[images], labels[images])
    same(features[:, torch.randperm(features.shape[1], generator=generator)], labels)
    same(features + 50 * torch.randn(len(labels), 1, generator=generator, dtype=torch.float64), labels)
    names = labels.unique()
    renamed = torch.randperm(2000, generator=generator)[: len(names)]
    same(features, renamed[torch.searchsorted(names, labels)])
    same(features.repeat(3, 1), labels.repeat(3))
    same(features.repeat_interleave(2, 0), labels.repeat_interleave(2))


@given(sets())
def test_zero_iff_a_class_shares_one_distribution(drawn: tuple[Tensor, Tensor, float]) -> None:
    features, labels, temperature = drawn
    classes, index = labels.unique(return_inverse=True)
    shared = features[: len(classes)][index]
    assert ddplug.cmi(shared, labels, temperature=temperature).item() == pytest.approx(0, abs=1e-12)
    # Move one image of a class that has others: no longer zero.
    image = int((labels == labels.mode().values).nonzero()[0])
    shared = (shared / shared.abs().max()).clone()
    shared[image, 0] += 1.0
    assert ddplug.cmi(shared, labels, temperature=temperature).item() > 1e-6


@given(sets())
def test_derivatives(drawn: tuple[Tensor, Tensor, float]) -> None:
    features, labels, temperature = drawn
    features = (features / features.abs().max()).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: ddplug.cmi(f, labels, temperature=temperature), features)
    assert torch.autograd.gradgradcheck(lambda f: ddplug.cmi(f, labels, temperature=temperature), features)
    assert torch.autograd.gradcheck(lambda f: cmi_per_class(f, labels, temperature=temperature), features)


@given(sets())
def test_closed_form_is_autograds_gradient(drawn: tuple[Tensor, Tensor, float]) -> None:
    """Against autograd through softmax and centroids, with the centroid's own derivative in."""
    features, labels, temperature = drawn
    features = (features / features.abs().max() * 3).requires_grad_()
    log_p = torch.log_softmax(features / temperature, -1)
    index = labels.unique(return_inverse=True)[1]
    one_hot = torch.nn.functional.one_hot(index).double()
    q = (one_hot / one_hot.sum(0)).T @ log_p.exp()
    naive = (log_p.exp() * (log_p - q.log()[index])).sum() / len(labels)
    (expected,) = torch.autograd.grad(naive, features)
    (got,) = torch.autograd.grad(ddplug.cmi(features, labels, temperature=temperature), features)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_finite_for_peaked_features(dtype: torch.dtype, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(20, 16, generator=generator)
    features = (drawn / drawn.abs().max() * scale).to(dtype).requires_grad_()
    labels = torch.arange(20) % 4
    value = ddplug.cmi(features, labels)
    (grad,) = torch.autograd.grad(value, features)
    assert value.dtype == torch.float32
    assert grad.dtype == dtype
    assert torch.isfinite(value)
    assert torch.isfinite(grad).all()
    exact = np.mean([reference(features, labels, 1.0)[label] for label in labels.tolist()])
    assert value.item() == pytest.approx(exact, rel=1e-5, abs=1e-6)


def test_peaked_features_still_have_a_gradient() -> None:
    """Two images that put all on different features: the naive formula gives NaN, clamping it gives zero."""
    features = torch.tensor([[200.0, 0.0, 0.0], [198.0, 200.0, 0.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(ddplug.cmi(features, torch.tensor([0, 0])), features)
    assert grad.abs().max() > 1e-2


def test_descending_the_gradient_lowers_it() -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(30, 10, generator=generator, requires_grad=True)
    labels = torch.arange(30) % 3
    start = ddplug.cmi(features, labels)
    (grad,) = torch.autograd.grad(start, features)
    assert ddplug.cmi(features - 5.0 * grad, labels) < start


def test_class_sums_and_closed_form_agree() -> None:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(9, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    groups = group(torch.arange(9) % 2, 9, "cpu")
    sums = class_sums(features, groups, 2.0)
    expected, derivative = closed_form(features.detach(), groups, 2.0)
    torch.testing.assert_close(sums.detach(), expected)
    (grad,) = torch.autograd.grad(sums.sum(), features)
    torch.testing.assert_close(grad, derivative)


def test_works_under_torch_func() -> None:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    labels = torch.arange(9) % 2
    grad = torch.func.grad(lambda f: class_sums(f, group(labels, 9, "cpu"), 1.0).sum() / 9)(features)
    assert grad.shape == features.shape
    assert grad.abs().max() > 0


def test_one_image_per_class_is_exactly_zero_and_says_so() -> None:
    features = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).mul(30).requires_grad_()
    with pytest.warns(ddplug.DDPlugWarning, match="exactly one image.*several views"):
        value = ddplug.cmi(features, torch.arange(5))
    (grad,) = torch.autograd.grad(value, features)
    assert value.item() == 0
    assert not grad.any()


# Separation and NCMI


def pairs(features: Tensor, labels: Tensor, temperature: float, kind: str) -> float:
    """Each separation by its definition: a plain loop over pairs."""
    log_p = torch.log_softmax(features / temperature, -1)
    p, n = log_p.exp(), len(labels)
    if kind == "centroid_kl":
        values = []
        for label in labels.unique():
            q = p[labels == label].mean(0)
            values += [(q * (q.log() - log_p[i])).sum() for i in range(n) if labels[i] != label]
        return float(torch.stack(values).mean())
    sign = {"cross_entropy": 0.0, "kl": 1.0}[kind]
    values = [(p[i] * (sign * log_p[i] - log_p[j])).sum() for i in range(n) for j in range(n) if labels[i] != labels[j]]
    return float(torch.stack(values).mean())


@pytest.mark.parametrize("kind", ["cross_entropy", "kl", "centroid_kl"])
@given(sets(least_classes=2))
def test_separations_equal_their_definitions(kind: str, drawn: tuple[Tensor, Tensor, float]) -> None:
    features, labels, temperature = drawn
    features = features / features.abs().max() * 5
    expected = pairs(features, labels, temperature, kind)
    got = class_separation(features, labels, kind=kind, temperature=temperature)  # type: ignore[arg-type]
    assert got.item() == pytest.approx(expected, rel=1e-9, abs=1e-10)
    ratio = ncmi(features, labels, separation=kind, temperature=temperature)  # type: ignore[arg-type]
    assert ratio.item() == pytest.approx(
        ddplug.cmi(features, labels, temperature=temperature).item() / expected, rel=1e-6
    )


def test_ncmi_is_differentiable() -> None:
    features = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: ncmi(f, torch.arange(8) % 3), features)


# Bad input

FEATURES = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 2


@pytest.mark.parametrize(
    ("features", "labels", "says"),
    [
        (FEATURES, LABELS[:5], r"labels of shape \(5,\) for 6 images"),
        (FEATURES, LABELS[:, None], r"labels of shape \(6, 1\)"),
        (FEATURES, LABELS.float(), "float32.*long"),
        (FEATURES, torch.rand(6, 3), "argmax"),
        (FEATURES, LABELS - 1, "got -1"),
        (FEATURES[:0], LABELS[:0], "empty batch"),
        (FEATURES[:, :, None], LABELS, r"shape \(n, d\)"),
        (FEATURES.long(), LABELS, "floating-point"),
        (FEATURES.clone().fill_(torch.nan), LABELS, "6 of 6 images are not finite"),
        (FEATURES.index_fill(0, torch.tensor([2]), torch.inf), LABELS, "1 of 6 images are not finite"),
    ],
)
@pytest.mark.parametrize("function", [ddplug.cmi, cmi_per_class, ncmi, class_separation])
def test_bad_input(function: object, features: Tensor, labels: Tensor, says: str) -> None:
    with pytest.raises(ddplug.errors.InputError, match=says):
        function(features, labels)  # type: ignore[operator]


def test_bad_settings() -> None:
    with pytest.raises(ddplug.errors.InputError, match="temperature must be > 0 and finite, got 0"):
        ddplug.cmi(FEATURES, LABELS, temperature=0)
    with pytest.raises(ddplug.errors.InputError, match="at least two classes, got only class 0"):
        ncmi(FEATURES, torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ddplug.errors.InputError, match="unknown separation 'gamma', expected one of 'cross_entropy'"):
        ncmi(FEATURES, LABELS, separation="gamma")  # type: ignore[arg-type]
