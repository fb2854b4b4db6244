"""Files of hosts besides one file of images and labels: files that belong together, and formed images."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, NamedTuple, NotRequired, TypedDict

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ddplug.errors import DataError
from ddplug.utils.reading import load_tensors
from ddplug.utils.records import between, read_record

_IMAGES = "images_"
_AVERAGED = "ema_"
"""FTD's prefix of files with a running average of the images."""
_FORMED = re.compile(r"data(_?[0-9]{1,9}|_best)?\.pt")


class _Arguments(TypedDict):
    factor: Annotated[int, between(1, 4096)]
    decode_type: NotRequired[str]


class Beside(NamedTuple):
    """Files that MTT and DATM write next to a file of images."""

    labels: Tensor
    """int64 (n,), or probabilities, float (n, classes)."""
    lr: float | None
    """The learning rate that was learned; MTT keeps it elsewhere."""
    whitened: bool
    """True if the host undid a whitening to show the images, so that the images themselves are whitened."""
    classes: Tensor | None
    """int64 (n,): where labels were learned, the class that each image was made for, one class after another."""


def is_images(path: Path) -> bool:
    """Return True if a file has the name of MTT's, DATM's or FTD's images (not of a picture of whitened ones)."""
    name = path.name.removeprefix(_AVERAGED)
    return name.startswith(_IMAGES) and not name.startswith(f"{_IMAGES}zca_")


def beside(path: Path) -> Beside:
    """The labels, learning rate and whitening that belong to `images_N.pt`; `DataError` if there are no labels."""
    before, _, name = path.name.partition(_IMAGES)
    labels = load_tensors(
        path.with_name(f"{before}labels_{name}"),
        f"file of labels for '{path}'",
        "the labels_N.pt that the host wrote with it",
    )
    classes = None
    if isinstance(labels, Tensor) and labels.ndim == 2 and labels.is_floating_point() and labels.numel():
        images, kinds = labels.shape
        if images % kinds == 0:
            classes = torch.arange(kinds, device="cpu").repeat_interleave(images // kinds)
        if not are_probabilities(labels):
            labels = labels.detach().float().softmax(1)
    rate = path.with_name(f"{before}lr_{name}")
    # The picture of the best images has the number of their iteration, so any picture counts.
    whitened = any(path.parent.glob(f"{_IMAGES}zca_*.pt"))
    return Beside(labels, _rate(rate) if rate.is_file() else None, whitened, classes)


def are_probabilities(labels: Tensor) -> bool:
    """Return True if the rows of (n, classes) are distributions."""
    if not labels.is_floating_point():
        return False
    sums = labels.detach().double().sum(1)
    return bool((labels >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3, rtol=0)


def is_formed(path: Path, record: object) -> bool:
    """Return True for a set of IDC or a fork: a bare pair in data.pt, or in dataN.pt beside the host's options."""
    named = path.name == "data.pt" or (_FORMED.fullmatch(path.name) is not None and _arguments(path).is_file())
    return named and isinstance(record, list | tuple) and len(record) == 2


def factor(path: Path) -> int:
    """The factor of IDC's `data.pt`, from the host's own `args.txt` beside it; `DataError` if that is not there."""
    arguments = _arguments(path)
    try:
        content = read_record(arguments, _Arguments, "the host's args.txt", "")
    except DataError as error:
        raise DataError(
            f"'{path}' is IDC's by its name, and does not say how many images are in each of its images: the host's "
            f"args.txt is not beside it, or cannot be read. Give the factor that it was distilled with: 2 (IDC) or 1 "
            f"(IDC-I). {error}"
        ) from error
    found, kind = int(content["factor"]), content.get("decode_type", "single")
    if kind != "single" and found > 1:
        raise DataError(f"{arguments} says decode_type {kind!r}; only 'single' can be taken apart here.")
    return found


def _arguments(path: Path) -> Path:
    """Return the file of the host's options: `args.txt`, or `args.log` in one fork."""
    other = path.with_name("args.log")
    return other if other.is_file() else path.with_name("args.txt")


def apart(images: Tensor, labels: Tensor, factor: int, *, formed: bool = False) -> tuple[Tensor, Tensor]:
    """Take images apart that hold others: (n, c, h, w) as (n * factor ** 2, c, h, w), and their labels.

    Each image is a grid of `factor` x `factor` smaller ones, which are enlarged bilinearly to its size. The parts of
    an image come one after another. Images that IDC has `formed` are clamped to [0, 1], and grey where the grid lacks
    pixels at the lower and right edge, as the host has it before each use. Raises `DataError` for a factor by which
    height and width of others cannot be divided, and for values of formed ones far from [0, 1].
    """
    height, width = images.shape[2:]
    if not 1 <= factor <= min(height, width) or (not formed and (height % factor or width % factor)):
        raise DataError(
            f"a factor is the number of images along the side of one, at least 1, and divides its height and width; "
            f"got {factor} for images of {height}x{width}."
        )
    if formed:
        low, high = (float(bound) for bound in images.aminmax())
        if not -0.5 <= low <= high <= 1.5:  # the host saves them as they are after a step, so a little outside
            raise DataError(
                f"IDC's images are intensities, about [0, 1], got values from {low:.3g} to {high:.3g}. Is this a set "
                "of another host? Store it as a dictionary of images and labels under another name than data.pt."
            )
        images = F.pad(images.clamp(0, 1), [0, -width % factor, 0, -height % factor], value=0.5)
    if factor == 1:
        return images, labels
    parts = rearrange(images, "n c (i h) (j w) -> (n i j) c h w", i=factor, j=factor)
    enlarged = F.interpolate(parts, size=(height, width), mode="bilinear", align_corners=False)
    return enlarged, labels.repeat_interleave(factor**2, dim=0)


def _rate(path: Path) -> float:
    value = load_tensors(path, "learning rate", "a number")
    try:
        rate = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise DataError(f"'{path}' holds {type(value).__name__}, expected one learning rate.") from error
    if not 0 < rate < math.inf:
        raise DataError(f"'{path}' holds the learning rate {rate}, expected a positive number.")
    return rate
