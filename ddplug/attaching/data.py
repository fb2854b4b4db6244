"""The host's real data: those that the user gives, or those that hang on the trainer, read when they are needed."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor
from torch.utils.data import Subset

from ddplug.datasets.images import ImageData, as_image_data
from ddplug.datasets.spaces import AnySpace
from ddplug.datasets.splits import checked, gathered
from ddplug.datasets.torch_sets import fitting, found_in, space_of

LOOKED_AT = 16
"""Number of images by which a `Normalize` is checked, so that the whole data set need not be read."""
COMPARED = 256
"""Number of images that the first views are compared with."""


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
        held = vars(trainer).values() if hasattr(trainer, "__dict__") else ()
        self.known: ImageData | None = next((value for value in held if isinstance(value, ImageData)), None)
        """Data by name, whose fingerprint a pool's can be held against."""
        self._sets = found_in(trainer)
        self.where = "" if self._sets is None else self._sets.where
        if isinstance(given, ImageData | str):
            self.known = as_image_data(given)
        self._given = None if given is None or self.known is not None else as_image_data(given, space=space)

    def images(self) -> ImageData | None:
        """Return the data; None if there are none. Data that hang on the trainer are read at the first call."""
        return self.known or self._given or self._found

    @cached_property
    def space(self) -> AnySpace | None:
        """Normalisation of the host's images: of its own `Normalize`, else that of the data given; None if unknown."""
        own = self._own_space
        if own is not None and self._sets is not None and space_of(self._sets.train) is not None:
            return own
        given = self.known or self._given
        return given.space if given is not None else own

    def like_views(self) -> Tensor | None:
        """Return some images in the space that the views are taken to have; None if the trainer itself shows it."""
        given = self.known or self._given
        if given is None or self.space is not given.space:
            return None
        return given.train_images[:: max(1, len(given.train_images) // COMPARED)]

    @cached_property
    def shape(self) -> tuple[int, ...] | None:
        """(c, h, w) of one image; None if there are no data."""
        given = self.known or self._given
        if given is not None:
            return given.shape
        return None if self._few is None else tuple(self._few.shape[1:])

    @cached_property
    def _few(self) -> Tensor | None:
        """Some images of the data that hang on the trainer."""
        if self._sets is None:
            return None
        train = self._sets.train
        few = train if isinstance(train, tuple) else Subset(train, range(min(LOOKED_AT, len(train))))
        return checked(*gathered(few), "training")[0]

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
