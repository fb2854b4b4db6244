"""What every objective needs: images grouped by class, and labels that are such."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddplug.errors import InputError


@dataclass(frozen=True)
class Groups:
    """Images grouped by class, in a form that needs no loop over classes."""

    classes: Tensor
    """(c,) the labels present, ascending."""
    index: Tensor
    """(n,) int64, the row of `classes` that each image belongs to."""
    counts: Tensor
    """(c,) int64, images per class."""

    @property
    def one_image_per_class(self) -> bool:
        """Whether no class has a second image, so that CMI is identically zero."""
        return len(self.classes) == len(self.index)


def group(labels: Tensor, rows: int, device: torch.device | str) -> Groups:
    """Group `rows` images by `labels`, (rows,) of any integer dtype; raises `InputError` for labels that are not such.

    Classes may have any sizes, any names (non-negative integers) and any order.
    """
    labels = torch.as_tensor(labels)
    check_labels(labels, rows)
    # Where the labels are: on a GPU the number of classes is waited for, which labels on the CPU spare us.
    classes, index, counts = torch.unique(labels.to(torch.int64), return_inverse=True, return_counts=True)
    check_not_negative(classes[:1])
    return Groups(*(part.to(device, non_blocking=True) for part in (classes, index, counts)))


def check_not_negative(labels: Tensor) -> None:
    """Raise `InputError` if one of `labels` is below 0; waits for the device they are on."""
    if (labels < 0).any():
        raise InputError(
            f"labels must be class numbers >= 0, got {int(labels.min())}. Images without a class (often marked -1) "
            "have no centroid: leave them out."
        )


def check_labels(labels: Tensor, rows: int) -> None:
    """Raise `InputError` unless `labels` is a (rows,) tensor of an integer dtype and rows > 0; reads no value."""
    if rows == 0:
        raise InputError("got an empty batch (0 images), expected at least one image: CMI of nothing is not defined.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        hint = "labels.argmax(1)" if labels.ndim == 2 else "labels.long()"
        raise InputError(
            f"labels must be integers (one class number per image), got {labels.dtype} of shape "
            f"{tuple(labels.shape)}. If they are soft or learned, pass the class each image was made for, e.g. {hint}."
        )
    if labels.ndim != 1 or len(labels) != rows:
        raise InputError(
            f"got labels of shape {tuple(labels.shape)} for {rows} images, expected shape ({rows},): "
            "one label per image (per view, if every image has several)."
        )
