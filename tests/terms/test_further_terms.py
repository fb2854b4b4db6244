"""Every further term against its published definition, image by image, and against what its formula implies."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddplug.errors import InputError
from ddplug.terms import Real, Term, make, separation, terms
from ddplug.terms.base import group, single
from ddplug.terms.covariance import Covariance
from ddplug.terms.diversity import Diversity

pytestmark = pytest.mark.numerical

few = settings(max_examples=20)
"""Loops over images are slow; every class structure there is occurs in twenty."""

FURTHER = ["ncmi", "centralisation", "covariance", "diversity", "spread", "mim", "proxy_ce"]
COMPARING = ["covariance", "diversity", "mim"]
DIMENSIONS = 6


class Batch(NamedTuple):
    """Float64 features of images and of real images, and their labels."""

    features: Tensor
    labels: Tensor
    real: Tensor
    real_labels: Tensor


def mixed(counts: dict[int, int], seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """So many images of each class, in any order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([label for label, count in counts.items() for _ in range(count)])
    features = torch.randn(len(labels), DIMENSIONS, generator=generator, dtype=torch.float64) * scale
    return features, labels[torch.randperm(len(labels), generator=generator)]


@st.composite
def batches(draw: st.DrawFn, *, least: int = 1) -> Batch:
    """Two to four classes of unequal sizes, at least one of two images; real images of these classes and of others."""
    # Labels are logits' numbers for proxy_ce.
    names = draw(st.lists(st.integers(0, DIMENSIONS - 1), min_size=2, max_size=4, unique=True))
    counts = {name: draw(st.integers(least, 4)) for name in names}
    counts[names[0]] += 1
    others = {name: draw(st.integers(1, 4)) for name in {*names, draw(st.integers(0, DIMENSIONS - 1))}}
    seed, scale = draw(st.integers(0, 2**31)), draw(st.sampled_from([0.1, 1.0, 5.0]))
    return Batch(*mixed(counts, seed, scale), *mixed(others, seed + 1, scale))


FIXED = Batch(*mixed({4: 3, 0: 1, 2: 4}, 1), *mixed({0: 2, 5: 3, 2: 2, 4: 4}, 2))


def bound(term: Term | str, batch: Batch) -> Term:
    made = make(term)
    return made.against(Real(batch.real, group(batch.real_labels, len(batch.real), "cpu"))) if made.needs_real else made


def value(term: Term | str, batch: Batch) -> Tensor:
    return bound(term, batch)(batch.features, group(batch.labels, len(batch.labels), "cpu"))


# --- the definitions, by loops over classes and images


def softmax(z: Tensor, temperature: float) -> list[float]:
    most = max(z.tolist())
    parts = [math.exp((x - most) / temperature) for x in z.tolist()]
    return [part / sum(parts) for part in parts]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def of(label: int, features: Tensor, labels: Tensor) -> list[Tensor]:
    return [feature for feature, own in zip(features, labels.tolist(), strict=True) if own == label]


def present(batch: Batch) -> list[int]:
    return sorted(set(batch.labels.tolist()))


def ncmi(batch: Batch, temperature: float) -> float:
    """Mean KL from the class's mean, over the mean cross-entropy of pairs of different classes: arXiv 2309.09123."""
    p = [softmax(z, temperature) for z in batch.features]
    labels = batch.labels.tolist()
    within = 0.0
    for mine, label in zip(p, labels, strict=True):
        own = [other for other, theirs in zip(p, labels, strict=True) if theirs == label]
        within += kl(mine, [sum(column) / len(own) for column in zip(*own, strict=True)]) / len(p)
    between = [
        -sum(a * math.log(b) for a, b in zip(p[i], p[j], strict=True))
        for i in range(len(p))
        for j in range(len(p))
        if labels[i] != labels[j]
    ]
    return within / (sum(between) / len(between))


def centralisation(batch: Batch) -> float:
    """Mean over images of the squared distance to the class's mean: arXiv 2404.00563."""
    total = 0.0
    for label in present(batch):
        own = of(label, batch.features, batch.labels)
        mean = sum(own, torch.zeros(DIMENSIONS, dtype=torch.float64)) / len(own)
        total += sum(float((feature - mean) @ (feature - mean)) for feature in own)
    return total / len(batch.labels)


def class_covariance(features: list[Tensor], positions: int) -> Tensor:
    """Of local features (channels, positions): sums over positions of outer products, mean over images."""
    local = [feature.reshape(-1, positions) for feature in features]
    mean = sum(local, torch.zeros_like(local[0])) / len(local)
    total = torch.zeros(len(local[0]), len(local[0]), dtype=torch.float64)
    for each in local:
        for position in range(positions):
            column = each[:, position] - mean[:, position]
            total += torch.outer(column, column)
    return total / len(local)


def covariance(batch: Batch, positions: int) -> float:
    """Mean over classes of the squared Frobenius distance of covariances: arXiv 2404.00563."""
    found = []
    for label in present(batch):
        own = class_covariance(of(label, batch.features, batch.labels), positions)
        real = class_covariance(of(label, batch.real, batch.real_labels), positions)
        found.append(sum(float(x) ** 2 for x in (own - real).flatten()))
    return sum(found) / len(found)


def diversity(batch: Batch, by_cosine: float, euclidean: float) -> float:
    """The loss of DiRe, arXiv 2512.13083, as a mean over classes, with every pair of a synthetic and a real image."""
    found = []
    for label in present(batch):
        own, real = of(label, batch.features, batch.labels), of(label, batch.real, batch.real_labels)
        among = [0.0 if i == j else abs(cosine(f, g)) for i, f in enumerate(own) for j, g in enumerate(own)]
        pairs = [(f, r) for f in own for r in real]
        apart = [abs(1 - cosine(f, r)) for f, r in pairs]
        distances = [math.sqrt(float((f - r) @ (f - r))) for f, r in pairs]
        mean = [sum(parts) / len(parts) for parts in (among, apart, distances)]
        found.append(by_cosine * (mean[0] + mean[1]) + euclidean * mean[2])
    return sum(found) / len(found)


def spread(batch: Batch, temperature: float) -> float:
    """Minus the mean over images of the mean KL to the class's other images; 0 for an image that is alone."""
    total = 0.0
    for label in present(batch):
        p = [softmax(z, temperature) for z in of(label, batch.features, batch.labels)]
        for i, mine in enumerate(p):
            others = [kl(mine, other) for j, other in enumerate(p) if j != i]
            total -= sum(others) / len(others) if others else 0.0
    return total / len(batch.labels)


def mim(batch: Batch, tau: float) -> float:
    """NCE of arXiv 2312.16627 with the critic exp / (exp + N / M) of arXiv 1910.10699."""
    total, whole = 0.0, len(batch.real)
    for feature, label in zip(batch.features, batch.labels.tolist(), strict=True):
        others = sum(theirs != label for theirs in batch.real_labels.tolist())
        pull, push = [], 0.0
        for real, theirs in zip(batch.real, batch.real_labels.tolist(), strict=True):
            e = math.exp(cosine(feature, real) / tau)
            h = e / (e + others / whole)
            if theirs == label:
                pull.append(math.log(h))
            else:
                push += math.log((others / whole) / (e + others / whole))
        total -= sum(pull) / len(pull) + push
    return total / len(batch.labels)


def proxy_ce(batch: Batch, temperature: float) -> float:
    """Mean cross-entropy of softmax(z / T)."""
    pairs = zip(batch.features, batch.labels.tolist(), strict=True)
    return sum(-math.log(softmax(z, temperature)[label]) for z, label in pairs) / len(batch.labels)


@few
@given(batches(), st.sampled_from([0.7, 1.0, 3.0]))
def test_equals_the_published_definition(batch: Batch, temperature: float) -> None:
    expected = {
        "ncmi": ncmi(batch, temperature),
        "centralisation": centralisation(batch),
        "covariance": covariance(batch, 1),
        "diversity": diversity(batch, 1.0, 0.01),
        "spread": spread(batch, temperature),
        "mim": mim(batch, 0.07),
        "proxy_ce": proxy_ce(batch, temperature),
    }
    for name in FURTHER:
        found = value(single(name, temperature=temperature), batch)
        assert found.dtype == torch.float64
        assert found.shape == ()
        assert found.item() == pytest.approx(expected[name], rel=1e-9, abs=1e-11), name


@few
@given(batches())
def test_options_of_a_term_are_those_of_its_formula(batch: Batch) -> None:
    assert value(single("mim", tau=0.5), batch).item() == pytest.approx(mim(batch, 0.5), rel=1e-9)
    assert value(Diversity(0.3, 2.0), batch).item() == pytest.approx(diversity(batch, 0.3, 2.0), rel=1e-9)
    for positions in (2, 3, 6):  # channels follow each other, positions within
        found = value(Covariance(positions), batch).item()
        assert found == pytest.approx(covariance(batch, positions), rel=1e-9, abs=1e-13), positions


def test_every_term_is_held_to_its_definition_here() -> None:
    assert sorted(["cmi", "cmi_real", *FURTHER]) == terms()


# --- what the formulas imply


@few
@given(batches())
def test_signs(batch: Batch) -> None:
    for name in FURTHER:
        found = value(name, batch).item()
        # A class's KL is a difference of two sums over up to 5 images of terms of up to 50 nats.
        assert (found <= 1e-12) if name == "spread" else (found >= 0), name


@few
@given(batches(), st.randoms(use_true_random=False))
def test_order_of_images_and_names_of_classes_do_not_matter(batch: Batch, chance: Any) -> None:
    order = torch.tensor(chance.sample(range(len(batch.labels)), len(batch.labels)))
    real_order = torch.tensor(chance.sample(range(len(batch.real)), len(batch.real)))
    shuffled = Batch(batch.features[order], batch.labels[order], batch.real[real_order], batch.real_labels[real_order])
    names = torch.tensor(chance.sample(range(1000), DIMENSIONS))
    renamed = batch._replace(labels=names[batch.labels], real_labels=names[batch.real_labels])
    for name in FURTHER:
        expected = pytest.approx(value(name, batch).item(), rel=1e-10, abs=1e-12)
        assert value(name, shuffled).item() == expected, name
        if name != "proxy_ce":  # whose classes are numbers of logits
            assert value(name, renamed).item() == expected, name
    of_logits = renamed._replace(features=torch.full((len(batch.labels), 1000), -math.inf, dtype=torch.float64))
    of_logits.features[:, names] = batch.features
    assert value("proxy_ce", of_logits).item() == pytest.approx(value("proxy_ce", batch).item(), rel=1e-10)


@few
@given(batches())
def test_zero_where_a_class_is_one_image(batch: Batch) -> None:
    """Images of a class that are all alike, and classes of one image each."""
    first = [batch.labels.tolist().index(label) for label in batch.labels.tolist()]
    alike = batch._replace(features=batch.features[first])
    several = sorted(set(first))
    alone = batch._replace(features=batch.features[several], labels=batch.labels[several])
    for each in (alike, alone):
        for name in ("ncmi", "centralisation", "spread"):
            assert value(name, each).item() == pytest.approx(0, abs=1e-13), name
        # What is left of a covariance that is 0 is the real one.
        real = [class_covariance(of(label, batch.real, batch.real_labels), 1) for label in present(batch)]
        expected = sum(float(part.square().sum()) for part in real) / len(real)
        assert value("covariance", each).item() == pytest.approx(expected, rel=1e-10, abs=1e-20)
    # Alone, nothing is among the images of a class.
    assert value(Diversity(1.0, 0.0), alone).item() == pytest.approx(diversity(alone, 1.0, 0.0), rel=1e-10, abs=1e-15)


@few
@given(batches())
def test_zero_where_synthetic_images_are_the_real_ones(batch: Batch) -> None:
    same = batch._replace(real=batch.features, real_labels=batch.labels)
    assert value("covariance", same).item() == 0
    # Of pairs, those of an image with itself are at distance 0 (1e-12 in the code), and 1e-8 of a feature's rounding.
    single_images = Batch(*mixed({0: 1, 3: 1}, 5), *mixed({0: 1, 3: 1}, 5))
    assert value(Diversity(0.0, 1.0), single_images).item() == pytest.approx(0, abs=1e-7)
    assert value(Diversity(1.0, 0.0), single_images).item() == pytest.approx(0, abs=1e-15)


@few
@given(batches(), st.sampled_from([0.25, 3.0]))
def test_scaling(batch: Batch, factor: float) -> None:
    scaled = batch._replace(features=batch.features * factor, real=batch.real * factor)
    for name, power in (("centralisation", 2), ("covariance", 4), ("mim", 0)):
        expected = factor**power * value(name, batch).item()
        assert value(name, scaled).item() == pytest.approx(expected, rel=1e-10, abs=1e-13), name
    turned = batch._replace(features=-batch.features)
    assert value("centralisation", turned).item() == pytest.approx(value("centralisation", batch).item(), rel=1e-12)


@few
@given(batches(), st.integers(0, 2**31))
def test_translation(batch: Batch, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    per_image = batch.features + torch.randn(len(batch.labels), 1, generator=generator, dtype=torch.float64) * 5
    for name in ("ncmi", "spread", "proxy_ce"):  # softmax does not see what all features of an image have in common
        expected = pytest.approx(value(name, batch).item(), rel=1e-9, abs=1e-12)
        assert value(name, batch._replace(features=per_image)).item() == expected, name
    per_class = torch.randn(1000, DIMENSIONS, generator=generator, dtype=torch.float64) * 5
    moved = batch._replace(features=batch.features + per_class[batch.labels])
    for name in ("centralisation", "covariance"):  # a class's mean goes with its images
        assert value(name, moved).item() == pytest.approx(value(name, batch).item(), rel=1e-9, abs=1e-12), name
    together = moved._replace(real=batch.real + per_class[batch.real_labels])
    euclidean = Diversity(0.0, 1.0)
    assert value(euclidean, together).item() == pytest.approx(value(euclidean, batch).item(), rel=1e-7)


@few
@given(batches())
def test_cmi_of_nearly_uniform_probabilities_is_class_centralisation(batch: Batch) -> None:
    """CMI = centralisation / (2 d) of d softmax(f), and of f less its image's mean, up to a part of size |f|."""
    size = 1e-4 / batch.features.abs().max()
    near = batch._replace(features=batch.features * size)
    found = value("cmi", near).item()
    uniform = near._replace(features=DIMENSIONS * near.features.softmax(1))
    centred = near._replace(features=near.features - near.features.mean(1, keepdim=True))
    for other in (uniform, centred):
        # CMI is 1e-9 and rounds at 1e-16.
        assert value("centralisation", other).item() / (2 * DIMENSIONS) == pytest.approx(found, rel=1e-3, abs=1e-14)


@few
@given(batches())
def test_spread_is_no_smaller_than_cmi(batch: Batch) -> None:
    """The mean KL between two images is at least that to their mean, so the opposite of CMI in sign and in size."""
    assert value("spread", batch).item() <= -value("cmi", batch).item() + 1e-12


# --- derivatives


@pytest.mark.parametrize("name", FURTHER)
def test_first_and_second_derivatives(name: str) -> None:
    term, groups = bound(name, FIXED), group(FIXED.labels, 8, "cpu")
    # Differences of a critic that is 14 times as steep as cosines are, and of fourth powers, are coarser.
    features = FIXED.features.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: term(z, groups), features, atol=1e-6, rtol=1e-4)
    assert torch.autograd.gradgradcheck(lambda z: term(z, groups), features, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("positions", [2, 3])
def test_derivatives_of_local_covariances(positions: int) -> None:
    term, groups = bound(Covariance(positions), FIXED), group(FIXED.labels, 8, "cpu")
    features = FIXED.features.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: term(z, groups), features, atol=1e-6, rtol=1e-4)


@few
@given(batches())
def test_value_and_grad_is_autograds(batch: Batch) -> None:
    groups = group(batch.labels, len(batch.labels), "cpu")
    for name in FURTHER:
        term = bound(name, batch)
        leaf = batch.features.clone().requires_grad_()
        direct = term(leaf, groups)
        (expected,) = torch.autograd.grad(direct, leaf)
        with torch.no_grad():  # as within a backward pass
            found, grad = term.value_and_grad(batch.features, groups)
        assert not found.requires_grad
        assert found.item() == pytest.approx(direct.item(), rel=1e-12, abs=1e-14), name
        torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("name", FURTHER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_for_extreme_features(name: str, dtype: torch.dtype) -> None:
    """Peaked, opposite, equal to a real one, and zero."""
    features = (FIXED.features.sign() * 1e3).to(dtype)
    features[0], features[1] = FIXED.real[0] * 1e3, 0
    batch = FIXED._replace(features=features, real=(FIXED.real * 1e3).to(dtype))
    found, grad = bound(name, batch).value_and_grad(features, group(FIXED.labels, 8, "cpu"))
    assert found.dtype == dtype
    assert torch.isfinite(found)
    assert torch.isfinite(grad).all()


def test_diversity_where_an_image_is_the_real_one_it_started_as() -> None:
    """Distance 0 has no derivative: that pair gives none, the others theirs."""
    near, far = torch.tensor([[3.0, 4.0]], dtype=torch.float64), torch.tensor([[0.0, 0.0]], dtype=torch.float64)
    both = Batch(near, torch.tensor([1]), torch.cat([near, far]), torch.tensor([1, 1]))
    found, grad = bound(Diversity(0.0, 1.0), both).value_and_grad(near, group(both.labels, 1, "cpu"))
    assert found.item() == pytest.approx(2.5, rel=1e-9)
    torch.testing.assert_close(grad, torch.tensor([[0.3, 0.4]], dtype=torch.float64), rtol=1e-9, atol=1e-9)


# --- what is refused


@pytest.mark.parametrize("name", COMPARING)
def test_real_images_that_are_not_there(name: str) -> None:
    groups = group(FIXED.labels, 8, "cpu")
    with pytest.raises(InputError, match=f"the term '{name}' compares with real images, and has none"):
        make(name)(FIXED.features, groups)
    keep = FIXED.real_labels != 2
    lacking = FIXED._replace(real=FIXED.real[keep], real_labels=FIXED.real_labels[keep])
    with pytest.raises(InputError, match="no real images of class 2 to compare"):
        value(name, lacking)
    with pytest.raises(InputError, match="no real images of class 7, 9 "):
        value(name, FIXED._replace(labels=torch.tensor([9, 7, 9, 7, 0, 0, 0, 0])))
    term = make(name)
    bound(term, FIXED)
    assert term._real is None, "binding makes another term"  # type: ignore[attr-defined]


def test_one_class_only() -> None:
    one = FIXED.labels == 4
    single_class = FIXED._replace(features=FIXED.features[one], labels=FIXED.labels[one])
    with pytest.raises(InputError, match="at least two classes, got only class 4"):
        value("ncmi", single_class)
    value("mim", single_class)  # other classes are among the real ones
    theirs = FIXED.real_labels == 4
    with pytest.raises(InputError, match="mim contrasts with real images of other classes, and all given are of class"):
        value("mim", single_class._replace(real=FIXED.real[theirs], real_labels=FIXED.real_labels[theirs]))
    for name in ("centralisation", "covariance", "diversity", "spread", "proxy_ce"):
        assert math.isfinite(value(name, single_class).item())


def test_options_that_mean_nothing() -> None:
    with pytest.raises(InputError, match="positions=4 does not divide the 6 features"):
        value(Covariance(4), FIXED)
    for wrong in (0, -1, True, 1.0):
        with pytest.raises(InputError, match="positions must be a whole number"):
            Covariance(wrong)  # type: ignore[arg-type]
    for cosines, euclidean in ((-1.0, 1.0), (0.0, 0.0), (math.inf, 1.0), (math.nan, 1.0)):
        with pytest.raises(InputError, match="cosine and euclidean must be"):
            Diversity(cosines, euclidean)
    for name, option in (
        ("mim", "tau"),
        ("ncmi", "temperature"),
        ("spread", "temperature"),
        ("proxy_ce", "temperature"),
    ):
        with pytest.raises(InputError, match="temperature must be > 0"):
            single(name, **{option: 0.0})
    with pytest.raises(InputError, match="unknown separation 'kli'"):
        single("ncmi", separation="kli")
    with pytest.raises(InputError, match="needs a logit for class 6, and there are 6"):
        value("proxy_ce", FIXED._replace(labels=torch.full((8,), 6)))


def test_ncmi_divides_by_the_separation_that_it_is_told() -> None:
    for kind in ("cross_entropy", "kl", "centroid_kl"):
        expected = separation.ncmi(FIXED.features, FIXED.labels, separation=kind, temperature=2.0)
        found = value(single("ncmi", separation=kind, temperature=2.0), FIXED)
        assert found.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("name", FURTHER)
def test_settings_say_what_was_chosen(name: str) -> None:
    given_options: dict[str, Any] = {"temperature": 0.5, "tau": 0.5, "positions": 2, "cosine": 0.5, "euclidean": 0.5}
    made = single(name, **given_options)
    assert all(value == given_options[key] for key, value in made.settings().items() if key in given_options)
    expected = {"ncmi": {"temperature", "separation"}, "centralisation": set(), "covariance": {"positions"}}
    expected |= {"diversity": {"cosine", "euclidean"}, "mim": {"tau"}}
    assert set(made.settings()) == expected.get(name, {"temperature"})
