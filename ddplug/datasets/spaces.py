"""Input spaces: what the numbers in an image tensor mean.

A proxy answers sensibly only to images in the space it was trained in. A pool therefore records its space, and views
from a host in another one are converted exactly or refused; a silent mismatch is the commonest way to get a
plausible, wrong number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ddplug.errors import InputError


class AnySpace(Protocol):
    """Interface of every input space: `InputSpace` here, and `ddplug.datasets.zca.ZCASpace`."""

    @property
    def channels(self) -> int:
        """Number of channels an image in this space has."""

    def from_unit(self, images: Tensor) -> Tensor:
        """Intensities in [0, 1], (..., c, h, w), to this space; differentiable."""

    def to_unit(self, images: Tensor) -> Tensor:
        """Images of this space, (..., c, h, w), to intensities in [0, 1]; differentiable."""

    def convert(self, images: Tensor, to: AnySpace) -> Tensor:
        """Images (..., c, h, w) of this space in the space `to`; `InputError`, naming both, if that is impossible."""

    def to_json(self) -> dict[str, Any]:
        """The record that a pool's header keeps."""


@dataclass(frozen=True)
class InputSpace:
    """A per-channel normalisation: stored value = (intensity in [0, 1] - mean) / std.

    `InputSpace.unit(channels)` is [0, 1] itself. Mean and std are in units of intensity, one entry per channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if not self.mean or len(self.mean) != len(self.std) or not all(s > 0 for s in self.std) or not finite:
            raise InputError(
                "an input space needs one finite mean and one positive std per channel, got "
                f"mean={self.mean}, std={self.std}"
            )

    @classmethod
    def normalized(cls, mean: Iterable[float], std: Iterable[float]) -> InputSpace:
        """The space of images normalised with `mean` and `std` (what torchvision's `Normalize` makes of [0, 1])."""
        return cls(tuple(float(m) for m in mean), tuple(float(s) for s in std))

    @classmethod
    def unit(cls, channels: int) -> InputSpace:
        """The space of plain intensities in [0, 1]."""
        return cls((0.0,) * channels, (1.0,) * channels)

    @property
    def channels(self) -> int:
        """Number of channels an image in this space has."""
        return len(self.mean)

    def from_unit(self, images: Tensor) -> Tensor:
        """Intensities in [0, 1], (..., c, h, w), to this space; differentiable."""
        return (images - _per_channel(self.mean, images)) / _per_channel(self.std, images)

    def to_unit(self, images: Tensor) -> Tensor:
        """Images of this space, (..., c, h, w), to intensities in [0, 1]; differentiable, not clamped."""
        return images * _per_channel(self.std, images) + _per_channel(self.mean, images)

    def convert(self, images: Tensor, to: AnySpace) -> Tensor:
        """Images (..., c, h, w) of this space in the space `to`: exact, differentiable, a no-op if they are one.

        Raises `InputError` if the two have different numbers of channels.
        """
        if self == to:
            return images
        if self.channels != to.channels:
            raise InputError(
                f"cannot convert images from {self} to {to}: {self.channels} channels against {to.channels}. "
                "Use a pool that was trained on images of the host's kind."
            )
        return to.from_unit(self.to_unit(images))

    def to_json(self) -> dict[str, Any]:
        """The record that a pool's header keeps."""
        return {"kind": "normalized", "mean": list(self.mean), "std": list(self.std)}

    def __str__(self) -> str:
        if self == InputSpace.unit(self.channels):
            return f"[0, 1] x {self.channels} channels"
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"normalised by mean ({mean}), std ({std})"


NORMALIZATIONS: dict[str, InputSpace] = {
    "cifar10": InputSpace((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": InputSpace((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": InputSpace((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "mnist": InputSpace((0.1307,), (0.3081,)),
    "fashionmnist": InputSpace((0.2861,), (0.3530,)),
    "stl10": InputSpace((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
    "tinyimagenet": InputSpace((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "imagenet": InputSpace((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""The standard per-channel constants, by data set: what "normalized:NAME" means."""

SPELLINGS = (
    f"an InputSpace, 'unit' for [0, 1], 'normalized:NAME' ({', '.join(NORMALIZATIONS)}), 'normalized:MEAN/STD' "
    "(normalized:0.5,0.5,0.5/0.2,0.2,0.2), or 'zca'"
)


def named_space(name: str, channels: int | None = None, own: AnySpace | None = None) -> AnySpace:
    """The space that a string means; `InputError` if it means none.

    Args:
        name: "unit", "normalized:NAME" with a name of `NORMALIZATIONS`, "normalized:MEAN/STD", or "zca".
        channels: of the images, which "unit" needs to know.
        own: the space that "zca" is, if it is a whitening: its matrices are in no name.
    """
    kind, _, of = name.partition(":")
    plain = of.lower().replace("-", "").replace("_", "")
    if kind == "normalized" and plain in NORMALIZATIONS:
        return NORMALIZATIONS[plain]
    if kind == "normalized" and of.count("/") == 1:
        with suppress(ValueError):
            return InputSpace.normalized(*(map(float, part.split(",")) for part in of.split("/")))
    if name == "unit":
        if channels is None:
            raise InputError("'unit' needs to know how many channels the images have: write InputSpace.unit(channels).")
        return InputSpace.unit(channels)
    if name == "zca":
        if own is not None and own.to_json().get("kind") == "zca":
            return own
        raise InputError(
            "'zca' means the pool's own whitening, and this pool has none. Pass the host's: "
            "ddplug.zca.ZCASpace.fit(images in [0, 1]), or ddplug.zca.ZCASpace.from_kornia(transform, shape)."
        )
    raise InputError(f"unknown input space {name!r}, expected {SPELLINGS}.")


BRIGHT = 16.0
"""Intensity that no images reach, also distilled ones, which leave [0, 1]; bytes reach 255."""


def too_bright(images: Tensor, space: AnySpace | None) -> str | None:
    """Return a sentence on images (n, c, h, w) that are bytes rather than in `space`; None if they may be."""
    if not isinstance(space, InputSpace) or not images.numel() or images.shape[1] != space.channels:
        return None
    brightest = float(space.to_unit(images.detach()).amax())
    if not BRIGHT < brightest < math.inf:
        return None
    return (
        f"the images are taken as {space}, in which they have intensities up to {brightest:.3g} instead of 1. Of "
        "bytes, images.float() / 255 makes intensities, which are input_space='unit'."
    )


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    """`values` as a (c, 1, 1) tensor of the dtype and device of `like`."""
    # Filled in on the device: a copy from the host would be a wait for it, and cannot be captured in a CUDA graph.
    return torch.cat([torch.full((1, 1, 1), value, dtype=like.dtype, device=like.device) for value in values])
