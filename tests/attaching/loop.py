"""A loop as people write it, and what has to come of attaching to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import ddplug

Batch = tuple[Tensor, Tensor]
LAM = 0.7


def attach(trainer: object, pool: ddplug.ProxyPool, **options: Any) -> ddplug.Handle:
    """Attach with lambda given, to the clean images of an optimizer, so that all has a simple reference."""
    settings = {"weighting": "absolute", "announce": lambda line: None, **options}
    if hasattr(trainer, "param_groups"):  # an optimizer, alone or wrapped
        settings.setdefault("augment", "none")
    return ddplug.attach(trainer, LAM, proxies=pool, **settings)


class Trainer:
    """A loop as people write it: an augmentation, a loss, and an optimizer on the images."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images.clone().requires_grad_()
        self.labels = labels
        self.optimizer = torch.optim.SGD([self.images], lr=0.1)
        self.seen: list[Tensor] = []

    def augment(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return images * 1.5

    def loss(self, real: Tensor, synthetic: Tensor, labels: Tensor) -> Tensor:
        self.seen.append(synthetic)
        return (real.mean() - synthetic).square().sum()

    def gradient(self) -> Tensor:
        """The gradient that one step goes by."""
        self.optimizer.zero_grad()
        views = self.augment(self.images, labels=self.labels)
        real = self.augment(torch.ones(4, 3, 4, 4, dtype=torch.float64))
        self.loss(real, views, self.labels).backward()
        self.optimizer.step()
        assert self.images.grad is not None
        return self.images.grad.clone()


def expected_gradient(pool: ddplug.ProxyPool, batch: Batch, scale: float = 1.5) -> Tensor:
    trainer = Trainer(*batch)
    leaf = batch[0].clone().requires_grad_()
    (of_cmi,) = torch.autograd.grad(ddplug.CMI(pool)(leaf * scale, batch[1]), leaf)
    return trainer.gradient() + LAM * of_cmi


def check(trainer: Any, pool: ddplug.ProxyPool, batch: Batch, scale: float = 1.5, **options: Any) -> None:
    """Attached, the step goes by L + lambda * CMI; detached, everything is as if nothing had been."""
    attributes = dict(vars(trainer))
    with attach(trainer, pool, **options) as handle:
        got = trainer.gradient()
        torch.testing.assert_close(got, expected_gradient(pool, batch, scale), rtol=1e-12, atol=0)
        assert len(handle.history) == 1
        assert handle.attached
    assert not handle.attached
    assert vars(trainer).keys() == attributes.keys()
    assert all(vars(trainer)[key] is value for key, value in attributes.items())
    with torch.no_grad():
        trainer.images.copy_(batch[0])
    assert torch.equal(trainer.gradient(), Trainer(*batch).gradient())
