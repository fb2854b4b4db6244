"""One draw of an augmentation for the batches that are compared with each other."""

from __future__ import annotations

from torch import Tensor

from ddplug.augment.dsa import DSA
from ddplug.augment.params import Params


class SharedDraw:
    """A DSA whose draw serves one real and one synthetic batch, in whichever order they come, before the next is made.

    Synthetic batches are those that need a gradient. A batch of a kind that the draw has already served, or of
    another size of image, gets a new one; so does every batch of a DSA that is not siamese, whose draws are per image.
    """

    def __init__(self, dsa: DSA) -> None:
        self.dsa = dsa
        self._params: Params | None = None
        self._served: set[tuple[bool, int, int]] = set()

    def __call__(self, images: Tensor) -> Tensor:
        """Views (n, c, h, w) of `images` (n, c, h, w)."""
        height, width = images.shape[-2:]
        kind, partner = ((synthetic, height, width) for synthetic in (images.requires_grad, not images.requires_grad))
        if self._params is None or not self.dsa.siamese or kind in self._served or partner not in self._served:
            self._params = self.dsa.draw(images)
            self._served.clear()
        self._served.add(kind)
        views: Tensor = self.dsa(images, params=self._params)
        return views
