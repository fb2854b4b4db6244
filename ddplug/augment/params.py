"""Parameters that DSA draws for a batch: readable, movable, and valid for another batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ddplug.errors import InputError

OPERATIONS: dict[str, tuple[str, ...]] = {
    "color": ("brightness", "saturation", "contrast"),
    "crop": ("crop",),
    "cutout": ("cutout",),
    "flip": ("flip",),
    "scale": ("scale",),
    "rotate": ("rotate",),
}
"""Every operation a strategy may name, and the fields of `Params` that hold what is drawn for it."""

NEED_SIZE = frozenset({"crop", "cutout"})
"""The operations that are drawn in whole pixels, and so fit one size of image."""


@dataclass(frozen=True, eq=False)
class Params:
    """Parameters of one batch: the operations, in the order they are applied, and their numbers.

    Every tensor has one row per image, or a single row that serves a batch of any size if `siamese`. Pairs are
    (vertical, horizontal). Fields of operations that were not drawn are None.
    """

    ops: tuple[str, ...]
    siamese: bool
    size: tuple[int, int] | None = None
    """Height and width of the images it was drawn for; crop and cutout fit no others."""
    brightness: Tensor | None = None
    """(m,) added to every value."""
    saturation: Tensor | None = None
    """(m,) factor on a pixel's distance from the mean of its channels."""
    contrast: Tensor | None = None
    """(m,) factor on a value's distance from the mean of its image."""
    crop: Tensor | None = None
    """(m, 2) whole pixels by which the window moves down and right."""
    cutout: Tensor | None = None
    """(m, 2) top row and left column of the hole; negative where it sticks out."""
    cutout_size: tuple[int, int] = (0, 0)
    """Rows and columns of the hole."""
    flip: Tensor | None = None
    """(m,) bool, True for a mirrored image."""
    scale: Tensor | None = None
    """(m, 2) factors on the coordinates: above 1 the picture gets smaller."""
    rotate: Tensor | None = None
    """(m,) degrees anticlockwise."""

    def __post_init__(self) -> None:
        check_known(self.ops)

    def tensors(self) -> dict[str, Tensor]:
        """The numbers that were drawn, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def __len__(self) -> int:
        """Rows: one per image, or 1 if siamese (or if nothing was drawn)."""
        return next((len(values) for values in self.tensors().values()), 1)

    def to(self, device: torch.device | str) -> Params:
        """The same parameters on another device; a move to a GPU does not wait for it."""
        target = torch.device(device)
        if all(values.device == target for values in self.tensors().values()):
            return self
        moved: dict[str, Any] = {name: _moved(values, target) for name, values in self.tensors().items()}
        return replace(self, **moved)

    def check_serves(self, images: Tensor) -> None:
        """Raise `InputError` unless these parameters fit `images` (n, c, h, w) in number and size."""
        if not self.siamese and self.tensors() and len(self) != len(images):
            raise InputError(
                f"parameters drawn for {len(self)} images cannot serve {len(images)}: "
                "draw them with siamese=True, or for these images"
            )
        if not NEED_SIZE.isdisjoint(self.ops) and self.size != tuple(images.shape[2:]):
            raise InputError(
                f"crop and cutout were drawn for images of size {self.size}, got {tuple(images.shape[2:])}; "
                "draw parameters for this size"
            )


def check_known(ops: tuple[str, ...]) -> None:
    """Raise `InputError` for an operation that DSA does not have."""
    unknown = [op for op in ops if op not in OPERATIONS]
    if unknown:
        raise InputError(f"unknown operation {', '.join(map(repr, unknown))}; known are {', '.join(OPERATIONS)}")


def _moved(values: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    # Only a copy from pinned memory is sure not to make the host wait.
    return values.pin_memory().to(device, non_blocking=True)
