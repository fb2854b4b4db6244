"""The layouts that data sets are found in on disk, read into bytes of pixels: torchvision's, image folders, .npz pairs.

Each reader returns both splits, None where the layout is another one, or raises `DataError`; none of them guesses.
"""

from __future__ import annotations

import io
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ddplug.datasets.splits import drawn_test
from ddplug.errors import DataError, caution
from ddplug.utils.output import Safe, load_rich

T = TypeVar("T")
Pixels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_TESTS = ("test", "val", "valid", "validation")

TORCHVISION = {
    "cifar10": ("CIFAR10", "train"), "cifar100": ("CIFAR100", "train"), "svhn": ("SVHN", "split"),
    "mnist": ("MNIST", "train"), "fashionmnist": ("FashionMNIST", "train"), "stl10": ("STL10", "split"),
}  # fmt: skip
"""torchvision's class of each data set, and the argument by which it reads one split."""


class Split(NamedTuple):
    """Images uint8 (n, c, h, w), labels int64 (n,) and the names they index."""

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]


def torchvision_splits(name: str, root: Path, download: bool) -> tuple[Split, Split]:
    """Read both splits of a data set of `TORCHVISION` with torchvision's own class; raises what that raises.

    `root` is the folder that torchvision is given, or the one within it that holds the batches.
    """
    from torchvision import datasets

    kind, argument = TORCHVISION[name]
    reader = getattr(datasets, kind)
    root = root.parent if root.name == getattr(reader, "base_folder", None) else root
    parts = []
    for split in (True, False) if argument == "train" else ("train", "test"):
        part = reader(str(root), download=download, **{argument: split})
        labels = torch.as_tensor(part.targets if hasattr(part, "targets") else part.labels, device="cpu")
        names = getattr(part, "classes", range(int(labels.max()) + 1))
        parts.append(Split(_channels_first(torch.as_tensor(part.data)), labels.long(), tuple(map(str, names))))
    return parts[0], parts[1]


def image_folder(where: Path, progress: bool) -> tuple[Split, Split] | None:
    """Return both splits of train/CLASS/* and test/CLASS/* (or val), or of CLASS/* alone; None for another layout.

    Of classes alone a tenth of each becomes the test split.
    """
    if (where / "train").is_dir():
        train = class_folders(where / "train", progress)
        held_out = None if train is None else _held_out(where, train.class_names)
        test = class_folders(held_out, progress) if held_out is not None else None
        if train is None or test is None:
            return None
        if train.images.shape[1] != test.images.shape[1]:  # grey pictures beside coloured ones
            train, test = (part._replace(images=part.images.expand(-1, 3, -1, -1)) for part in (train, test))
        return train, test
    if (whole := class_folders(where, progress)) is None:
        return None
    in_test = drawn_test(whole.labels, whole.class_names)
    train, test = (Split(whole.images[rows], whole.labels[rows], whole.class_names) for rows in (~in_test, in_test))
    return train, test


def _held_out(where: Path, class_names: Sequence[str]) -> Path | None:
    """Return the folder of the test split: one that has classes, which the test pictures of a contest have not."""
    there = [where / name for name in _TESTS if (where / name).is_dir()]
    classes = set(class_names)
    labelled = (each for each in there if _annotations(each) or classes & {entry.name for entry in each.iterdir()})
    return next(labelled, there[0] if there else None)


def _annotations(where: Path) -> dict[str, list[Path]]:
    """Return the pictures in images/ by class, as val_annotations.txt says, line by line: picture, class, ..."""
    file = where / "val_annotations.txt"
    found: dict[str, list[Path]] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        picture, name, *_ = line.split("\t")
        found.setdefault(name, []).append(where / "images" / picture)
    return dict(sorted(found.items()))


def class_folders(where: Path, progress: bool = False) -> Split | None:
    """Return all pictures of CLASS/*, which are of one size; None if there are no pictures.

    Classes are in the order of their names, pictures may lie deeper, and names that begin with a dot are left out. The
    validation split of Tiny ImageNet has a file of its pictures' classes instead.
    """
    folders = {unicodedata.normalize("NFC", entry.name): entry for entry in where.iterdir()}  # file systems differ
    files = _annotations(where) or {
        name: _pictures(folder) for name, folder in sorted(folders.items()) if not name.startswith(".")
    }
    classes = {name: found for name, found in files.items() if found}
    if not classes:
        return None
    if all(name.isdecimal() for name in classes) and sorted(classes, key=int) != list(classes):
        caution(
            f"the class folders of {where} are numbers, and their order is that of text, as in torchvision: "
            f"{', '.join(list(classes)[:4])}, ... Class numbers are places in this order.",
        )
    labels = [label for label, found in enumerate(classes.values()) for _ in found]
    pixels = _read([(file, str(file)) for found in classes.values() for file in found], "reading images", progress)
    return Split(pixels, torch.tensor(labels, device="cpu"), tuple(classes))


def _pictures(folder: Path) -> list[Path]:
    """Return the pictures of a class, at any depth."""
    found = (file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES)
    return sorted(file for file in found if not any(p.startswith(".") for p in file.relative_to(folder).parts))


def npz_splits(where: Path, progress: bool) -> tuple[Split, Split] | None:
    """Return both splits of one *train*.npz and one *test*.npz; None if these are not in the folder `where`."""
    found = [sorted(where.glob(f"*{part}*.npz")) for part in ("train", "test")]
    if [len(files) for files in found] != [1, 1]:
        return None
    return _npz_split(found[0][0], progress), _npz_split(found[1][0], progress)


def _npz_split(file: Path, progress: bool) -> Split:
    """One split of JPEG files laid end to end in an .npz."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            jpeg, offsets, labels, names = (arrays[key] for key in ("jpeg", "offsets", "labels", "classes"))
        if len(offsets) != len(labels) + 1 or offsets[-1] != len(jpeg) or labels.max() >= len(names):
            raise ValueError("their lengths do not fit together")
        content = jpeg.tobytes()
    except Exception as error:  # NumPy's readers raise whatever a damaged file makes them stumble over
        raise DataError(
            f"{file} is damaged or not of this layout ({error}); expected the arrays jpeg, offsets, labels and classes"
        ) from error
    streams = [
        (io.BytesIO(content[start:end]), f"image {number} of {file}")
        for number, (start, end) in enumerate(pairwise(offsets.tolist()))
    ]
    pixels = _read(streams, f"decoding {file.name}", progress)
    return Split(pixels, torch.from_numpy(labels).long(), tuple(map(str, names)))


def _read(files: Sequence[tuple[Path | io.BytesIO, str]], what: str, progress: bool) -> Tensor:
    """Return the pixels of pictures of one size, each with its name, as uint8 (n, c, h, w)."""
    decoded: list[Pixels] = []
    for source, name in _track(files, what, progress):
        decoded.append(_decode(source, name))
        if decoded[-1].shape[:2] != decoded[0].shape[:2]:
            raise DataError(
                f"all images must be of one size (height, width): {files[0][1]} is {decoded[0].shape[:2]}, {name} is "
                f"{decoded[-1].shape[:2]}; resize them first, or let torchvision do so: "
                "as_image_data((ImageFolder(train, transform), ImageFolder(test, transform))) with transform = "
                "Compose([Resize(64), CenterCrop(64), ToTensor()])"
            )
    if any(image.ndim == 3 for image in decoded):  # grey files among coloured ones become three equal channels
        decoded = [image if image.ndim == 3 else np.stack([image] * 3, axis=-1) for image in decoded]
    return _channels_first(torch.from_numpy(np.stack(decoded)))


def _decode(source: Path | io.BytesIO, what: str) -> Pixels:
    """The pixels of one image file, uint8: (h, w) if it is grey, (h, w, 3) otherwise, without its opacity."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(source) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError("it has more than 8 bits per channel")
            return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{what} is not an image that can be read ({error}); replace or remove it") from error


def _channels_first(pixels: Tensor) -> Tensor:
    """Pixels (n, h, w), (n, h, w, 3) or (n, 3, h, w) as (n, c, h, w)."""
    if pixels.ndim == 3:
        return pixels[:, None]
    return rearrange(pixels, "n h w c -> n c h w") if pixels.shape[3] == 3 else pixels


def _track(items: Sequence[T], what: str, progress: bool) -> Iterable[T]:
    """`items`, with a bar on stderr that says `what` and vanishes when it is done."""
    load_rich()
    from rich.console import Console
    from rich.progress import track

    console = Console(file=Safe(sys.stderr))  # type: ignore[arg-type]
    return track(items, what, console=console, transient=True, disable=not progress)
