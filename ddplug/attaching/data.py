"""The host's real data: those that the user gives, or those that hang on the trainer, read when they are needed."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from ddplug.attaching.held import items_of
from ddplug.attaching.labels import class_numbers
from ddplug.core.regularizer import Regularizer
from ddplug.datasets.images import ImageData, as_image_data
from ddplug.datasets.spaces import AnySpace, InputSpace
from ddplug.datasets.splits import checked, gathered
from ddplug.datasets.torch_sets import fitting, normalised, space_of

LOOKED_AT = 16
"""Number of images by which a `Normalize` is checked, so that the whole data set need not be read."""
COMPARED = 256
"""Number of images that the first views are compared with."""
TEST = ("test", "val", "valid", "eval", "dev", "holdout")
"""Parts of the name of an attribute that holds a test split."""


def space_of_script(regularizer: Regularizer, views: Tensor) -> InputSpace | None:
    """Return the space of the script's `Normalize`, and announce it; None if it is the pool's, or not known.

    Views in [0, 1] are not normalised. Neither are those for proxies of such images.
    """
    own = regularizer.pool.info.space
    if not isinstance(own, InputSpace) or own == InputSpace.unit(own.channels):
        return None
    if views.amin() >= 0 and views.amax() <= 1:
        return None
    if (space := normalised(own.channels)) in (None, own):
        return None
    regularizer.announce(f"ddplug: views are {space}, as the script's Normalize has it; input_space= overrides that")
    return space


class RealData:
    """Real data of `trainer`, and the normalisation of its images.

    Args:
        trainer: an object whose attributes may hold an `ImageData`, torch data sets, loaders of these, or tensors.
        given: data that the user gives, read at once; whatever `ddplug.datasets.as_image_data` takes.
        space: meaning of the numbers of given tensors.

    Raises:
        DataError: `given` is no such data.
    """

    def __init__(self, trainer: object, given: object, space: AnySpace | str | None) -> None:
        by_name = given is None or isinstance(given, ImageData | str)
        if given is None:
            self._given = next((value for _, value in items_of(trainer) if isinstance(value, ImageData)), None)
        else:
            self._given = as_image_data(given) if by_name else as_image_data(given, space=space)
        self.known = self._given if by_name else None
        """Data by name, whose fingerprint a pool's can be held against."""
        self._sets = found_in(trainer)
        self.where = "" if self._sets is None else self._sets.where

    def images(self) -> ImageData | None:
        """Return the data; None if there are none. Data that hang on the trainer are read at the first call."""
        return self._given or self._found

    @cached_property
    def space(self) -> AnySpace | None:
        """Normalisation of the host's images: of its own `Normalize`, else that of the data given; None if unknown."""
        own = self._own_space
        if own is not None and self._sets is not None and space_of(self._sets.train) is not None:
            return own
        return own if self._given is None else self._given.space

    def like_views(self) -> Tensor | None:
        """Return some images in the space that the views are taken to have; None if the trainer itself shows it."""
        if self._given is None or self.space is not self._given.space:
            return None
        images = self._given.train_images
        return images[:: max(1, len(images) // COMPARED)]

    @cached_property
    def shape(self) -> tuple[int, ...] | None:
        """(c, h, w) of one image; None if there are no data."""
        if self._given is not None:
            return self._given.shape
        return None if self._few is None else tuple(self._few.shape[1:])

    @cached_property
    def _few(self) -> Tensor | None:
        """Some images of the data that hang on the trainer."""
        if self._sets is None:
            return None
        train = self._sets.train
        few = train if isinstance(train, tuple) else Subset(train, range(min(LOOKED_AT, len(train))))
        return checked(*gathered(few), "the training split")[0]

    @cached_property
    def _own_space(self) -> AnySpace | None:
        if self._sets is None or self._few is None:
            return None
        return fitting(space_of(self._sets.train), self._few)

    @cached_property
    def _found(self) -> ImageData | None:
        """The data that hang on the trainer, in the space of their own range if nobody says more."""
        if self._sets is None:
            return None
        return as_image_data(self._sets.train, test=self._sets.test, space=self._own_space or "range")


class Sets(NamedTuple):
    """The data that hang on a trainer, and the attribute that holds the training split."""

    where: str
    train: Any
    test: Any = None


def found_in(trainer: object) -> Sets | None:
    """Return the training split, and the test split if there is one, that a trainer or what it holds has.

    A split is a torch data set, a loader of one, or images and labels as two tensors or arrays. Of several the largest
    is taken. None if there is none.
    """
    splits: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, value in items_of(trainer):
        if name.rpartition(".")[0] in splits:  # the parts of a data set are no sets
            continue
        parts = dict(enumerate(value)) if isinstance(value, list | tuple) else {}
        for each, found in [(name, value), *((f"{name}.{part}", found) for part, found in parts.items())]:
            data = found.dataset if isinstance(found, DataLoader) else found
            if isinstance(data, Dataset) and not isinstance(data, IterableDataset) and _length(data) > 0:
                splits[each] = data
            elif isinstance(found, Tensor) and not found.requires_grad:  # real images need no gradient
                tensors[each] = found
            elif isinstance(found, np.ndarray) and found.dtype.kind in "fiu":
                tensors[each] = torch.from_numpy(found)
            elif (numbers := class_numbers(found)) is not None:
                tensors[each] = numbers
    splits = splits or _pairs(tensors)
    tests = [name for name in splits if any(part in name.lower() for part in TEST)]
    train = max((name for name in splits if name not in tests), key=lambda name: _length(splits[name]), default=None)
    return None if train is None else Sets(train, splits[train], next((splits[name] for name in tests), None))


def _length(value: Any) -> int:
    try:
        return len(value[0]) if isinstance(value, tuple) else len(value)
    except (TypeError, NotImplementedError):
        return 0


def _pairs(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return images (n, c, h, w) and the only integers (n,) of the same length, by the images' name."""
    labels = [value for value in tensors.values() if value.ndim == 1 and not value.is_floating_point()]
    pairs = {}
    for name, images in tensors.items():
        if images.ndim == 4 and images.is_floating_point():
            alike = [each for each in labels if len(each) == len(images)]
            if len(alike) == 1:
                pairs[name] = images, alike[0]
    return pairs
