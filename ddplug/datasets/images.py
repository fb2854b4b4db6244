"""Real data sets, as tensors in a known input space, from the layouts they are commonly found in.

`load` reads the digits that ship with scikit-learn, shapes that are drawn, torchvision's data sets, and folders of
images. It downloads nothing unless it is asked to, and names the layouts that it expects of what it does not recognise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ddplug.datasets import layouts, shapes, splits, torch_sets
from ddplug.datasets.layouts import Split
from ddplug.datasets.spaces import NORMALIZATIONS, AnySpace, InputSpace, named_space
from ddplug.errors import DataError
from ddplug.utils.digest import short_sha256, tensor_bytes
from ddplug.utils.files import cache_folder, user_path


@dataclass(frozen=True, eq=False)
class ImageData:
    """A labelled data set with a fixed train/test split.

    Images are float32 (n, c, h, w), already in `space`; labels are int64 (n,), indices into `class_names`.
    """

    name: str
    class_names: tuple[str, ...]
    space: AnySpace
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (c, h, w) of one image."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device | str) -> ImageData:
        """The same data with all four tensors on `device`."""
        return replace(
            self,
            train_images=self.train_images.to(device),
            train_labels=self.train_labels.to(device),
            test_images=self.test_images.to(device),
            test_labels=self.test_labels.to(device),
        )

    def to_space(self, space: AnySpace) -> ImageData:
        """The same data in another input space, e.g. whitened; `InputError` if there is no conversion."""
        return replace(
            self,
            space=space,
            train_images=self.space.convert(self.train_images, space),
            test_images=self.space.convert(self.test_images, space),
        )

    def fingerprint(self) -> str:
        """Return sixteen hex digits that are equal for equal data, in any order, in every run, on every device.

        They are made of the name, the shape, the class names, and every image with its label in both splits. Images
        are taken as intensities, so that they are equal in every input space. Computed once.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        parts: list[bytes | memoryview] = [repr((self.name, self.shape, self.class_names)).encode()]
        for images, labels in ((self.train_images, self.train_labels), (self.test_images, self.test_labels)):
            parts += [b"split", *sorted(_digests(self.space, images, labels))]
        return short_sha256(parts)


def _digests(space: AnySpace, images: Tensor, labels: Tensor) -> Iterator[bytes]:
    """Yield a digest of each image (c, h, w) with its label.

    Intensities are rounded to 240 levels. The edges between these lie off n / 255, n / 256 and n / 16, so that the
    last bits of the normalisation's arithmetic do not matter for images that were bytes.
    """
    for some, of in zip(torch.split(images, 1024), torch.split(labels, 1024), strict=True):
        levels = (space.to_unit(some.cpu()) * 240 + 0.155).round().to(torch.int16)
        for level, label in zip(levels, of.tolist(), strict=True):
            yield hashlib.blake2b(tensor_bytes(level), digest_size=16, salt=label.to_bytes(8, "little")).digest()


def load(name: str, path: str | Path | None = None, *, download: bool = False, progress: bool = True) -> ImageData:
    """A data set by name, read from `path`, with a progress bar on stderr where decoding takes a while.

    - "digits": the 1797 handwritten digits, 1 x 8 x 8, that ship with scikit-learn, split once and for all into about
      1200 and 600, every class alike; no path.
    - "shapes": eight figures of any colour in any place, 3 x 32 x 32, drawn by a generator: 500 of each to
      train on and 100 to test; no path.
    - "cifar10", "cifar100", "svhn", "mnist", "fashionmnist", "stl10": `path` is the folder that torchvision's own class
      is given, and reads; without one, a folder of the user's cache. Or it is a "folder". Normalised by the usual
      constants.
    - "folder": any folder of images train/CLASS/* and test/CLASS/* (or val/CLASS/*), or CLASS/* alone, of which a tenth
      of each class becomes the test split; all of one size, and grey if all of them are. Opacity is dropped. Or one
      *train*.npz and one *test*.npz with the arrays jpeg, uint8, all files end to end; offsets, int64 (n + 1,); labels,
      uint8 (n,); and classes. Normalised by the mean and std of the train split. A name with a slash is a path.

    With `download`, torchvision fetches what is missing of its own data sets.

    Raises `DataError` for an unknown name, a missing package, a layout that is none of these, a damaged file, or
    content that is not what the name says.
    """
    if path is None and ("/" in name or name.startswith(".")) and user_path(name).is_dir():
        name, path = "folder", name
    if name not in ("shapes", "digits", "folder", *layouts.TORCHVISION):
        known = ", ".join(layouts.TORCHVISION)
        raise DataError(f"unknown data set {name!r}; expected shapes, digits, {known}, or a folder")
    if name in ("shapes", "digits"):
        if path is not None:
            raise DataError(f"{name} are drawn or ship with scikit-learn, and take no path, got {path}; leave it out")
        return _shapes() if name == "shapes" else _digits()
    if name == "folder" and path is None:
        raise DataError("the data set 'folder' needs its path: --data-path FOLDER, or load('folder', path)")
    where = user_path(path if path is not None else cache_folder() / "data").resolve()
    found = _splits(name, where, download, progress)
    return _image_data(name, *found, NORMALIZATIONS.get(name))


def as_image_data(
    data: object,
    *,
    name: str | None = None,
    class_names: Sequence[str] | None = None,
    space: AnySpace | str | None = None,
    test: object = None,
) -> ImageData:
    """An `ImageData` of what people have: tensors, torch data sets, or the name of a data set.

    A function beside `load` and no method, as it also loads, and hands back what is an `ImageData` already.

    Args:
        data: an `ImageData`, returned as it is; "NAME" or "NAME:PATH", as `load` takes them; or a split: a pair of
            images (n, c, h, w) or (n, h, w, c), of any floating dtype or bytes, and labels (n,), of any integer dtype,
            as tensors or arrays; a `TensorDataset` of these two; a map-style torch data set of (image, label) pairs,
            which is read once. Or a pair of two such splits, for training and for testing. Bytes, also (n, h, w),
            become images in `space`. Tensors that are float32 and int64 already are not copied.
        name: of the data, which pools trained on them record; that of a known torch data set, or "data", by default.
        class_names: of classes 0, 1, ...; those of the torch data set, or their numbers, by default.
        space: the meaning of the images' numbers: `InputSpace.unit(3)` or "unit" for intensities in [0, 1],
            `InputSpace.normalized(mean, std)` or "normalized:cifar10" for what torchvision's `Normalize` made of these,
            "range" if only their lowest and highest number are known. By default what the data set's own transforms
            say, or [0, 1] if the images lie there.
        test: the test split, if `data` is the training split. Without any, a tenth of each class, rounded down but at
            least one image, becomes the test split and is trained on no more: the same images every time, drawn by an
            own generator.

    The result is on the device of the training images.

    Raises:
        DataError: no such data; images or labels of another dtype, shape or length; labels that are no classes, or a
            class without training images; images that are not finite or of two shapes; a space that is missing or of
            another number of channels; or something is said that the data say themselves. What `load` raises.
    """
    if isinstance(data, ImageData | str):
        said = {"name": name, "class_names": class_names, "test": test, "space": space}
        if isinstance(data, ImageData) and space == data.space:
            del said["space"]
        if given := [f"{key}=" for key, value in said.items() if value is not None]:
            what = f"the data set {data!r}" if isinstance(data, str) else f"an ImageData of {data.name}"
            raise DataError(
                f"{what} says itself what {' and '.join(given)} would say; leave it out. Another space or name has "
                "data.to_space(space) or dataclasses.replace(data, name=...)."
            )
        if isinstance(data, ImageData):
            return data
        known, colon, path = data.partition(":")
        return load(known, path if colon else None)
    train = data
    if isinstance(data, tuple | list) and len(data) == 2 and not isinstance(data[0], Tensor | np.ndarray):
        if test is not None:
            raise DataError("the data are two splits, and test= is a third; give the test split once.")
        train, test = data
    held = splits.gathered(train)
    images, labels = splits.checked(*held, "the training split")
    known_as, classes = torch_sets.named(train)
    name, class_names = name or known_as or "data", class_names or classes
    if space is None:
        space = torch_sets.fitting(torch_sets.space_of(train), images)
    elif space == "range":
        space = torch_sets.range_space(images)
    elif isinstance(space, str):
        space = named_space(space, images.shape[1])
    _check_space(space, images)
    assert space is not None  # _check_space sees to it
    images = _of_bytes(held[0], images, space)
    count, present = int(labels.max()) + 1, set(labels.tolist())
    if class_names is not None:
        count = max(count, len(class_names))  # labels beyond the names are the next check's
    if len(present) < count:
        raise DataError(
            f"class {min(set(range(len(present) + 1)) - present)} has no training images; expected some of each of "
            f"{count} classes, numbered from 0 without gaps."
        )
    names = tuple(class_names) if class_names is not None else tuple(map(str, range(count)))
    _check_classes(labels, names, "training")
    if test is None:
        in_test = splits.drawn_test(labels, names)
        test_images, test_labels = images[in_test], labels[in_test]
        images, labels = images[~in_test], labels[~in_test]
    else:
        held = splits.gathered(test)
        test_images, test_labels = splits.checked(*held, "the test split")
        test_images = _of_bytes(held[0], test_images, space)
        _check_classes(test_labels, names, "test")
        if test_images.shape[1:] != images.shape[1:]:
            raise DataError(
                f"the training images have shape {tuple(images.shape[1:])} and the test images "
                f"{tuple(test_images.shape[1:])}; resize them to one."
            )
        test_images, test_labels = test_images.to(images.device), test_labels.to(images.device)
    return ImageData(name, names, space, images, labels, test_images, test_labels)


def random_real(data: ImageData, ipc: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`ipc` (images per class) different training images of every class: where a synthetic set commonly starts.

    Returns copies of the images, (classes * ipc, c, h, w), and their labels, int64 (classes * ipc,), sorted by class,
    on the data's device. Raises `DataError` if `ipc` is not positive or a class has fewer images.
    """
    if ipc < 1:
        raise DataError(f"ipc is the number of images per class, at least 1, got {ipc}")
    chosen = []
    for label, class_name in enumerate(data.class_names):
        members = (data.train_labels == label).nonzero().flatten()
        if len(members) < ipc:
            raise DataError(
                f"class {class_name!r} of {data.name} has {len(members)} training images, fewer than ipc={ipc}; "
                "use a smaller ipc"
            )
        order = torch.randperm(len(members), generator=generator, device=generator.device)
        chosen.append(members[order[:ipc].to(members.device)])
    indices = torch.cat(chosen)
    return data.train_images[indices], data.train_labels[indices]


def _check_space(space: AnySpace | None, images: Tensor) -> None:
    channels = images.shape[1]
    if space is None:
        raise DataError(
            "the normalisation of the images is not known: they leave [0, 1], and no Normalize(mean, std) among their "
            f"transforms explains that. Give InputSpace.normalized(mean, std), of {channels} channels, as input_space= "
            "of attach or space= of as_image_data, which also takes 'range' if only their range is known."
        )
    if getattr(space, "channels", None) != channels:
        raise DataError(
            f"the images have {channels} channels and space is {space}, expected an input space of as many channels; "
            "images are (n, c, h, w), which images.permute(0, 3, 1, 2) makes of (n, h, w, c)."
        )
    lowest, highest = (float(end) for end in images.aminmax())
    if space == InputSpace.unit(channels) and not -0.5 <= lowest <= highest <= 1.5:
        raise DataError(
            f"the images run from {lowest:.3g} to {highest:.3g}, and space is {space}. Of numbers up to 255, images / "
            "255 makes intensities; if they were normalised, give space=InputSpace.normalized(mean, std)."
        )


def _of_bytes(given: Tensor, intensities: Tensor, space: AnySpace) -> Tensor:
    """Return the intensities of images in `space` if bytes were given, whose meaning is known; else as they are."""
    return space.from_unit(intensities) if given.dtype == torch.uint8 else intensities


def _check_classes(labels: Tensor, names: tuple[str, ...], what: str) -> None:
    if labels.max() >= len(names):
        raise DataError(
            f"the {what} labels go up to {int(labels.max())}, but there are {len(names)} classes, "
            f"{', '.join(names[:6])}{', ...' if len(names) > 6 else ''}; labels are class numbers from 0 on."
        )


def _shapes() -> ImageData:
    train, test = (Split(*shapes.draw(count, seed), tuple(shapes.FIGURES)) for count, seed in ((500, 0), (100, 1)))
    return _image_data("shapes", train, test)


def _digits() -> ImageData:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("digits come with scikit-learn, which is not installed: pip install 'ddplug[demo]'") from error
    bunch = load_digits()
    images = rearrange(torch.from_numpy(bunch.images).float() / 16, "n h w -> n 1 h w")
    labels = torch.from_numpy(bunch.target).long()
    in_test = splits.drawn_test(labels, tuple("0123456789"), part=3)
    train, test = (Split(images[rows], labels[rows], tuple("0123456789")) for rows in (~in_test, in_test))
    return _image_data("digits", train, test)


def _splits(name: str, where: Path, download: bool, progress: bool) -> tuple[Split, Split]:
    """Read both splits of a data set from a folder of any layout."""
    found, why = None, "there is no such folder"
    if where.is_dir() and not download:
        why = f"found there: {', '.join(sorted(entry.name for entry in where.iterdir())[:12]) or 'nothing'}"
        found = layouts.image_folder(where, progress) if (where / "train").is_dir() or name == "folder" else None
        found = found or layouts.npz_splits(where, progress)
    if found is None and name in layouts.TORCHVISION:
        try:
            return layouts.torchvision_splits(name, where, download)
        except Exception as error:  # torchvision's readers raise whatever a damaged file makes them stumble over
            said = " ".join(str(error).split()).partition(". ")[0]
            if download:
                raise DataError(
                    f"{name} could not be fetched to '{where}' ({said}). Check the connection, or put the "
                    "files there by hand."
                ) from error
            why = f"{said}; {why}"
    if found is None:
        expected = (
            "a folder with train/CLASS/*.png and test/CLASS/*.png (or val/), or with CLASS/*.png alone, all of one "
            "size; or one *train*.npz and one *test*.npz"
        )
        if name in layouts.TORCHVISION:
            expected = (
                f"torchvision's files, which the same command with --download fetches, or load({name!r}, path, "
                f"download=True); or {expected}"
            )
        raise DataError(f"no {name} could be read from '{where}' ({why}). Expected {expected}.")
    if name in layouts.TORCHVISION and len(found[0].class_names) != (100 if name == "cifar100" else 10):
        raise DataError(
            f"'{where}' is not {name}: it has {len(found[0].class_names)} classes. Name the data set that it is, or "
            "load it as 'folder'."
        )
    return found


def _image_data(name: str, train: Split, test: Split, space: InputSpace | None = None) -> ImageData:
    """The data set of two splits of bytes or intensities, in `space`, or else normalised by its own mean and std."""
    if train.class_names != test.class_names or train.images.shape[1:] != test.images.shape[1:]:
        shown = " and ".join(f"{part.class_names} of {tuple(part.images.shape[1:])}" for part in (train, test))
        raise DataError(f"the train and test splits of {name} must have the same classes and size, found {shown}")
    space = space or _measured_space(train.images)
    if space.channels != train.images.shape[1]:
        raise DataError(
            f"images of {name} have {space.channels} channels, found {train.images.shape[1]}; load them as 'folder'."
        )
    return ImageData(
        name=name,
        class_names=train.class_names,
        space=space,
        train_images=_in_space(train.images, space),
        train_labels=train.labels,
        test_images=_in_space(test.images, space),
        test_labels=test.labels,
    )


def _in_space(pixels: Tensor, space: InputSpace) -> Tensor:
    """Bytes or intensities (n, c, h, w) as float32 in `space`; by pieces, so that a large set is in memory once."""
    images = torch.empty(pixels.shape, dtype=torch.float32, device="cpu")
    for piece, target in zip(torch.split(pixels, 4096), torch.split(images, 4096), strict=True):
        target.copy_(space.from_unit(piece if piece.is_floating_point() else piece.float() / 255))
    return images


def _measured_space(images: Tensor) -> InputSpace:
    """The space that gives `images`, uint8 or intensities, mean 0 and std 1 per channel.

    Rounded to four decimals, as the usual constants are: the order of a sum, which differs between machines, must
    not make two spaces out of one.
    """
    scale = 1.0 if images.is_floating_point() else 255.0
    by_channel = rearrange(images, "n c h w -> c (n h w)")
    moments = [(float(c.mean()), float(c.std())) for c in (channel.double() / scale for channel in by_channel)]
    if any(std < 1e-4 for _, std in moments):
        raise DataError("a channel has one and the same value in every training image; there is nothing to learn there")
    return InputSpace.normalized([round(mean, 4) for mean, _ in moments], [round(std, 4) for _, std in moments])
