"""Terms that compare synthetic images with real ones of the same classes."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ddplug.errors import InputError
from ddplug.terms.base import Groups, Term

Own = TypeVar("Own", bound="RealTerm")


@dataclass(frozen=True)
class Real:
    """Real images as a proxy sees them."""

    features: Tensor
    """(m, d), of the dtype of the synthetic ones."""
    groups: Groups
    """Their classes, among which are all those of the synthetic images."""

    @classmethod
    def of_classes(cls, rows: Tensor, classes: Tensor, counts: Tensor) -> Real:
        """One row (c, d) for each class, such as its centroid, of `counts` images each."""
        return cls(rows, Groups(classes, torch.arange(len(classes), device=classes.device), counts))

    def to(self, device: torch.device) -> Real:
        """The same on `device`."""
        groups = Groups(*(each.to(device) for each in (self.groups.classes, self.groups.index, self.groups.counts)))
        return Real(self.features.to(device), groups)

    def rows(self, groups: Groups) -> Tensor:
        """The row of each of `groups`' classes, (c,) int64, among ours; `InputError` if one is not there."""
        ours, wanted = self.groups.classes, groups.classes
        rows = torch.searchsorted(ours, wanted).clamp(max=len(ours) - 1)
        absent = ours[rows] != wanted
        if absent.any():
            raise InputError(
                f"there are no real images of class {', '.join(map(str, wanted[absent].tolist()))} to compare the "
                "synthetic ones with; give some of every class that is regularised."
            )
        return rows


class RealTerm(Term):
    """A term that needs real images: `__call__` finds them in `self.real`.

    What a batch is compared with changes from step to step, so a term is *bound* to it by `against`.
    """

    needs_real = True
    _real: Real | None = None

    @property
    def real(self) -> Real:
        """The real images' features; `InputError` if the term was not bound to any."""
        if self._real is None:
            fixed = ", or a pool with centroids, which ddplug.proxies.centroids.add_centroids(pool, dataset) makes"
            batch = ", or the host's batch along: regularizer(views, labels, real=(images, labels))"
            raise InputError(
                f"the term '{self.name}' compares with real images, and has none. Pass data=, a data set or "
                f"(images, labels){fixed if self.keeps_real else batch}; --data for ddplug run --script."
            )
        return self._real

    def against(self: Own, real: Real) -> Own:
        """The same term, bound to `real`."""
        bound = copy.copy(self)
        bound._real = real
        return bound
