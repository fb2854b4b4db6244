"""The layouts that data sets are found in on disk, read into bytes of pixels: torchvision's, image folders, .npz pairs.

Each reader either returns both splits or raises `DataError` with what is wrong and where; none of them guesses.
"""

from __future__ import annotations

import io
import sys
import unicodedata
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ddplug.datasets.splits import drawn_test
from ddplug.errors import DataError, DDPlugWarning
from ddplug.utils.output import Safe

T = TypeVar("T")
Pixels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


class Split(NamedTuple):
    """Images uint8 (n, c, h, w), labels int64 (n,) and the names they index."""

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]


def torchvision_splits(reader_name: str, folder: Path) -> tuple[Split, Split]:
    """Both splits of a folder of torchvision's batches, read by its own class `reader_name`, md5 check included."""
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    reader = getattr(datasets, reader_name)
    here: Any = type(reader.__name__, (reader,), {"base_folder": folder.name})  # whatever the folder was renamed to
    try:
        train, test = (here(str(folder.parent), train=train, download=False) for train in (True, False))
    except RuntimeError as error:
        sums = [*reader.train_list, *reader.test_list, [reader.meta["filename"], reader.meta["md5"]]]
        wrong = [file for file, md5 in sums if not check_integrity(str(folder / file), md5)]
        raise DataError(
            f"{folder} fails torchvision's md5 check ({error}): {', '.join(wrong)} missing or different from the "
            "original release. Download it again; a copy made of re-encoded images can be read as a folder of images "
            "(train/CLASS/*.png, test/CLASS/*.png)."
        ) from error
    names = tuple(train.classes)
    first, second = (
        Split(_channels_first(part.data), torch.tensor(part.targets, device="cpu"), names) for part in (train, test)
    )
    return first, second


def image_folder(where: Path, progress: bool) -> tuple[Split, Split] | None:
    """Return both splits of train/CLASS/* and test/CLASS/* (or val), or of CLASS/* alone; None for another layout.

    Classes are in the order of their names, pictures may lie deeper, and names that begin with a dot are left out. Of
    classes alone a tenth of each becomes the test split.
    """
    tests = [where / name for name in ("test", "val", "valid", "validation") if (where / name).is_dir()]
    split = (where / "train").is_dir()
    if split and not tests:
        return None
    parts = [where / "train", tests[0]] if split else [where]
    classes = [_classes(part) for part in parts]
    if not split:
        classes = [{name: folder for name, folder in classes[0].items() if _pictures(folder)}]
        if not classes[0]:
            return None
    names = tuple(classes[0])
    if not names or names != tuple(classes[-1]):
        raise DataError(
            f"{parts[0]} and {parts[-1]} must have the same class folders, found {names} and {tuple(classes[-1])}; "
            "add or rename folders until they agree"
        )
    if all(name.isdecimal() for name in names) and sorted(names, key=int) != list(names):
        warnings.warn(
            f"the class folders of {where} are numbers, and their order is that of text, as in torchvision: "
            f"{', '.join(names[:4])}, ... Class numbers are places in this order.",
            DDPlugWarning,
            stacklevel=2,
        )
    files: list[Path] = []
    origin: list[tuple[int, int]] = []
    for number, of_part in enumerate(classes):
        for label, folder in enumerate(of_part.values()):
            found = _pictures(folder)
            if not found:
                raise DataError(f"{folder} holds no image ({', '.join(_SUFFIXES)}); every class needs one")
            files += found
            origin += [(number, label)] * len(found)

    pixels = _read(files, progress)
    labels = torch.tensor([label for _, label in origin], device="cpu")
    in_test = torch.tensor([part == 1 for part, _ in origin], device="cpu") if split else drawn_test(labels, names)
    return Split(pixels[~in_test], labels[~in_test], names), Split(pixels[in_test], labels[in_test], names)


def class_folders(where: Path) -> Split | None:
    """Return all pictures of CLASS/*, classes in the order of their names; None if there are no pictures."""
    classes = {name: _pictures(folder) for name, folder in _classes(where).items()}
    classes = {name: files for name, files in classes.items() if files}
    if not classes:
        return None
    labels = [label for label, files in enumerate(classes.values()) for _ in files]
    pixels = _read([file for files in classes.values() for file in files], progress=False)
    return Split(pixels, torch.tensor(labels, device="cpu"), tuple(classes))


def _read(files: list[Path], progress: bool) -> Tensor:
    """Return the pixels of pictures of one size, uint8 (n, c, h, w)."""
    decoded: list[Pixels] = []
    for file in _track(files, "reading images", progress):
        decoded.append(_decode(file, str(file)))
        if decoded[-1].shape[:2] != decoded[0].shape[:2]:
            raise DataError(
                f"all images must be of one size (height, width): {files[0]} is {decoded[0].shape[:2]}, {file} is "
                f"{decoded[-1].shape[:2]}; resize them first"
            )
    if any(image.ndim == 3 for image in decoded):  # grey files among coloured ones become three equal channels
        decoded = [image if image.ndim == 3 else np.stack([image] * 3, axis=-1) for image in decoded]
    return _channels_first(np.stack(decoded))


def _classes(part: Path) -> dict[str, Path]:
    """Return the class folders of one split by name, in order; names are composed (NFC), as file systems differ."""
    folders = (folder for folder in part.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    return dict(sorted((unicodedata.normalize("NFC", folder.name), folder) for folder in folders))


def _pictures(folder: Path) -> list[Path]:
    """Return the pictures of a class, at any depth."""
    found = (file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES)
    return sorted(file for file in found if not any(p.startswith(".") for p in file.relative_to(folder).parts))


def npz_pair(where: Path) -> tuple[Path, Path] | None:
    """The files (train, test) in the folder `where`, or `where` and its partner; None if there are no .npz at all."""
    folder = where.parent if where.is_file() else where
    if where.is_file() and where.suffix != ".npz":
        return None
    trains, tests = (sorted(folder.glob(f"*{part}*.npz")) for part in ("train", "test"))
    if where.is_file():  # other pairs may lie beside this one
        trains = [where] if where in trains else [file for file in trains if _partner(file) == where.name]
        tests = [file for file in tests if trains and file.name == _partner(trains[0])]
    if not trains and not tests and where.is_dir():
        return None
    if len(trains) != 1 or len(tests) != 1:
        found = ", ".join(file.name for file in sorted(folder.glob("*.npz")))
        raise DataError(
            f"expected one *train*.npz and one *test*.npz in {folder}, found {found}; keep one pair there, or give the "
            "path of its train file"
        )
    return trains[0], tests[0]


def _partner(train_file: Path) -> str:
    return train_file.name.replace("train", "test")


def npz_split(file: Path, progress: bool) -> Split:
    """One split of JPEG files laid end to end in an .npz."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            jpeg, offsets, labels, names = (arrays[key] for key in ("jpeg", "offsets", "labels", "classes"))
    except (OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{file} is damaged or not of this layout ({error}); expected the arrays jpeg, offsets, labels and classes"
        ) from error
    count = labels.size
    fits = (
        jpeg.dtype == labels.dtype == np.uint8
        and offsets.dtype == np.int64
        and names.dtype.kind == "U"
        and jpeg.ndim == labels.ndim == names.ndim == 1
        and offsets.shape == (count + 1,)
        and count > 0
        and offsets[0] == 0
        and offsets[-1] == len(jpeg)
        and bool((np.diff(offsets) > 0).all())
        and int(labels.max()) < len(names)
    )
    if not fits:
        found = ", ".join(
            f"{name} {array.dtype} {array.shape}"
            for name, array in {"jpeg": jpeg, "offsets": offsets, "labels": labels, "classes": names}.items()
        )
        raise DataError(
            f"the arrays of {file} do not fit together: {found}. Expected uint8 bytes, int64 offsets rising from 0 to "
            "their number, one more than there are uint8 labels, and a name for each label; fetch the file again."
        )
    content = jpeg.tobytes()
    bounds = offsets.tolist()
    images: Pixels | None = None
    for index in _track(range(count), f"decoding {file.name}", progress):
        what = f"image {index} of {file}"
        image = _decode(io.BytesIO(content[bounds[index] : bounds[index + 1]]), what)
        images = np.empty((count, *image.shape), np.uint8) if images is None else images
        if image.shape != images.shape[1:]:
            raise DataError(
                f"all images must be of one size and kind (height, width, channels): the first is {images.shape[1:]}, "
                f"{what} is {image.shape}"
            )
        images[index] = image
    assert images is not None  # count > 0
    pixels = _channels_first(images)
    return Split(pixels, torch.from_numpy(labels).long(), tuple(str(name) for name in names))


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


def _channels_first(images: Pixels) -> Tensor:
    """Pixels (n, h, w) or (n, h, w, c) as a tensor (n, c, h, w)."""
    pixels = torch.from_numpy(images)
    return rearrange(pixels, "n h w -> n 1 h w" if pixels.ndim == 3 else "n h w c -> n c h w")


def _track(items: Sequence[T], what: str, progress: bool) -> Iterable[T]:
    """`items`, with a bar on stderr that says `what` and vanishes when it is done."""
    from rich.console import Console
    from rich.progress import track

    console = Console(file=Safe(sys.stderr))  # type: ignore[arg-type]
    return track(items, what, console=console, transient=True, disable=not progress)
