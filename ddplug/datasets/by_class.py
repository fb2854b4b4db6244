"""Images by class, so that a batch or the first images of every class are one gather, without a loop over classes."""

from __future__ import annotations

import torch
from torch import Tensor


class ByClass:
    """Indices of the images of each class among labels (n,), int64; on the device of the labels.

    Args:
        labels: class numbers >= 0, in any order.
        num_classes: how many classes there are at least.
    """

    def __init__(self, labels: Tensor, num_classes: int = 0) -> None:
        self.order = labels.argsort(stable=True)
        """(n,) indices of the images, sorted by class."""
        self.counts = torch.bincount(labels, minlength=num_classes)
        """(c,) images of each class."""
        self._first = self.counts.cumsum(0) - self.counts

    def first(self, count: int) -> Tensor:
        """Indices of the first `count` images of every class, or of all that it has, sorted by class."""
        place = torch.arange(len(self.order), device=self.order.device) - self._first.repeat_interleave(self.counts)
        return self.order[place < count]

    def draw(self, classes: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Indices of `count` images of each of `classes` (k,), drawn with replacement: (k * count,), class by class.

        A class without images cannot be drawn from: see `counts`.
        """
        chance = torch.rand(len(classes), count, generator=generator, dtype=torch.float64, device=generator.device)
        chance = chance.to(self.counts.device)
        return self.order[self._first[classes, None] + (chance * self.counts[classes, None]).long()].flatten()
