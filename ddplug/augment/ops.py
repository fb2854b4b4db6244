"""The pictures of DSA: each operation as a function of a batch and the parameters drawn for it.

Every function takes images (n, c, h, w) in any input space and one row of parameters per image, or a single row for
the whole batch. None of them clamps, loops over images, waits for the device or draws anything; all are
differentiable in the images. Where kornia's convention fits it is called; docs/augment.md says where it does not.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from kornia.geometry.transform import hflip, remap
from torch import Tensor


def color(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Brightness, then saturation, then contrast (each (m,)): one standard colour operation.

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
    x, y = _coordinates(images, align_corners=False)
    # Twice the shift over the size is a step of so many pixels in grid coordinates; "nearest" then copies exactly.
    height, width = images.shape[-2:]
    down, right = rearrange(shift.to(x.dtype), "m yx -> yx m 1 1")
    return _sample(images, x + 2 * right / width, y + 2 * down / height, mode="nearest", align_corners=False)


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
    if len(mirrored) == 1 and mirrored.device.type == "cpu":
        # One number on the CPU can be read without waiting for anything.
        return hflip(images) if bool(mirrored.item()) else images.clone()
    forward = torch.arange(images.shape[3], device=images.device)
    columns = torch.where(rearrange(mirrored, "m -> m 1"), forward.flip(0), forward)
    # One pass, where choosing between the images and their mirror images would take three.
    return images.gather(3, rearrange(columns, "m w -> m 1 1 w").expand_as(images))


def scale(images: Tensor, factor: Tensor, *, align_corners: bool = False) -> Tensor:
    """Read the image at its coordinates times `factor` (m, 2: vertical, horizontal); above 1 makes it smaller."""
    x, y = _coordinates(images, align_corners)
    vertical, horizontal = rearrange(factor.to(x.dtype), "m yx -> yx m 1 1")
    return _sample(images, horizontal * x, vertical * y, align_corners=align_corners)


def rotate(images: Tensor, degrees: Tensor, *, align_corners: bool = False) -> Tensor:
    """Turn the picture anticlockwise by `degrees` (m,) about its centre, in coordinates that run over [-1, 1].

    An image that is not square is therefore also sheared a little, as it is in the hosts' own code.
    """
    x, y = _coordinates(images, align_corners)
    angle = rearrange(degrees.to(torch.promote_types(degrees.dtype, x.dtype)), "m -> m 1 1") / 180 * math.pi
    cosine, sine = torch.cos(angle).to(x.dtype), torch.sin(angle).to(x.dtype)
    # Broadcast sums, not a matrix product per image as in `affine_grid`: several times faster, and as near the truth.
    map_x, map_y = torch.addcmul(cosine * x, -sine, y), torch.addcmul(sine * x, cosine, y)
    return _sample(images, map_x, map_y, align_corners=align_corners)


def _sample(images: Tensor, map_x: Tensor, map_y: Tensor, *, align_corners: bool, mode: str = "bilinear") -> Tensor:
    """The images read at the coordinates `map_x` and `map_y`, which broadcast to (m, h, w); zeros outside."""
    size = (max(len(map_x), len(map_y)), *images.shape[-2:])
    views: Tensor = remap(
        images.to(map_x.dtype),
        map_x.expand(size),
        map_y.expand(size),
        mode=mode,
        align_corners=align_corners,
        normalized_coordinates=True,
    )
    return views.to(images.dtype)


def _coordinates(images: Tensor, align_corners: bool) -> tuple[Tensor, Tensor]:
    """Coordinates of columns (1, 1, w) and rows (1, h, 1): -1 and 1 are borders or, aligned, border pixels' centres.

    In float32 or better, since half precision cannot tell the pixels of a large image apart.
    """
    dtype = images.dtype if images.dtype == torch.float64 else torch.float32
    rows, columns = (torch.linspace(-1, 1, extent, dtype=dtype, device=images.device) for extent in images.shape[-2:])
    if not align_corners:
        rows, columns = rows * (len(rows) - 1) / len(rows), columns * (len(columns) - 1) / len(columns)
    return rearrange(columns, "w -> 1 1 w"), rearrange(rows, "h -> 1 h 1")


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    """A row of numbers (m,) in the images' dtype, ready to broadcast over (n, c, h, w)."""
    return rearrange(values.to(images.dtype), "m -> m 1 1 1")
