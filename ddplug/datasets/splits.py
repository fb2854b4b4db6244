"""One split of anybody's data set, as tensors: images and labels gathered, and looked over; a test split drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from ddplug.datasets.torch_sets import items
from ddplug.errors import DataError

_EXPECTED = (
    "expected a pair, images (n, c, h, w) and labels (n,), as tensors or arrays; a TensorDataset of these two; or a "
    "map-style torch data set of (image, label) pairs."
)


def gathered(data: Any) -> tuple[Tensor, Tensor]:
    """Images (n, c, h, w) and labels (n,) of a pair of them, a `TensorDataset`, or a data set of (image, label) pairs.

    They come back as they are, of whatever dtype and shape. Raises `DataError` for anything else.
    """
    held = data.tensors if isinstance(data, TensorDataset) else data
    try:
        if isinstance(held, tuple | list) and held and isinstance(held[0], Tensor | np.ndarray):
            images, labels = held
            return _tensor(images), _tensor(labels)
        pairs = items(data)
        return torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs], device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"no images and labels could be made of {type(data).__name__} ({str(error).partition(chr(10))[0]}); "
            f"{_EXPECTED} Images are of one size: in torchvision, by transform=Resize((height, width))."
        ) from error


def _tensor(values: Any) -> Tensor:
    """Return `values` as a tensor, wherever torch makes new tensors by default."""
    return values if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")


def plain_labels(labels: Any) -> Tensor:
    """Return labels as a tensor: numbers (n, 1) as (n,), and one-hot rows (n, classes) as the classes' numbers (n,).

    Raises `TypeError` or `ValueError` if they are no numbers.
    """
    given = _tensor(labels).detach()
    given = given if given.layout == torch.strided else given.to_dense()
    if given.ndim != 2 or not given.numel():
        return given
    if given.shape[1] == 1:
        return given[:, 0]
    one_hot = bool(((given == 0) | (given == 1)).all() & ((given != 0).sum(1) == 1).all())
    return (given != 0).int().argmax(1) if one_hot else given


def checked(images: Tensor, labels: Any, what: str) -> tuple[Tensor, Tensor]:
    """Images as float32 (n, c, h, w) and labels as int64 (n,), on the images' device.

    Args:
        images: finite, of any floating dtype, also (n, h, w, c); or bytes, which become intensities in [0, 1].
        labels: class numbers from 0 on, as whole numbers of any type; or one-hot.
        what: the data's name, for errors.

    Raises:
        DataError: they are something else; it says what to write.
    """
    images = checked_images(_of_pictures(images), what)
    return images, checked_labels(plain_labels(labels), len(images), what).to(images.device)


def _of_pictures(images: Tensor) -> Tensor:
    """Return images (n, h, w, c), and bytes also (n, h, w), as (n, c, h, w); bytes as intensities in [0, 1]."""
    if _is_channels_last(images):
        images = images.permute(0, 3, 1, 2)
    if images.dtype != torch.uint8:
        return images
    return (images[:, None] if images.ndim == 3 else images).float() / 255


def _is_channels_last(images: Tensor) -> bool:
    return images.ndim == 4 and images.shape[1] > 4 and images.shape[3] in (1, 3, 4)


def checked_images(images: Tensor, what: str) -> Tensor:
    """Return images as float32 (n, c, h, w); `DataError` for others."""
    if not images.is_floating_point():
        raise DataError(
            f"the images of {what} are {images.dtype}, expected floats whose meaning a space says. Of bytes, "
            "images.float() / 255 makes intensities in [0, 1], which are space=InputSpace.unit(channels)."
        )
    if images.ndim != 4 or not images.numel():
        raise DataError(f"the images of {what} have shape {tuple(images.shape)}, expected (n, c, h, w), n at least 1.")
    if _is_channels_last(images):
        raise DataError(
            f"the images of {what} have shape {tuple(images.shape)}, which is (n, h, w, c), expected (n, c, h, w): "
            "images.permute(0, 3, 1, 2)."
        )
    images = images.detach().float()
    if not torch.isfinite(images).all():
        raise DataError(f"the images of {what} hold numbers that are not finite; take these images out.")
    return images


def checked_labels(labels: Tensor, count: int, what: str) -> Tensor:
    """Return labels as int64 (n,) for `count` images; `DataError` for others."""
    if labels.shape != (count,):
        raise DataError(
            f"the labels of {what} have shape {tuple(labels.shape)}, expected ({count},), the number of each image's "
            "class; of probabilities, labels.argmax(1) makes these."
        )
    numbers = labels.detach().real.to(torch.int64)
    whole = not labels.is_floating_point() or bool((numbers == labels).all())  # unsigned types cannot be compared
    if labels.dtype == torch.bool or labels.is_complex() or not whole or numbers.min() < 0:
        raise DataError(
            f"the labels of {what} are {labels[:4].tolist()}, ... of type {labels.dtype}, expected class numbers, "
            "whole and from 0 on."
        )
    return numbers


def drawn_test(labels: Tensor, class_names: tuple[str, ...], part: int = 10) -> Tensor:
    """Return a mask of test images, bool (n,): one in `part` of each class, rounded down, but at least one.

    Drawn by a generator of its own, the same ones every time. Raises `DataError` if a class has only one image.
    """
    generator = torch.Generator().manual_seed(0)
    chosen = torch.zeros(len(labels), dtype=torch.bool, device="cpu")
    for label, name in enumerate(class_names):
        members = (labels.cpu() == label).nonzero().flatten()
        if len(members) == 1:
            raise DataError(
                f"class {name!r} has one image, which cannot train and test; give a test split: (train, test), or the "
                "folders train and test."
            )
        order = torch.randperm(len(members), generator=generator, device="cpu")
        chosen[members[order[: max(1, len(members) // part)]]] = True
    return chosen.to(labels.device)
