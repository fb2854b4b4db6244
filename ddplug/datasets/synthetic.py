"""Synthetic sets as files: images, labels and what the numbers mean, in one `.pt` that holds nothing but tensors.

Ours, and the files that hosts leave; the files that belong together there are found beside each other.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import torch
from torch import Tensor

from ddplug.datasets import host_files as hostfiles
from ddplug.datasets.layouts import class_folders
from ddplug.datasets.spaces import AnySpace, InputSpace
from ddplug.datasets.splits import checked_images, checked_labels, plain_labels
from ddplug.datasets.zca import space_from_json
from ddplug.errors import DataError, InputError
from ddplug.utils.files import user_path
from ddplug.utils.reading import load_tensors, write_tensors
from ddplug.utils.records import between, check_record

Meaning = Literal["normalized", "zca"]


class _Facts(TypedDict):
    """Entries of a set's file besides images and labels."""

    dataset: NotRequired[str | None]
    meaning: NotRequired[Meaning | None]
    lr: NotRequired[Annotated[float, between(1e-30)] | None]
    space: NotRequired[dict[str, Any] | None]


@dataclass(frozen=True, eq=False)
class SyntheticSet:
    """Images (n, c, h, w) and their labels, int64 (n,) or probabilities, float (n, classes).

    Images and probabilities become float32, class numbers int64, and all lose their graph.
    """

    images: Tensor
    labels: Tensor
    space: AnySpace | None = None
    """The meaning of the numbers in the images; None if the file does not say."""
    dataset: str | None = None
    meaning: Meaning | None = None
    """The kind of space, where `space` is None: the data set's own normalisation, or its ZCA."""
    lr: float | None = None
    """The learning rate that was learned with the images, if one was."""
    given_classes: Tensor | None = None
    """The class that each image was distilled for, int64 (n,), if labels were learned and it is known."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", self.images.detach().float())
        labels = self.labels.detach()
        object.__setattr__(self, "labels", labels.float() if labels.ndim == 2 else labels.long())

    @property
    def classes(self) -> Tensor:
        """The class of every image, int64 (n,): the one it was made for, else its label, the largest if it is soft."""
        if self.given_classes is not None:
            return self.given_classes
        return self.labels.argmax(1) if self.labels.ndim == 2 else self.labels


def save_set(synthetic: SyntheticSet, path: str | Path) -> None:
    """Write a set, by renaming, as a dictionary that `torch.load(..., weights_only=True)` reads, with a checksum.

    The same set gives the same bytes. Raises `FileError` if it cannot be written.
    """
    content = {
        "images": synthetic.images.cpu(),
        "labels": synthetic.labels.cpu(),
        "space": synthetic.space.to_json() if synthetic.space else None,
        "space_tensors": getattr(synthetic.space, "tensors", dict)(),  # a whitening has matrices
        "dataset": synthetic.dataset,
        "meaning": synthetic.meaning,
        "lr": synthetic.lr,
        "given_classes": synthetic.given_classes.cpu() if synthetic.given_classes is not None else None,
    }
    write_tensors(content, path)


def load_set(path: str | Path, *, factor: int | None = None) -> SyntheticSet:
    """Read a set: ours, a dictionary with images and labels, a pair of them, a folder, or what a host leaves.

    - DM, DC, DSA: `res_*.pt`, of which the last set is taken.
    - MTT, DATM: `images_N.pt`, with `labels_N.pt` beside it and, from DATM, `lr_N.pt`. Learned labels are logits
      there, and become probabilities here; an image's class is its place in the set, whatever its label became.
    - IDC: `data.pt`, whose images hold `factor` x `factor` smaller ones each; these are taken apart and enlarged, and
      clamped to [0, 1], as the host does. Without `factor` it is read from the host's own `args.txt` beside the file.
      Where that is, the `dataN.pt` and `data_best.pt` of forks (DREAM, DSDM, DANCE) are read in the same way.
      A bare pair of another name is taken for IDC's if a factor is given.
    - RDED, SRe2L: a folder of pictures CLASS/* or train/CLASS/*, all of one size, whose classes are in the order of
      their names.

    With a `factor`, images of all other files are taken apart and enlarged as well; what their numbers mean stays what
    the file says, and `factor` has to divide their height and width.

    Labels of a dictionary or a pair may be a list, one-hot, or soft, (n, classes), but only as probabilities. Read with
    `weights_only=True`, so nothing in the file is executed. Raises `DataError` for anything else, for a file of ours
    whose checksum differs, for a set without images, images that are not finite floats, labels that are no classes, and
    a factor that does not fit the images.
    """
    path = user_path(path)
    folder = path / "train" if (path / "train").is_dir() else path
    if folder.is_dir() and (pictures := class_folders(folder)) is not None:
        images, labels = pictures.images.float() / 255, pictures.labels
        if factor is not None:
            images, labels = hostfiles.apart(images, labels, factor)
        return SyntheticSet(images, labels, InputSpace.unit(images.shape[1]))
    record = load_tensors(
        path, "synthetic set", "a .pt file with images and labels, or a folder of pictures CLASS/*", _AGAIN
    )
    images, labels, extra = _unpack(record)
    if isinstance(record, Tensor) and hostfiles.is_images(path):
        learned = hostfiles.beside(path)
        images, labels, extra = record, learned.labels, {"lr": learned.lr}
        extra["meaning"] = "zca" if learned.whitened else None
        extra["given_classes"] = learned.classes
    if isinstance(labels, Tensor | list | tuple):
        with suppress(TypeError, ValueError):
            labels = plain_labels(labels)
    _check(path, record, images, labels)
    if isinstance(record, dict) and "accs_all_exps" in record:
        extra = {"meaning": "normalized"}  # DM, DC and DSA know nothing else
    check_record(extra, _Facts, f"'{path}', a synthetic set,", _AGAIN)
    space = _space(path, extra)
    images = images.detach().float()
    given = _classes(path, extra, len(images))
    if hostfiles.is_formed(path, record) or (factor is not None and not isinstance(record, dict | Tensor)):
        space = InputSpace.unit(images.shape[1])
        images, labels = hostfiles.apart(
            images, labels, hostfiles.factor(path) if factor is None else factor, formed=True
        )
    elif factor is not None:
        images, labels = hostfiles.apart(images, labels, factor)
        given = given.repeat_interleave(factor**2) if given is not None else None
    return SyntheticSet(
        images,
        labels,
        space,
        extra.get("dataset"),
        extra.get("meaning"),
        extra.get("lr"),
        given,
    )


def _check(path: Path, record: object, images: Any, labels: Any) -> None:
    if not (isinstance(images, Tensor) and isinstance(labels, Tensor) and images.ndim == 4 and labels.ndim in (1, 2)):
        keys = f"a dictionary with {', '.join(sorted(map(str, record))[:6])}" if isinstance(record, dict) else None
        held = keys or f"{type(record).__name__} of {_shape(images)} and {_shape(labels)}"
        raise DataError(
            f"'{path}' holds {held}, expected images (n, c, h, w) and labels (n,) or (n, classes): a dictionary with "
            "the keys images and labels, a pair, DM's results, or images_N.pt with labels_N.pt beside it."
        )
    checked_images(images, f"'{path}'")
    if labels.ndim == 1:
        checked_labels(labels, len(images), f"'{path}'")
    elif len(labels) != len(images) or not hostfiles.are_probabilities(labels):
        raise DataError(
            f"'{path}' holds labels of shape {tuple(labels.shape)} that are no probabilities (rows of numbers >= 0 "
            f"with sum 1) of {len(images)} images. If the images' labels are logits, store their softmax."
        )


_AGAIN = "Copy it again, or distil the set again."


def _classes(path: Path, extra: dict[str, Any], count: int) -> Tensor | None:
    found = extra.get("given_classes")
    if found is None:
        return None
    return checked_labels(torch.as_tensor(found), count, f"given_classes in '{path}'")


def _space(path: Path, extra: dict[str, Any]) -> AnySpace | None:
    try:
        return space_from_json(extra["space"], extra.get("space_tensors")) if extra.get("space") else None
    except InputError as error:
        raise DataError(f"'{path}' does not say what its images mean: {error}") from error


def _shape(found: object) -> str:
    return f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__


def _unpack(record: Any) -> tuple[Any, Any, dict[str, Any]]:
    if isinstance(record, dict) and "data" in record and not {"images", "labels"} <= set(record):
        record = record["data"]
    if isinstance(record, dict):
        return record.get("images"), record.get("labels"), record
    while isinstance(record, list | tuple) and record and not isinstance(record[0], Tensor):
        record = record[-1]
    if isinstance(record, list | tuple) and len(record) == 2:
        return record[0], record[1], {}
    return None, None, {}
