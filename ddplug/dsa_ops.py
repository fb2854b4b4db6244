"""The pictures of DSA: each operation as a function of a batch and the parameters drawn for it.

Every function takes images (n, c, h, w) in any input space and one row of parameters per image, or a single row for
the whole batch. None of them clamps, loops over images, waits for the device or draws anything; all are
differentiable in the images. Where kornia's convention fits it is called; docs/augment.md says where it does not.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from kornia.geometry.transform import remap
from torch import Tensor


def color(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Brightness, then saturation, then contrast (each (m,)): the field's one colour operation.

    `brightness` is added to every value; `saturation` multiplies a pixel's distance from the plain mean of its own
    channels; `contrast` multiplies a value's distance from the mean of its own image.
    """
    added, saturated, contrasted = (_per_image(factor, images) for factor in (brightness, saturation, contrast))
    # Neither factor moves the mean that the next one is measured from, so the three steps are one weighted sum of
    # the image, its pixels' means and its own mean: two passes over the images instead of seven.
    pixel_mean = images.mean(dim=1, keepdim=True)
    image_mean = pixel_mean.mean(dim=(2, 3), keepdim=True)
    rest = contrasted * (1 - saturated) * pixel_mean + ((1 - contrasted) * image_mean + added)
    return torch.addcmul(rest, images, contrasted * saturated)


def crop(images: Tensor, shift: Tensor) -> Tensor:
    """Read every pixel `shift` (m, 2) whole rows and columns further down and right; zero beyond the border."""
    # Twice the shift over the size is a step of so many pixels in grid coordinates; "nearest" then copies exactly.
    height, width = images.shape[-2:]
    down, right = shift.to(_work_dtype(images)).unbind(dim=1)
    one, zero = torch.ones_like(down), torch.zeros_like(down)
    rows = (zero, one, 2 * down / height)
    columns = (one, zero, 2 * right / width)
    return _sample(images, columns, rows, mode="nearest", align_corners=False)


def cutout(images: Tensor, corner: Tensor, *, size: tuple[int, int]) -> Tensor:
    """Set a hole of `size` (rows, columns) to zero; its top left `corner` (m, 2) may lie outside the image."""
    top, left = rearrange(corner, "m yx -> yx m 1")
    row, column = (torch.arange(extent, device=images.device) for extent in images.shape[-2:])
    hole_rows = (row >= top) & (row < top + size[0])
    hole_columns = (column >= left) & (column < left + size[1])
    hole = rearrange(hole_rows, "m h -> m 1 h 1") & rearrange(hole_columns, "m w -> m 1 1 w")
    return images.masked_fill(hole, 0.0)


def flip(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror left and right the images whose `mirrored` (m,) is true."""
    forward = torch.arange(images.shape[3], device=images.device)
    columns = torch.where(rearrange(mirrored, "m -> m 1"), forward.flip(0), forward)
    # One pass, where choosing between the images and their mirror images would take three.
    return images.gather(3, rearrange(columns, "m w -> m 1 1 w").expand_as(images))


def scale(images: Tensor, factor: Tensor, *, align_corners: bool = False) -> Tensor:
    """Read the image at its coordinates times `factor` (m, 2: vertical, horizontal); above 1 makes it smaller."""
    vertical, horizontal = factor.to(_work_dtype(images)).unbind(dim=1)
    zero = torch.zeros_like(vertical)
    return _sample(images, (horizontal, zero, zero), (zero, vertical, zero), align_corners=align_corners)


def rotate(images: Tensor, degrees: Tensor, *, align_corners: bool = False) -> Tensor:
    """Turn the picture anticlockwise by `degrees` (m,) about its centre, in coordinates that run over [-1, 1].

    An image that is not square is therefore also sheared a little, as it is in the field's own code.
    """
    work = _work_dtype(images)
    angle = degrees.to(torch.promote_types(degrees.dtype, work)) / 180 * math.pi
    cosine, sine = torch.cos(angle).to(work), torch.sin(angle).to(work)
    zero = torch.zeros_like(cosine)
    return _sample(images, (cosine, -sine, zero), (sine, cosine, zero), align_corners=align_corners)


Affine = tuple[Tensor, Tensor, Tensor]


def _sample(images: Tensor, columns: Affine, rows: Affine, *, align_corners: bool, mode: str = "bilinear") -> Tensor:
    """The images read at affinely moved coordinates, zeros outside.

    `columns` holds the coefficients (each (m,)) of x, y and 1 in the horizontal coordinate that a pixel reads, `rows`
    those in the vertical one; -1 and 1 are the borders, or with `align_corners` the centres of the border pixels.
    """
    x = _coordinates(images, -1, align_corners)
    y = rearrange(_coordinates(images, -2, align_corners), "h -> h 1")
    # Broadcast sums, not a matrix product per image: several times faster, and one map serves a siamese batch.
    map_x, map_y = (_moved(coefficients, x, y) for coefficients in (columns, rows))
    # Half precision cannot tell the pixels of a large image apart, hence the wider working type.
    views: Tensor = remap(
        images.to(map_x.dtype), map_x, map_y, mode=mode, align_corners=align_corners, normalized_coordinates=True
    )
    return views.to(images.dtype)


def _moved(coefficients: Affine, x: Tensor, y: Tensor) -> Tensor:
    """One coordinate's map (m, h, w): a x + b y + c, rounded in the order of PyTorch's own `affine_grid`."""
    a, b, c = (rearrange(coefficient, "m -> m 1 1") for coefficient in coefficients)
    return torch.addcmul(a * x + c, b, y)


def _coordinates(images: Tensor, axis: int, align_corners: bool) -> Tensor:
    """Where the pixels of one axis lie in [-1, 1]."""
    pixels = images.shape[axis]
    positions = torch.linspace(-1, 1, pixels, dtype=_work_dtype(images), device=images.device)
    return positions if align_corners else positions * (pixels - 1) / pixels


def _work_dtype(images: Tensor) -> torch.dtype:
    return images.dtype if images.dtype == torch.float64 else torch.float32


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    """A row of numbers (m,) in the images' dtype, ready to broadcast over (n, c, h, w)."""
    return rearrange(values.to(images.dtype), "m -> m 1 1 1")
