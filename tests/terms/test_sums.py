"""Sums of terms: how they are written, what is refused, and that they are the sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddplug
from ddplug.errors import InputError
from ddplug.terms import Groups, Real, Sum, Term, make
from ddplug.terms.base import group, single

pytestmark = pytest.mark.numerical

LABELS = torch.tensor([2, 0, 1, 1, 0, 2, 1, 0, 1, 2, 1, 1])


def features(seed: int = 0, rows: int = 12) -> Tensor:
    return torch.randn(rows, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def groups() -> Groups:
    return group(LABELS, 12, "cpu")


def parts(term: Term) -> list[tuple[float, str]]:
    assert isinstance(term, Sum)
    return [(factor, each.name) for factor, each in term.parts]


@pytest.mark.parametrize(
    ("written", "expected", "name"),
    [
        ("cmi+0.3*proxy_ce", [(1, "cmi"), (0.3, "proxy_ce")], "cmi+0.3*proxy_ce"),
        ("  cmi + 0.3 * proxy_ce ", [(1, "cmi"), (0.3, "proxy_ce")], "cmi+0.3*proxy_ce"),
        ("-cmi", [(-1, "cmi")], "-cmi"),
        ("- 1e-3*cmi", [(-0.001, "cmi")], "-0.001*cmi"),
        ("2*cmi-spread+1.5E+2*mim", [(2, "cmi"), (-1, "spread"), (150, "mim")], "2*cmi-spread+150*mim"),
        ("proxy_ce+cmi", [(1, "proxy_ce"), (1, "cmi")], "proxy_ce+cmi"),
        ({"cmi": 1, "proxy_ce": 0.3}, [(1, "cmi"), (0.3, "proxy_ce")], "cmi+0.3*proxy_ce"),
        ({"cmi": -1}, [(-1, "cmi")], "-cmi"),
        ({"cmi": 2}, [(2, "cmi")], "2*cmi"),
    ],
)
def test_how_sums_are_written(written: Any, expected: list[tuple[float, str]], name: str) -> None:
    made = make(written)
    assert parts(made) == expected
    assert made.name == name
    assert parts(make(made.name)) == expected, "its name reads as itself"


@pytest.mark.parametrize("written", ["cmi", " cmi ", "+cmi", "1*cmi", {"cmi": 1}, {"cmi": 1.0}])
def test_one_term_alone_is_that_term(written: Any) -> None:
    made = make(written, temperature=0.5)
    assert type(made) is type(single("cmi"))
    assert made.settings() == {"temperature": 0.5}
    assert make(made) is made


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("", "unknown term ''"),
        ("cm i", "unknown term 'cm i'"),
        ("cmi+", "unknown term 'cmi.'"),
        ("cmi cmi", "unknown term"),
        ("cmi proxy_ce", "unknown term"),
        ("cmi+0.3proxy_ce", "unknown term"),
        ("0.3.1*cmi", "unknown term"),
        ("cmi*0.3", "unknown term"),
        ("cmi+-proxy_ce", "unknown term"),
        ("cmi+cim", "unknown term 'cim', expected one of 'centralisation', 'cmi'"),
        ("cmi+proxy_ce-2*cmi", "term 'cmi' occurs 2 times in a sum"),
        ("0*cmi+proxy_ce", "the factor of term 'cmi' must be a finite number other than 0, got 0.0"),
        ("1e999*cmi", "must be a finite number other than 0, got inf"),
        ({}, "a sum has no terms"),
        ({"cmi": 0}, "must be a finite number other than 0, got 0"),
        ({"cmi": True}, "got True"),
        ({"cmi": "1"}, "got '1'"),
        ({"cmi": float("nan")}, "got nan"),
        ({"cim": 1}, "unknown term 'cim'"),
        ({3: 1}, "unknown term 3"),
        (["cmi"], "unknown term"),
        (None, "unknown term None"),
    ],
)
def test_what_is_no_sum(written: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(written)


class Logits(Term):
    name, label, representation = "logits", "logits", "logit"


class Features(Term):
    name, label, representation = "features", "features", "feature"


def test_sums_that_are_none() -> None:
    with pytest.raises(InputError, match="terms of feature and of logit do not add up"):
        Sum([(1, Logits()), (1, Features())])
    with pytest.raises(InputError, match="term 'cmi' occurs 2 times"):
        Sum([(1, single("cmi", temperature=1.0)), (1, single("cmi", temperature=2.0))])
    with pytest.raises(InputError, match="term 'cmi' occurs 2 times"):
        Sum([(1, make("cmi+mim")), (1, make("cmi"))])
    with pytest.raises(InputError, match="a sum has no terms"):
        Sum([])
    with pytest.raises(InputError, match="the factor of term 'cmi' must be a finite number"):
        Sum([(0, make("cmi"))])


def test_a_sum_in_a_sum_is_its_terms() -> None:
    """Else its name, 2*cmi+0.5*mim, would be that of another sum."""
    made = Sum([(2, make("cmi-0.5*mim")), (3, make("proxy_ce"))])
    assert parts(made) == [(2, "cmi"), (-1, "mim"), (3, "proxy_ce")]
    assert made.name == "2*cmi-mim+3*proxy_ce"
    real = Real(features(5), groups())
    expected = 2 * make("cmi")(features(), groups()) - make("mim").against(real)(features(), groups())
    expected = expected + 3 * make("proxy_ce")(features(), groups())
    assert made.against(real)(features(), groups()).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("written", ["cmi+0.3*proxy_ce", "-cmi", "2*centralisation-0.7*spread+mim-covariance"])
def test_value_and_gradient_are_the_weighted_sums(written: str) -> None:
    real, leaf = Real(features(5), groups()), features().requires_grad_()
    made = make(written, temperature=0.7)
    terms = [(factor, single(name, temperature=0.7).against(real)) for factor, name in parts(made)]
    expected = sum((factor * term(leaf, groups()) for factor, term in terms), torch.zeros((), dtype=torch.float64))
    (grad,) = torch.autograd.grad(expected, leaf)
    bound = made.against(real)
    found = bound.value_and_grad(leaf.detach(), groups())
    torch.testing.assert_close(found, (expected.detach(), grad), rtol=1e-12, atol=1e-12)
    direct = bound(leaf, groups())
    torch.testing.assert_close(direct, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(direct, leaf)[0], grad, rtol=1e-12, atol=1e-12)


def test_what_a_sum_takes_over_from_its_terms() -> None:
    made = make("cmi+0.3*proxy_ce")
    assert (made.unit, made.representation, made.needs_real) == ("nats", "logit", False)
    assert made.additive_over_classes
    assert made.min_per_class == 2
    assert made.label == "CMI + 0.3 * proxy CE"
    mixed = make("cmi-mim+centralisation")
    assert mixed.unit == "in mixed units"
    assert mixed.needs_real
    assert not mixed.additive_over_classes
    assert mixed.representation is None
    assert mixed.label == "CMI - MIM loss + class centralisation"
    assert make("proxy_ce-mim").min_per_class == 1


def test_settings_are_those_of_the_terms() -> None:
    made = make("cmi+0.3*proxy_ce+mim", temperature=0.5)
    assert made.settings() == {"cmi.temperature": 0.5, "proxy_ce.temperature": 0.5, "mim.tau": 0.07, "temperature": 0.5}
    different = Sum([(1, single("cmi", temperature=2.0)), (1, single("spread", temperature=3.0))])
    assert different.settings() == {"cmi.temperature": 2.0, "spread.temperature": 3.0}
    assert make("centralisation-mim").settings() == {"mim.tau": 0.07}


def test_it_says_how_much_comes_from_which() -> None:
    made, z = make("cmi-0.3*proxy_ce"), features()
    assert made.describe(0.5) == "CMI - 0.3 * proxy CE 0.5 nats", "before any gradient"
    made.value_and_grad(z, groups())
    norms = [
        factor * term.value_and_grad(z, groups())[1].norm() for factor, term in zip((1, 0.3), _terms(), strict=True)
    ]
    first = 100 * (norms[0] / sum(norms)).item()
    assert made.describe(0.5).endswith(f"; of the gradient {first:.3g} % CMI, {100 - first:.3g} % proxy CE")
    with_real = make("cmi+mim")
    with_real.against(Real(features(5), groups())).value_and_grad(z, groups())
    assert "% MIM loss" in with_real.describe(1.0), "what is bound for a round tells the sum it comes from"
    nothing = make("-centralisation")
    nothing.value_and_grad(torch.zeros(12, 7), groups())
    assert nothing.describe(0.0).endswith("of the gradient 0 % class centralisation")


def _terms() -> list[Term]:
    return [single("cmi"), single("proxy_ce")]


# --- in the layer


def gradient(layer: Callable[..., Tensor], images: Tensor, **more: Any) -> Tensor:
    leaf = images.clone().requires_grad_()
    (layer(leaf, LABELS, **more) * 2).square().sum().backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.fixture
def network32(network: Callable[..., nn.Module]) -> nn.Module:
    return network(7).float()


def test_cmi_alone_is_what_it_was_to_the_bit(network32: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    images = batch[0].float()
    options: dict[str, Any] = {
        "weighting": "absolute",
        "representation": "feature",
        "compute": ddplug.Compute(precision="exact"),
    }
    default = ddplug.Regularizer([network32], 3.0, term=ddplug.terms.CMI(0.7), **options)
    expected = gradient(default, images)
    for written in ("cmi", {"cmi": 1}, "1*cmi"):
        same = ddplug.Regularizer([network32], 3.0, term=make(written, temperature=0.7), **options)
        assert torch.equal(gradient(same, images), expected), written
        assert same.history.cmi == default.history.cmi
        assert same.settings() == default.settings()
        default.load_state_dict(same.state_dict())
    # The closed form in float64, behind a float32 network, as ever.
    leaf = images.clone().requires_grad_()
    seen = ddplug.ProxyPool.of([network32]).proxies[0](leaf, "feature")
    _, derivative = single("cmi", temperature=0.7).value_and_grad(seen.detach().double(), groups())
    (by_hand,) = torch.autograd.grad(seen, leaf, derivative.to(seen.dtype))
    torch.testing.assert_close(expected, images * 8 + 3.0 * by_hand, rtol=1e-5, atol=1e-6)


def test_minus_cmi_is_its_opposite(pool: ddplug.ProxyPool, batch: tuple[Tensor, Tensor]) -> None:
    options: dict[str, Any] = {"weighting": "absolute"}
    host = batch[0] * 8
    plus, minus = (gradient(ddplug.Regularizer(pool, 3.0, term=term, **options), batch[0]) for term in ("cmi", "-cmi"))
    torch.testing.assert_close(minus - host, host - plus, rtol=1e-12, atol=1e-12)


def test_a_sum_goes_through_the_layer(pool: ddplug.ProxyPool, batch: tuple[Tensor, Tensor]) -> None:
    """On logits, as proxy_ce is of logits; its share is announced with how much comes from which."""
    told = list[str]()
    options: dict[str, Any] = {"term": "cmi+0.3*proxy_ce", "announce": told.append}
    regularizer = ddplug.Regularizer(pool, 0.2, weighting="absolute", **options)
    assert regularizer.representation == "logit"
    leaf = batch[0].clone().requires_grad_()
    logits = pool.proxies[0](leaf, "logit")
    value = ddplug.cmi(logits, LABELS) + 0.3 * nn.functional.cross_entropy(logits, LABELS)
    ((leaf * 2).square().sum() + 0.2 * value).backward()
    torch.testing.assert_close(gradient(regularizer, batch[0]), leaf.grad, rtol=1e-10, atol=1e-10)
    shared = ddplug.Regularizer(pool, 0.5, weighting=ddplug.Relative(1), **options)
    gradient(shared, batch[0])
    assert "CMI + 0.3 * proxy CE" in told[-1]
    assert "of the gradient" in told[-1]
    state = shared.state_dict()
    assert state["settings"]["term"] == "cmi+0.3*proxy_ce"
    ddplug.Regularizer(pool, 0.5, weighting=ddplug.Relative(1), term={"cmi": 1, "proxy_ce": 0.3}).load_state_dict(state)
    with pytest.raises(InputError, match="made with term 'cmi.0.3.proxy_ce' .here 'cmi.0.4.proxy_ce'"):
        ddplug.Regularizer(pool, 0.5, weighting=ddplug.Relative(1), term="cmi+0.4*proxy_ce").load_state_dict(state)


def test_a_term_of_one_representation_is_not_computed_on_another(pool: ddplug.ProxyPool) -> None:
    with pytest.raises(InputError, match="logit"):
        ddplug.Regularizer(pool, 1.0, term="cmi+proxy_ce", representation="feature")
