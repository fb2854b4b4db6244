"""Real images for a term that compares with them: the host's own batch, else a sample of its data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddplug.datasets.by_class import ByClass
from ddplug.datasets.images import ImageData
from ddplug.datasets.spaces import AnySpace
from ddplug.errors import InputError
from ddplug.terms import Term
from ddplug.terms.base import check_labels

PER_CLASS = 64
"""Images of each class in a sample."""
_FIXED = 0x9EA1
"""Seed of a sample that is drawn once."""


class RealBatch(NamedTuple):
    """Real images in the space of the views."""

    images: Tensor
    """(m, c, h, w)."""
    labels: Tensor | None
    """(m,) class numbers; None if all are of the class of the next views."""


class RealImages:
    """The real images of each round.

    Args:
        term: the term that compares with them.
        seed: of our own generator, which samples.
        announce: called with a line about each source, once.
        space: the input space of the views, once it is known.
        data: the data to sample where no real batch of the host has passed.
        stored: returns True if the proxies have centroids of real images, so that no real image is needed.
    """

    def __init__(
        self,
        term: Term,
        seed: int,
        announce: Callable[[str], object],
        space: Callable[[], AnySpace | None],
        data: ImageData | None = None,
        stored: Callable[[], bool] = bool,
    ) -> None:
        self.term, self.announce, self.space, self.data, self.stored = term, announce, space, data, stored
        # Another seed than that of the proxies and the classes.
        self.generator = torch.Generator().manual_seed(seed + 0x9EA1)
        self._passing: RealBatch | None = None
        self._fixed: RealBatch | None = None
        self._by_class: ByClass | None = None
        self._announced = set[str]()

    def passed(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Note a batch that passed the layer's place without a gradient; the next views are compared with it."""
        if not self.term.needs_real or self.term.keeps_real:
            return
        # Copies, as hosts overwrite the buffers of a batch with the next one.
        self._passing = RealBatch(images.detach().clone(), None if labels is None else labels.clone())

    def sample_from(self, data: Callable[[], ImageData | None]) -> None:
        """Set the data to sample, unless it is set; `data` is called only if the term needs it."""
        if self.term.needs_real and self.data is None and not self.stored():
            self.data = data()

    def given(self, real: tuple[Tensor, Tensor] | None, labels: Tensor) -> RealBatch | None:
        """The batch of a call on views of `labels`: the one passed along, else the one that passed before.

        Raises `InputError` for labels that do not fit the images.
        """
        if not self.term.needs_real or self.term.keeps_real:
            return None
        passing, self._passing = self._passing, None
        if real is not None:
            images, classes = real
            classes = classes if isinstance(classes, Tensor) else torch.as_tensor(classes, device="cpu")
            check_labels(classes, len(images))
            return RealBatch(images.detach().clone(), classes.clone())
        if passing is None:
            return None
        if passing.labels is not None:
            check_labels(passing.labels, len(passing.images))
            return passing
        single = labels[:1]
        if not (labels == single).all():
            return None
        return RealBatch(passing.images, single.expand(len(passing.images)))

    def of_round(self, offered: Sequence[RealBatch | None], labels: Tensor) -> RealBatch | None:
        """The batches of a round's calls together, else a sample of the classes of `labels`, (n,), in the views' space.

        None without batches and data.
        """
        found = [batch for batch in offered if batch is not None and batch.labels is not None]
        if found:
            images = torch.cat([batch.images for batch in found])
            classes = torch.cat([batch.labels.to(images.device, torch.int64) for batch in found])  # type: ignore[union-attr]
            # A host that steps class by class passes images of one class only, which a contrast cannot use.
            if not (self.term.contrasts and self.data is not None and (classes == classes[0]).all()):
                self._announce_source("the host's own batch", f", {len(images)} images the first time")
                return RealBatch(images, classes)
        if self.stored():
            self._announce_source("the centroids that the proxies have", "")
            return None
        if self.data is None:
            return None
        fixed = self.term.keeps_real
        drawn = "drawn once" if fixed else "drawn anew in each round"
        self._announce_source(f"a sample of {self.data.name}", f", {PER_CLASS} images of each class, {drawn}")
        if not fixed:
            wanted = self.data.train_labels if self.term.contrasts else labels
            return self._sample(self.data, torch.unique(wanted.cpu()))
        if self._fixed is None:
            self._fixed = self._fixed_sample(self.data)
        return self._fixed

    def _fixed_sample(self, data: ImageData) -> RealBatch:
        """Images of all classes, each once, and all of a class that has no more; equal in every run, with any seed."""
        labels = data.train_labels.cpu()
        shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_FIXED), device="cpu")
        return self._chosen(data, shuffled[ByClass(labels[shuffled]).first(PER_CLASS)])

    def _sample(self, data: ImageData, classes: Tensor) -> RealBatch:
        if self._by_class is None:
            self._by_class = ByClass(data.train_labels.cpu(), data.num_classes)
        counts = self._by_class.counts
        empty = [label for label in classes.tolist() if label >= len(counts) or counts[label] == 0]
        if empty:
            raise InputError(f"{data.name} has no images of class {', '.join(map(str, empty))}.")
        return self._chosen(data, self._by_class.draw(classes, PER_CLASS, self.generator))

    def _chosen(self, data: ImageData, rows: Tensor) -> RealBatch:
        images = data.train_images[rows.to(data.train_images.device)]
        return RealBatch(data.space.convert(images, self.space() or data.space), data.train_labels.cpu()[rows])

    def _announce_source(self, what: str, more: str) -> None:
        """Announce the source of the real images, each source once."""
        if what not in self._announced:
            self._announced.add(what)
            self.announce(f"ddplug: {self.term.label} compares with {what}{more}")
