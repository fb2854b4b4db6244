"""Images and augmentations as hosts have them: called within each other, copied, replaced, in changing optimizers."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import ddplug
from attaching.loop import LAM, Batch, Trainer, attach, check, expected_gradient

pytestmark = pytest.mark.numerical


def cmi_gradient(pool: ddplug.ProxyPool, images: Tensor, labels: Tensor, scale: float = 1.0) -> Tensor:
    leaf = images.detach().clone().requires_grad_()
    (grad,) = torch.autograd.grad(ddplug.CMI(pool)(leaf * scale, labels), leaf)
    return LAM * grad


def test_an_augmentation_that_calls_itself_is_one_call(pool: ddplug.ProxyPool, batch: Batch) -> None:
    class Twice(Trainer):
        def augment(self, images: Tensor, labels: Tensor | None = None, again: bool = True) -> Tensor:
            return self.augment(images * 3.0, labels, False) if again else images * 0.5

    trainer = Twice(*batch)
    check(trainer, pool, batch)
    with attach(trainer, pool) as handle:
        trainer.gradient()
        assert handle.history[-1].images == len(batch[1])


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("cut", ["halves", "views"])
def test_an_augmentation_that_returns_several_batches(
    pool: ddplug.ProxyPool, batch: Batch, kind: type, cut: str
) -> None:
    images, labels = batch
    half = len(labels) // 2

    class Several(Trainer):
        def augment(self, images: Tensor, labels: Tensor | None = None) -> Any:  # type: ignore[override]
            if cut == "views":
                return kind([images * 1.5, images * 0.5])
            return kind([images[:half] * 1.5, images[half:] * 1.5])

    trainer = Several(images, labels)
    with attach(trainer, pool):
        torch.cat(list(trainer.augment(trainer.images, labels=labels))).sum().backward()
    assert trainer.images.grad is not None
    if cut == "halves":
        expected = 1.5 + cmi_gradient(pool, images, labels, 1.5)
    else:
        leaf = images.clone().requires_grad_()
        of_both = ddplug.CMI(pool)(torch.cat([leaf * 1.5, leaf * 0.5]), labels.repeat(2))
        expected = 2.0 + LAM * torch.autograd.grad(of_both, leaf)[0]
    torch.testing.assert_close(trainer.images.grad, expected, rtol=1e-9, atol=1e-12)


def test_images_that_are_replaced_in_their_optimizer(pool: ddplug.ProxyPool, batch: Batch) -> None:
    images, labels = batch
    optimizer = torch.optim.SGD([images.clone().requires_grad_()], lr=0.1)
    with attach(optimizer, pool, labels=labels) as handle:
        other = (images + 0.25).requires_grad_()
        optimizer.param_groups[0]["params"] = [other]
        other.sum().backward()
        optimizer.step()
    assert len(handle.history) == 1
    assert other.grad is not None
    torch.testing.assert_close(other.grad - 1, cmi_gradient(pool, images + 0.25, labels), rtol=1e-9, atol=1e-12)


def test_a_group_of_images_that_is_added_later(pool: ddplug.ProxyPool, batch: Batch) -> None:
    images, labels = batch
    first, second = (part.clone().requires_grad_() for part in images.chunk(2))
    optimizer = torch.optim.SGD([first], lr=0.1)
    # Once labels are those of all, a function of the images can say so.
    with attach(optimizer, pool, labels=lambda views: labels[: len(views)]) as handle:
        optimizer.add_param_group({"params": [second]})
        (first.sum() + second.sum()).backward()
        optimizer.step()
    assert handle.history[-1].images == len(labels)
    got = torch.cat([leaf.grad for leaf in (first, second) if leaf.grad is not None])
    torch.testing.assert_close(got - 1, cmi_gradient(pool, images, labels), rtol=1e-9, atol=1e-12)


def test_a_group_that_the_labels_do_not_fit_is_refused(pool: ddplug.ProxyPool, batch: Batch) -> None:
    images, labels = batch
    leaf, more = images.clone().requires_grad_(), images.clone().requires_grad_()
    optimizer = torch.optim.SGD([leaf], lr=0.1)
    with pytest.raises(ddplug.DDPlugError, match=f"{2 * len(labels)}"), attach(optimizer, pool, labels=labels):
        optimizer.add_param_group({"params": [more]})
        (leaf.sum() + more.sum()).backward()
        optimizer.step()


class Strength:
    """An augmentation that is an object."""

    def __init__(self, strength: float = 1.5) -> None:
        self.strength, self.calls = strength, 0

    def set_strength(self, strength: float) -> None:
        self.strength = strength

    def __len__(self) -> int:
        return 3

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        self.calls += 1
        return images * self.strength


def test_an_augmentation_that_is_an_object_stays_itself(pool: ddplug.ProxyPool, batch: Batch) -> None:
    trainer = Trainer(*batch)
    augment = trainer.augment = Strength(1.0)  # type: ignore[method-assign, assignment]
    call = Strength.__call__
    with attach(trainer, pool) as handle:
        assert trainer.augment is augment
        assert len(augment) == 3
        augment.strength = 2.5
        augment.set_strength(augment.strength - 1)
        got = trainer.gradient()
        assert augment.calls == 2
        Strength()(batch[0].clone().requires_grad_()).sum().backward()  # another of the class
        assert handle.regularizer.rounds == 1
    torch.testing.assert_close(got, expected_gradient(pool, batch), rtol=1e-12, atol=0)
    assert augment.strength == 1.5
    assert vars(augment).keys() == {"strength", "calls"}
    assert Strength.__call__ is call


class WithoutForward(torch.nn.Module):
    """An augmentation that is a module, but is called without torch's hooks."""

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return images * 1.5


def test_a_module_with_a_call_of_its_own_is_intercepted(pool: ddplug.ProxyPool, batch: Batch) -> None:
    trainer, call = Trainer(*batch), WithoutForward.__call__
    trainer.augment = WithoutForward()  # type: ignore[method-assign, assignment]
    with attach(trainer, pool) as handle:
        got = trainer.gradient()
        WithoutForward()(batch[0].clone().requires_grad_()).sum().backward()  # another of the class
        assert handle.regularizer.rounds == 1
    torch.testing.assert_close(got, expected_gradient(pool, batch), rtol=1e-12, atol=0)
    assert WithoutForward.__call__ is call


@pytest.mark.parametrize("kind", ["method", "function", "partial"])
def test_a_shallow_copy_of_a_trainer_runs_its_own(pool: ddplug.ProxyPool, batch: Batch, kind: str) -> None:
    class Scaled(Trainer):
        scale = 1.5

        def augment(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
            return images * self.scale

    trainer = Scaled(*batch)
    if kind != "method":
        function = lambda images, labels=None: images * 1.5  # noqa: E731
        trainer.augment = function if kind == "function" else functools.partial(function)  # type: ignore[method-assign]
    before = dict(vars(Scaled))
    with attach(trainer, pool) as handle:
        twin = copy.copy(trainer)
        twin.scale = 3.0
        leaf = batch[0].clone().requires_grad_()
        for _ in range(2):
            views = twin.augment(leaf, labels=batch[1])
            assert torch.equal(views, leaf * (3.0 if kind == "method" else 1.5))
            views.sum().backward()
            assert handle.regularizer.rounds == 0
            handle.regularizer.watch.expect("never acts")
            handle.detach()
    assert {key: value for key, value in vars(Scaled).items() if key != "__slotnames__"} == before


class Plain:
    augment: Any


class Holding(torch.nn.Module):
    augment: Any


class Slots:
    __slots__ = ("__weakref__", "augment", "images", "labels")


class Layer(torch.nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images * 1.5


MADE: dict[str, Callable[[], Any]] = {"a function": lambda: lambda x: x * 1.5, "an object": Strength, "a module": Layer}


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("kind", [Plain, Holding, Slots, SimpleNamespace])
def test_an_augmentation_that_is_replaced_each_epoch(
    kind: type[Any], made: str, pool: ddplug.ProxyPool, batch: Batch
) -> None:
    """It is seen where the trainer's class can be changed; elsewhere a warning says that it was not."""
    trainer = kind()
    trainer.augment, trainer.labels = MADE[made](), batch[1]
    trainer.images = batch[0].clone().requires_grad_()
    optimizer = torch.optim.SGD([trainer.images], 0.1)
    handle = attach(trainer, pool)
    seen = kind in (Plain, Holding)
    for epoch in range(3):
        if epoch:
            new = trainer.augment = MADE[made]()
        optimizer.zero_grad()
        trainer.augment(trainer.images).sum().backward()
        added = cmi_gradient(pool, trainer.images, batch[1], 1.5) * (seen or not epoch)
        torch.testing.assert_close(trainer.images.grad - 1.5, added, rtol=1e-9, atol=1e-12)
        optimizer.step()
    with nullcontext() if seen else pytest.warns(ddplug.DDPlugWarning, match="was replaced"):
        handle.detach()
    assert len(handle.history) == (3 if seen else 1)
    assert trainer.augment is new
    assert not any(name.startswith("__ddplug") for name in getattr(trainer, "__dict__", {}))
    assert "augment" not in vars(kind) or kind is Slots
