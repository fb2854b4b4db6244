"""Input spaces: what the numbers in an image tensor mean.

A proxy answers sensibly only to images in the space it was trained in. A pool therefore records its space, and views
from a host in another one are converted exactly or refused; a silent mismatch is the commonest way to get a
plausible, wrong number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ddplug.errors import SpaceError


class AnySpace(Protocol):
    """What every input space can do: `InputSpace` here, and `ddplug.zca.ZCASpace`."""

    @property
    def channels(self) -> int:
        """Number of channels an image in this space has."""

    def from_unit(self, images: Tensor) -> Tensor:
        """Intensities in [0, 1], (..., c, h, w), to this space; differentiable."""

    def to_unit(self, images: Tensor) -> Tensor:
        """Images of this space, (..., c, h, w), to intensities in [0, 1]; differentiable."""

    def convert(self, images: Tensor, to: AnySpace) -> Tensor:
        """Images (..., c, h, w) of this space in the space `to`; `SpaceError`, naming both, if that is impossible."""

    def to_json(self) -> dict[str, Any]:
        """The record that a pool's header keeps."""


def space_from_json(record: dict[str, Any], tensors: Mapping[str, Tensor] | None = None) -> AnySpace:
    """The space of a `to_json` record and, for ZCA, the tensors saved beside it; `SpaceError` for an unknown kind."""
    if not isinstance(record, dict):
        raise SpaceError(f"got {record!r} as the record of an input space, expected a dictionary with its kind")
    if record.get("kind") == "zca":
        from ddplug.zca import ZCASpace  # kornia, which only whitened images need

        return ZCASpace.from_json(record, dict(tensors or {}))
    return InputSpace.from_json(record)


@dataclass(frozen=True)
class InputSpace:
    """A per-channel normalisation: stored value = (intensity in [0, 1] - mean) / std.

    `InputSpace.unit(channels)` is [0, 1] itself. Mean and std are in units of intensity, one entry per channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise SpaceError(
                f"an input space needs one mean and one positive std per channel, got mean={self.mean}, std={self.std}"
            )

    @classmethod
    def normalized(cls, mean: Sequence[float], std: Sequence[float]) -> InputSpace:
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

        Raises `SpaceError` if the two have different numbers of channels.
        """
        if self == to:
            return images
        if self.channels != to.channels:
            raise SpaceError(
                f"cannot convert images from {self} to {to}: {self.channels} channels against {to.channels}. "
                "Use a pool that was trained on images of the host's kind."
            )
        return to.from_unit(self.to_unit(images))

    def to_json(self) -> dict[str, Any]:
        """The record that a pool's header keeps."""
        return {"kind": "normalized", "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> InputSpace:
        """The inverse of `to_json`; raises `SpaceError` for a kind that is not known."""
        if record.get("kind") != "normalized":
            raise SpaceError(f"unknown kind of input space {record.get('kind')!r} in {record}; expected 'normalized'")
        try:
            return cls.normalized(record["mean"], record["std"])
        except (KeyError, TypeError, ValueError) as error:
            raise SpaceError(
                f"{record} is no record of an input space: it needs a mean and a std per channel"
            ) from error

    def __str__(self) -> str:
        if self == InputSpace.unit(self.channels):
            return f"[0, 1] x {self.channels} channels"
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"normalised by mean ({mean}), std ({std})"


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    """`values` as a (c, 1, 1) tensor of the dtype and device of `like`."""
    # Filled in on the device: a copy from the host would be a wait for it, and cannot be captured in a CUDA graph.
    return torch.cat([torch.full((1, 1, 1), value, dtype=like.dtype, device=like.device) for value in values])
