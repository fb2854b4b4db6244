"""Synthetic sets as files: images, labels and what the numbers mean, in one `.pt` that holds nothing but tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddplug.errors import DataError, SpaceError
from ddplug.files import replacing
from ddplug.spaces import AnySpace, space_from_json


@dataclass(frozen=True, eq=False)
class SyntheticSet:
    """Images (n, c, h, w) floats and labels (n,) int64 in an input space, which is None if the file does not say."""

    images: Tensor
    labels: Tensor
    space: AnySpace | None = None
    dataset: str | None = None


def save_set(synthetic: SyntheticSet, path: str | Path) -> None:
    """Write a set, by renaming, as a dictionary that `torch.load(..., weights_only=True)` reads."""
    record = {
        "images": synthetic.images.detach().cpu(),
        "labels": synthetic.labels.detach().cpu(),
        "space": synthetic.space.to_json() if synthetic.space else None,
        "space_tensors": getattr(synthetic.space, "tensors", dict)(),  # a whitening has matrices
        "dataset": synthetic.dataset,
    }
    with replacing(path) as temporary:
        torch.save(record, temporary)


def load_set(path: str | Path) -> SyntheticSet:
    """Read a set: ours, a dictionary with images and labels, a pair of them, or DM's results file (its last set).

    Read with `weights_only=True`, so nothing in the file is executed. Raises `DataError` for anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no synthetic set at '{path}'; expected a .pt file with images and labels.")
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's readers raise whatever a damaged file makes them stumble over
        # Torch's own text advises to load such a file without its safeguard; it is left out on purpose.
        raise DataError(
            f"'{path}' cannot be read as tensors ({type(error).__name__}): it is no .pt file of images and labels, is "
            "damaged, or holds Python objects, which are not executed."
        ) from error
    images, labels, extra = _unpack(record)
    if not (isinstance(images, Tensor) and isinstance(labels, Tensor) and images.ndim == 4 and labels.ndim == 1):
        keys = f"a dictionary with {', '.join(sorted(map(str, record))[:6])}" if isinstance(record, dict) else None
        held = keys or f"{type(record).__name__} of {_shape(images)} and {_shape(labels)}"
        raise DataError(
            f"'{path}' holds {held}, expected images (n, c, h, w) and hard labels (n,): a dictionary with the keys "
            "images and labels, a pair, or DM's results."
        )
    if len(images) != len(labels):
        raise DataError(f"'{path}' holds {len(images)} images but {len(labels)} labels; it is damaged.")
    try:
        space = space_from_json(extra["space"], extra.get("space_tensors")) if extra.get("space") else None
    except SpaceError as error:
        raise DataError(f"'{path}' does not say what its images mean: {error}") from error
    return SyntheticSet(images.float(), labels.long(), space, extra.get("dataset"))


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
