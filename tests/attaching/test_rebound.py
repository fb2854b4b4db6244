"""An augmentation that the trainer replaces during the run."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddplug
from attaching.loop import Batch, attach


class Plain:
    augment: Any


class Holding(nn.Module):
    augment: Any


class Slots:
    __slots__ = ("__weakref__", "augment", "images", "labels")


class Scaling:
    def __call__(self, images: Tensor) -> Tensor:
        return images * 1.5


class Layer(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images * 1.5


MADE: dict[str, Callable[[], Any]] = {
    "a function": lambda: lambda images: images * 1.5,
    "an object": Scaling,
    "a module": Layer,
}


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("kind", [Plain, Holding, Slots, SimpleNamespace])
def test_an_augmentation_that_is_replaced_is_intercepted_or_warned_about(
    kind: type[Any], made: str, pool: ddplug.ProxyPool, batch: Batch
) -> None:
    trainer = kind()
    trainer.labels = batch[1]
    trainer.images = batch[0].clone().requires_grad_()
    optimizer = torch.optim.SGD([trainer.images], 0.1)
    trainer.augment = MADE[made]()
    handle = attach(trainer, pool)
    for epoch in range(3):
        if epoch:
            trainer.augment = MADE[made]()
        optimizer.zero_grad()
        trainer.augment(trainer.images).sum().backward()
        optimizer.step()
    last = trainer.augment if made != "a function" else None
    if kind in (Plain, Holding):
        handle.detach()
        assert len(handle.history) == 3
    else:
        with pytest.warns(ddplug.DDPlugWarning, match="was replaced"):
            handle.detach()
        assert len(handle.history) == 1
    assert last is None or trainer.augment is last
    assert not any(name.startswith("__ddplug") for name in getattr(trainer, "__dict__", {}))
    assert "augment" not in vars(kind) or kind is Slots
