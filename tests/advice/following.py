"""Following the advice of a message as it is typed: what it leads to works, without a second message.

A case is a generator. It yields the cause of the message that it is named by, and goes on with what the message says.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddplug

Cause = Callable[[], object]


class World:
    """A small pool, and images (12, 3, 4, 4) with labels of three classes."""

    def __init__(self, path: Path, network: Callable[..., nn.Module], batch: tuple[Tensor, Tensor]) -> None:
        self.path, self.network = path, network
        self.images, self.labels = batch
        self.pool = ddplug.ProxyPool.from_modules([network(7)])

    def layer(self, weight: float = 1.0, **options: Any) -> ddplug.Regularizer:
        """A layer whose lambda is given, unless `options` say otherwise."""
        settings = {"weighting": "absolute", "announce": lambda line: None, **options}
        return ddplug.Regularizer(settings.pop("pool", self.pool), weight, **settings)

    def leaf(self, images: Tensor | None = None) -> Tensor:
        return (self.images if images is None else images).clone().requires_grad_()

    def step(self, layer: Callable[..., Tensor], images: Tensor | None = None, **call: Any) -> Tensor:
        """Make a step by a loss of what `layer` returns; return the images' gradient without the loss's part."""
        leaf = self.leaf(images)
        call = {"labels": self.labels[: len(leaf)], **call}
        layer(leaf, **call).sum().backward()
        assert leaf.grad is not None
        torch.optim.SGD([leaf], lr=0.1).step()
        return leaf.grad - 1

    def acts(self, layer: ddplug.Regularizer, images: Tensor | None = None, **call: Any) -> None:
        """The layer adds something to the gradient of a step, which is a round."""
        before = layer.rounds
        assert self.step(layer, images, **call).norm() > 0
        assert layer.rounds == before + 1

    def loss_form(self) -> Tensor:
        """The loss form's gradient, as messages give its line."""
        leaf = self.leaf()
        loss, lam, proxies, views, labels = leaf.sum(), 1.0, self.pool, leaf, self.labels
        loss = loss + lam * ddplug.CMI(proxies)(views, labels)
        (grad,) = torch.autograd.grad(loss, leaf)
        return grad - 1


Case = Callable[[World], Iterator[Cause]]


class Cases(dict[str, Case]):
    """Cases by message: pieces of it, with " ... " between them."""

    def __call__(self, message: str) -> Callable[[Case], Case]:
        """Decorator of the case of a message."""

        def add(case: Case) -> Case:
            assert self.setdefault(message, case) is case
            return case

        return add

    def follow(self, message: str, world: World) -> None:
        """Check that the case's cause has the message, and run what follows."""
        case = self[message](world)
        cause, said = next(case), ""
        with warnings.catch_warnings(record=True) as issued:
            warnings.simplefilter("always", ddplug.DDPlugWarning)
            try:
                cause()
            except (ddplug.DDPlugError, AttributeError) as error:
                said = str(error)
        said = "\n".join([said, *(str(each.message) for each in issued)])
        assert re.search(".*".join(map(re.escape, message.split(" ... "))), said, re.DOTALL), said
        for _ in case:
            pytest.fail("a case has one cause")
