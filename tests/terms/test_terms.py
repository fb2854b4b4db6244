"""Terms beside CMI: one small file makes one, and everything that carries CMI carries it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddplug
from ddplug.terms import Groups, Term, base, make, register, terms

pytestmark = pytest.mark.numerical

Batch = tuple[Tensor, Tensor]


@pytest.fixture(autouse=True)
def only_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(base, "_TERMS", dict(base._TERMS))


def toy() -> type[Term]:
    """What a stranger writes."""

    @register("compactness")
    class Compactness(Term):
        unit = "squared features"
        additive_over_classes = True

        def __call__(self, features: Tensor, groups: Groups) -> Tensor:
            return (features - groups.mean(features)[groups.index]).square().sum(-1).mean()

    return Compactness


def gradient(layer: Callable[[Tensor, Tensor], Tensor], batch: Batch) -> Tensor:
    leaf = batch[0].clone().requires_grad_()
    (layer(leaf, batch[1]) * 2).square().sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def test_a_term_in_one_class_goes_through_the_layer(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """By name and as an instance; its gradient is what autograd has for it under the proxy."""
    term, told = toy()(), list[str]()
    leaf = batch[0].clone().requires_grad_()
    value = term(pool.proxies[0](leaf), base.group(batch[1], 12, "cpu"))
    ((leaf * 2).square().sum() + 0.3 * value).backward()
    assert leaf.grad is not None
    for given in ("compactness", term):
        regularizer = ddplug.Regularizer(pool, 0.3, weighting="absolute", term=given)
        torch.testing.assert_close(gradient(regularizer, batch), leaf.grad, rtol=1e-12, atol=1e-12)
        assert regularizer.history.cmi == [pytest.approx(value.item(), rel=1e-12)]
    gradient(
        ddplug.Regularizer(
            pool, 0.5, term="compactness", representation="feature", weighting=ddplug.Relative(1), announce=told.append
        ),
        batch,
    )
    assert told[0].endswith(f"compactness {value.item():.4g} squared features)")


def test_it_is_attached_like_cmi(pool: ddplug.ProxyPool, batch: Batch) -> None:
    toy()

    class Trainer:
        def augment(self, images: Tensor, labels: Tensor) -> Tensor:
            return images * 1.5

    trainer = Trainer()
    with ddplug.attach(trainer, 0.5, proxies=pool, term="compactness", announce=lambda line: None) as handle:
        gradient(trainer.augment, batch)
        state = handle.state_dict()
    assert state["settings"]["term"] == "compactness"
    with pytest.raises(ddplug.errors.InputError, match="made with term 'compactness' .here 'cmi'."):
        ddplug.Regularizer(pool, 0.5).load_state_dict(state)


def test_in_pieces_it_is_the_same(pool: ddplug.ProxyPool, batch: Batch) -> None:
    toy()
    options: dict[str, Any] = {"weighting": "absolute", "term": "compactness"}
    whole, pieces = (
        gradient(ddplug.Regularizer(pool, 0.3, **options, compute=ddplug.Compute(chunk=size)), batch)
        for size in (12, 5)
    )
    torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-12)


def test_cmis_closed_form_is_the_derivative_that_autograd_has(batch: Batch) -> None:
    features = torch.randn(12, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    groups, term = base.group(batch[1], 12, "cpu"), make("cmi", temperature=0.7)
    value, grad = term.value_and_grad(features, groups)
    by_autograd = Term.value_and_grad(term, features, groups)
    torch.testing.assert_close((value, grad), by_autograd, rtol=1e-12, atol=1e-14)
    assert value.item() == pytest.approx(ddplug.cmi(features, batch[1], temperature=0.7).item(), rel=1e-12)


def test_a_term_that_is_not_made_up_of_classes_is_not_estimated_on_some(pool: ddplug.ProxyPool) -> None:
    class Whole(Term):
        label = "the whole"

    with pytest.raises(ddplug.errors.InputError, match="classes=2 lets some classes stand for all, but the whole"):
        ddplug.Regularizer(pool, term=Whole(), compute=ddplug.Compute(classes=2))


def test_too_few_images_are_told_of_by_the_term(pool: ddplug.ProxyPool, batch: Batch) -> None:
    class Many(toy()):  # type: ignore[misc]
        min_per_class = 5

    images, labels = batch
    with pytest.warns(ddplug.DDPlugWarning, match="fewer than 5 images"):
        gradient(ddplug.Regularizer(pool, weighting="absolute", term=Many()), (images[:9], labels[:9]))
    gradient(ddplug.Regularizer(pool, weighting="absolute", term=Many()), batch)  # class 1 has five


def test_terms_that_are_none(pool: ddplug.ProxyPool) -> None:
    assert {"cmi", "ncmi", "centralisation", "mim"} <= set(terms())
    for wrong in ("cim", toy(), 3):
        with pytest.raises(ddplug.errors.InputError, match="unknown term .*expected one of 'centralisation'"):
            ddplug.Regularizer(pool, term=wrong)  # type: ignore[arg-type]
    with pytest.raises(ddplug.errors.InputError, match="already is a term named 'compactness'"):
        toy()
    with pytest.raises(NotImplementedError, match="has no __call__"):
        Term()(torch.zeros(1, 1), base.group(torch.zeros(1, dtype=torch.long), 1, "cpu"))


def test_a_term_sees_features_and_classes_and_nothing_else(network: Callable[..., nn.Module], batch: Batch) -> None:
    seen: list[tuple[torch.dtype, tuple[int, ...], list[int]]] = []

    class Looks(Term):
        def __call__(self, features: Tensor, groups: Groups) -> Tensor:
            seen.append((features.dtype, tuple(features.shape), groups.counts.tolist()))
            return features.square().mean()

    gradient(ddplug.Regularizer(network(7), weighting="absolute", term=Looks()), batch)
    assert seen
    assert all(each == (torch.float64, (12, 12), [3, 6, 3]) for each in seen)
