"""torch data sets as tensors: their normalisation, read from their transforms, and their images without chance.

    space_of(data)                  # InputSpace of the `Normalize` in its transforms
    images, labels = items(data)    # every image once, random transforms left out

A host trains on randomly cropped and flipped images. A proxy needs each of them once; its training augments them. So
random transforms are left out, and a random crop becomes the central one. The host's data set and random state stay as
they are.
"""

from __future__ import annotations

import copy
import gc
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ddplug.datasets.spaces import NORMALIZATIONS, InputSpace

WRAPPED = ("dataset", "datasets", "_dataset", "base", "base_dataset", "subset", "ds")
"""Attributes in which a data set holds the one, or the list of those, that it reads."""
IMAGE_KEYS, LABEL_KEYS = ("image", "img", "images", "pixel_values"), ("label", "labels", "fine_label", "target")
_RANDOM = ("ColorJitter", "GaussianBlur", "AutoAugment", "RandAugment", "TrivialAugment", "AugMix", "Elastic", "Cutout")


def space_of(data: Any) -> InputSpace | None:
    """Return the input space that the transforms of a data set end in; None if they do not say.

    `Normalize(mean, std)` of torchvision (both versions) and of kornia is a space of that mean and std. Without one,
    `ToTensor` and its kind end in [0, 1].
    """
    space: InputSpace | None = None
    for step in _steps(data):
        kind = type(step).__name__
        if kind == "Normalize":
            mean, std = _numbers(step, "mean"), _numbers(step, "std")
            space = InputSpace.normalized(mean, std) if mean and std else None
        elif kind in ("ToTensor", "ToDtype", "ConvertImageDtype"):
            space = _UNIT
    return space


def normalised(channels: int) -> InputSpace | None:
    """Return the space of all `Normalize` for images of so many channels in this process, if they agree, else None."""
    found = set()
    for each in gc.get_objects():
        if type(each).__name__ != "Normalize":
            continue
        with suppress(AttributeError, TypeError, ValueError):  # another package's class of that name
            mean, std = (_numbers(each, name) for name in ("mean", "std"))
            found.add(InputSpace.normalized(*(ends * channels if len(ends) == 1 else ends for ends in (mean, std))))
    of_images = [space for space in found if space.channels == channels]
    return of_images[0] if len(of_images) == 1 else None


_UNIT = InputSpace((0.0,), (1.0,))
"""Intensities in [0, 1] of any number of channels, until that is known."""


def named(data: Any) -> tuple[str | None, tuple[str, ...] | None]:
    """Return the name and the class names that a torch data set is known by; None where it does not say."""
    classes: Any = None
    inner = data
    while isinstance(inner, Dataset):
        data = inner
        classes = getattr(data, "classes", classes)
        inner = _inner(data)
    name = type(data).__name__.lower()
    known = name if name in NORMALIZATIONS else "folder" if name in ("imagefolder", "datasetfolder") else None
    return known, tuple(map(str, classes)) if isinstance(classes, list | tuple) else None


def fitting(space: InputSpace | None, images: Tensor) -> InputSpace | None:
    """Return `space` with as many channels as `images` (n, c, h, w) have; None if it cannot be what they are in.

    A mean and std of one channel hold for all of them, as `Normalize` has it. Images that leave [0, 1] by more than a
    hundredth in that space are in another one.
    """
    channels = images.shape[1]
    if space is None:
        lowest, highest = images.aminmax()
        return InputSpace.unit(channels) if lowest >= 0 and 0.5 < highest <= 1 else None
    if space.channels == 1 != channels:
        space = InputSpace(space.mean * channels, space.std * channels)
    if space.channels != channels:
        return None
    lowest, highest = space.to_unit(images).aminmax()
    return space if lowest > -0.01 and highest < 1.01 else None


def range_space(images: Tensor) -> InputSpace:
    """Return the space in which `images` (n, c, h, w) reach from 0 to 1: that of numbers nobody can say more of."""
    lowest, highest = (float(value) for value in images.aminmax())
    width = (highest - lowest) or 1.0
    channels = images.shape[1]
    return InputSpace((-lowest / width,) * channels, (1 / width,) * channels)


def items(data: Any) -> list[tuple[Any, Any]]:
    """Return (image, label) of every item of a map-style data set, random transforms left out.

    Pictures and bytes become intensities in [0, 1]. Raises `TypeError` if there are no numbered pairs.
    """
    sized = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if not sized or isinstance(data, str | Mapping | Tensor | IterableDataset):
        raise TypeError("it has no numbered pairs")
    plain = without_chance(data)
    with _random_state_kept():
        return [_pair(plain[index]) for index in range(len(plain))]


def batches(data: Any, size: int, workers: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images (n, c, h, w) and labels (n,) of a map-style data set, in order, random transforms left out.

    Raises `TypeError` if an item is no (image, label) pair, `RuntimeError` for images of several sizes.
    """
    # The loader draws a seed, which must not come from the host's generator.
    loader = DataLoader(
        without_chance(data), size, num_workers=workers, collate_fn=_stacked, generator=torch.Generator()
    )
    with _random_state_kept():
        yield from loader


def _stacked(items: list[Any]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*map(_pair, items), strict=True)
    return torch.stack(images), torch.tensor(labels, device="cpu")


def without_chance(data: Any) -> Any:
    """Return a copy of a data set, down to the transforms but not to the images, whose random transforms are left out.

    A random crop becomes the central one. `data` itself stays as it is.
    """
    if isinstance(data, list | tuple):
        return type(data)(without_chance(part) for part in data)
    if not isinstance(data, Dataset) and not hasattr(data, "transform"):
        return data
    plain = copy.copy(data)
    for name in WRAPPED:
        if isinstance(inner := getattr(data, name, None), Dataset | list | tuple):
            _put(plain, name, without_chance(inner))
    for name in ("transform", "transforms"):
        if (transform := vars(data).get(name)) is not None:
            _put(plain, name, _certain(transform))
    return plain


def _put(holder: Any, name: str, value: Any) -> None:
    try:
        setattr(holder, name, value)
    except AttributeError:  # a property; what it shows stays
        return


def _certain(transform: Any) -> Any:
    """Return `transform` with its random parts replaced; itself if it has none."""
    kind = type(transform).__name__
    parts = _parts(transform)
    if kind == "StandardTransform":  # torchvision's pair of transforms of the image and of the label
        pair = copy.copy(transform)
        pair.transform = _certain(transform.transform) if transform.transform is not None else None
        return pair
    if kind.startswith("Random") or any(name in kind for name in _RANDOM):
        return _central(transform)
    if parts is None:
        return transform
    from torchvision.transforms import Compose

    return Compose([_certain(part) for part in parts])


def _central(transform: Any) -> Any:
    """Return what a random transform is on average: a crop in the middle, else nothing."""
    from torchvision.transforms import CenterCrop, Compose, Resize

    size = getattr(transform, "size", None)
    kind = type(transform).__name__
    if size is None or "Crop" not in kind:
        return _unchanged
    return Compose([Resize(max(size)), CenterCrop(size)]) if "Resized" in kind else CenterCrop(size)


def _unchanged(image: Any) -> Any:
    """Return `image`."""
    return image


def _parts(transform: Any) -> list[Any] | None:
    """Return the transforms that a composition holds; None if it is not one."""
    if isinstance(transform, torch.nn.Sequential):
        return list(transform)
    parts = getattr(transform, "transforms", None)
    return list(parts) if isinstance(parts, list | tuple | torch.nn.ModuleList) else None


def _steps(data: Any) -> Iterator[Any]:
    """Yield the transforms that an image of `data` goes through, in order; of several data sets, the first's."""
    if (inner := _inner(data)) is not None:
        yield from _steps(inner)
    if (transform := getattr(data, "transform", None)) is not None:
        yield from _flat(transform)


def _inner(data: Any) -> Any:
    """Return the data set that `data` reads, the first of several; None if it reads none."""
    held = (getattr(data, name, None) for name in WRAPPED)
    first = (each[0] if isinstance(each, list | tuple) and each else each for each in held)
    return next((each for each in first if isinstance(each, Dataset)), None)


def _flat(transform: Any) -> Iterator[Any]:
    parts = _parts(transform)
    if parts is None:
        yield transform
        return
    for part in parts:
        yield from _flat(part)


def _numbers(step: Any, name: str) -> list[float]:
    """Return the mean or std of a `Normalize`, of torchvision or of kornia."""
    value = getattr(step, name, None)
    value = getattr(step, "flags", {}).get(name) if value is None else value
    given = [] if value is None else torch.as_tensor(value, dtype=torch.float64).flatten().tolist()
    return [round(each, 7) for each in given]  # which float32 can tell apart, and 0.201 stays what it was written as


def _pair(item: Any) -> tuple[Any, Any]:
    """Return image and label of one item: a tuple that begins with them, or a dictionary that names them."""
    if isinstance(item, Mapping):
        keys = [next((key for key in known if key in item), None) for known in (IMAGE_KEYS, LABEL_KEYS)]
        if None not in keys:
            item = item[keys[0]], item[keys[1]]
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise TypeError(f"an item of it is {type(item).__name__}, not (image, label)")
    image, label = item[0], item[1]
    if not isinstance(image, Tensor):
        image = torch.from_numpy(np.array(image))  # of Pillow, (h, w) or (h, w, c)
        image = image[None] if image.ndim == 2 else image if image.shape[0] in (1, 3) else image.movedim(-1, 0)
    if image.dtype == torch.uint8:
        image = image.float() / 255
    return image, label.item() if hasattr(label, "item") else label


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Leave the random state of torch, NumPy and Python as it was: transforms of the user's own may draw."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
