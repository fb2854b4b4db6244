"""Where labels come from, and what is said of those that do not fit."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
from torch import Tensor

import ddplug
from attaching.loop import LAM, Batch, Trainer, attach, check

pytestmark = pytest.mark.numerical


def test_labels_as_a_tensor_a_function_or_an_attribute(pool: ddplug.ProxyPool, batch: Batch) -> None:
    class Bare(Trainer):
        def augment(self, images: Tensor, **_: object) -> Tensor:  # type: ignore[override]
            return images * 1.5

    check(Bare(*batch), pool, batch, at="augment")  # self.labels is found
    for labels in (batch[1], lambda views: batch[1][: len(views)], "secret"):
        trainer = Bare(*batch)
        trainer.secret = batch[1]  # type: ignore[attr-defined]
        check(trainer, pool, batch, at="augment", labels=labels)


def test_labels_as_a_list_or_an_array(pool: ddplug.ProxyPool, batch: Batch) -> None:
    for labels in (batch[1].tolist(), batch[1].numpy()):
        check(Trainer(*batch), pool, batch, at="augment", labels=labels)


def test_labels_missing_at_the_call(pool: ddplug.ProxyPool, batch: Batch) -> None:
    script: Any = types.ModuleType("script")
    script.augment = lambda images, labels=None: images * 1.5
    for options in ({}, {"labels": "labels"}):
        with (
            pytest.raises(ddplug.errors.HostError, match="no labels for the 12 synthetic|without 'labels'"),
            attach(script, pool, at="augment", **options),
        ):
            script.augment(batch[0].clone().requires_grad_())


def test_labels_per_call(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """A script that comes with one class after the other, and whose augmentation knows nothing of labels."""
    images, labels = batch
    script = types.ModuleType("script")
    exec(
        "def DiffAugment(images): return images * 1.5\n"
        "def loss(images, rows): return sum(DiffAugment(images[row]).square().sum() for row in rows)",
        script.__dict__,
    )
    rows = [(labels == c).nonzero().flatten() for c in range(3)]
    leaf = images.clone().requires_grad_()
    with attach(script, pool, labels=ddplug.one_class_per_call(3)) as handle:
        for _ in range(2):
            leaf.grad = None
            script.loss(leaf, rows).backward()
        script.DiffAugment(images)  # real images are no call
        assert len(handle.history) == 2
    other = images.clone().requires_grad_()
    (ddplug.CMI(pool)(1.5 * other, labels) * LAM + (1.5 * other).square().sum()).backward()
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-12, atol=1e-12)
    assert [ddplug.one_class_per_call([4, 2])(images) for _ in range(2)] == [4, 4]
    cycle = ddplug.one_class_per_call([4, 2])
    assert [cycle(images) for _ in range(3)] == [4, 2, 4]
    for wrong in (0, [-1], []):
        with pytest.raises(ddplug.errors.InputError, match="class numbers >= 0"):
            ddplug.one_class_per_call(wrong)


def script_of_batches(labels: torch.Tensor) -> Any:
    script: Any = types.ModuleType("script")
    script.augment, script.now = lambda images: images * 1.5, labels
    return script


def orders(seed: int) -> torch.Tensor:
    return torch.randperm(12, generator=torch.Generator().manual_seed(seed))


def test_a_name_that_once_had_fewer_labels_than_images_is_of_the_views(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """Also where a batch has as many views as there are images, in another order."""
    images, labels = batch
    script, leaf, other = script_of_batches(labels), images.clone().requires_grad_(), images.clone().requires_grad_()
    batches = orders(0)[:5], orders(1)
    with attach(script, pool, at="augment", labels="now"):
        views = []
        for rows in batches:
            script.now = labels[rows]
            views.append(script.augment(leaf[rows]))
        torch.cat(views).square().sum().backward()
    seen = 1.5 * other[torch.cat(batches)]
    (seen.square().sum() + LAM * ddplug.CMI(pool)(seen, labels[torch.cat(batches)])).backward()
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-12, atol=1e-12)


def test_labels_of_the_images_do_not_change(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """Those that do are of the views of a batch of all images."""
    images, labels = batch
    script, leaf = script_of_batches(labels), images.clone().requires_grad_()
    with attach(script, pool, at="augment", labels="now"):
        script.now = labels[orders(0)]
        script.augment(leaf[orders(0)]).sum().backward()
        script.now = labels[orders(1)]
        with pytest.raises(ddplug.errors.HostError, match="may be of the views"):
            script.augment(leaf[orders(1)])


def test_labels_that_do_not_fit_say_where_they_are_from(pool: ddplug.ProxyPool, batch: Batch) -> None:
    trainer = Trainer(*batch)
    with (
        pytest.raises(
            ddplug.errors.InputError, match=r"labels of shape \(5,\) for 4 images.*tensor given.*Pass labels="
        ),
        attach(trainer, pool, labels=torch.arange(5)),
    ):
        trainer.augment(trainer.images[:4])
    with attach(trainer, pool, labels=lambda views: 2):
        trainer.augment(trainer.images[:4]).sum().backward()


def test_a_loss_is_not_taken_for_an_augmentation_without_labels(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """It may be the classifier's, and then CMI would never act."""

    class Ambiguous:
        def augment(self, images: Tensor) -> Tensor:
            return images

        def loss(self, images: Tensor, targets: Tensor) -> Tensor:
            return images.sum()

    with pytest.raises(ddplug.errors.HostError, match=r"(?s)augment: no labels for.*loss: not taken.*at='loss'"):
        attach(Ambiguous(), pool)
    for options in ({"labels": batch[1]}, {"at": "loss"}):
        handle = attach(Ambiguous(), pool, **options)  # type: ignore[arg-type]
        handle.regularizer.watch.expect("never acts")
        handle.detach()


def test_calls_that_are_not_regularised_are_no_turn_of_a_class(pool: ddplug.ProxyPool, batch: Batch) -> None:
    """A look at the loss under no_grad between two steps."""
    images, labels = batch

    class Matching:
        def loss(self, images: Tensor) -> Tensor:
            return images.square().sum()

    trainer, seen = Matching(), []
    cycle = ddplug.one_class_per_call(3)

    def noted(views: Tensor) -> int:
        seen.append(cycle(views))
        return seen[-1]

    leaf = images.clone().requires_grad_()
    with attach(trainer, pool, labels=noted, weighting=ddplug.Relative(set_size=12)):
        for _ in range(2):
            for c in range(3):
                trainer.loss(leaf[labels == c]).backward()
                leaf.grad = None
            with torch.no_grad():
                trainer.loss(leaf)
    assert seen == [0, 1, 2, 0, 1, 2]
