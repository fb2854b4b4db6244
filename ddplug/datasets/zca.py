"""ZCA whitening as an input space: what MTT and DATM call `--zca`, fitted, applied, undone and saved.

space = ZCASpace.fit(intensities)            # (n, c, h, w) in [0, 1]; the standard settings, through kornia
whitened = space.from_unit(intensities)
proxy_input = space.convert(whitened, to=InputSpace.normalized(mean, std))
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor

from ddplug.datasets.spaces import AnySpace, InputSpace
from ddplug.errors import InputError
from ddplug.utils.digest import sha256, tensor_bytes

if TYPE_CHECKING:
    from kornia.enhance import ZCAWhitening


def space_from_json(record: dict[str, Any], tensors: Mapping[str, Tensor] | None = None) -> AnySpace:
    """The space of a `to_json` record and, for ZCA, the tensors saved beside it; `InputError` for invalid ones."""
    try:
        if record["kind"] == "zca":
            return ZCASpace.from_json(record, tensors or {})
        if record["kind"] == "normalized":
            return InputSpace.normalized(record["mean"], record["std"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{record} is no record of an input space ({type(error).__name__}: {error})") from error
    raise InputError(f"unknown kind of input space {record['kind']!r}, expected 'zca' or 'normalized'")


class ZCASpace:
    """The space of ZCA-whitened images of one shape (c, h, w): whitened = (intensities - mean) @ whiten.

    `mean` is (d,), `whiten` and its inverse `unwhiten` are (d, d), with d = c h w pixels in row-major order. Raises
    `InputError` if the one does not undo the other; without `unwhiten` it is computed.

    Conversions move the matrices to the images' device and dtype once, and keep them there.
    """

    def __init__(
        self, shape: tuple[int, int, int], mean: Tensor, whiten: Tensor, unwhiten: Tensor | None = None
    ) -> None:
        self.shape = shape
        self.mean = mean.detach().flatten()
        self.whiten = whiten.detach()
        inverse = torch.linalg.inv_ex(self.whiten.double())[0].to(self.whiten.dtype) if unwhiten is None else unwhiten
        self.unwhiten = inverse.detach()
        if not _undoes(self.unwhiten, self.whiten):
            raise InputError(
                f"the ZCA of images of shape {shape} cannot be inverted: fit it on more images, or with a larger eps"
            )
        self._moved: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor, Tensor]] = {}

    @classmethod
    def fit(cls, images: Tensor, *, eps: float = 0.1, unbiased: bool = True) -> ZCASpace:
        """The whitening of intensities (n, c, h, w) in [0, 1]; `eps` is added to every variance, 0.1 in the field.

        Computed on the images' device, in their dtype, but never in half precision. Raises `InputError` for images
        that leave [0, 1], and if the result cannot be inverted (eps=0 and too few images).
        """
        low, high = (float(bound) for bound in images.detach().aminmax())
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise InputError(
                f"ZCA is fitted on intensities in [0, 1], got values from {low:.3g} to {high:.3g}; undo their "
                "normalisation first, with InputSpace.to_unit"
            )
        work = images.detach() if images.dtype == torch.float64 else images.detach().float()
        shape = (images.shape[1], images.shape[2], images.shape[3])
        from kornia.enhance import ZCAWhitening  # heavy, and only whitened images need it

        return cls.from_kornia(ZCAWhitening(eps=float(eps), unbiased=unbiased, compute_inv=True).fit(work), shape)

    @classmethod
    def from_kornia(cls, whitening: ZCAWhitening, shape: tuple[int, int, int]) -> ZCASpace:
        """The space of a fitted `kornia.enhance.ZCAWhitening`, such as the `args.zca_trans` of MTT and DATM.

        Raises `InputError` if it is not fitted, is not for images of `shape`, or cannot be inverted.
        """
        if not whitening.fitted:
            raise InputError("this ZCAWhitening is not fitted yet; call its fit() on intensities in [0, 1] first")
        inverse = whitening.transform_inv if whitening.compute_inv else None
        return cls(shape, whitening.mean_vector, whitening.transform_matrix, inverse)

    @property
    def channels(self) -> int:
        """Number of channels an image in this space has."""
        return self.shape[0]

    def from_unit(self, images: Tensor) -> Tensor:
        """Intensities in [0, 1], (..., c, h, w), whitened; differentiable, of the images' dtype."""
        self._check(images)
        mean, whiten, _ = self._matrices(images)
        from kornia.enhance import linear_transform

        whitened: Tensor = linear_transform(_rows(images, whiten), whiten, mean)
        return whitened.to(images.dtype).reshape(images.shape)

    def to_unit(self, images: Tensor) -> Tensor:
        """Whitened images (..., c, h, w) as intensities in [0, 1]; differentiable, not clamped."""
        self._check(images)
        mean, _, unwhiten = self._matrices(images)
        return torch.addmm(mean, _rows(images, unwhiten), unwhiten).to(images.dtype).reshape(images.shape)

    def convert(self, images: Tensor, to: AnySpace) -> Tensor:
        """Images (..., c, h, w) of this space in the space `to`, differentiable; a no-op if they are one.

        Raises `InputError` if `to` is for other channels or, being a ZCA too, for another shape.
        """
        if self == to:
            return images
        if self.channels != to.channels or (isinstance(to, ZCASpace) and self.shape != to.shape):
            raise InputError(
                f"cannot convert images from {self} to {to}. Use a pool trained on the host's kind of images."
            )
        return to.from_unit(self.to_unit(images))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the whitening's numbers, by which two spaces are known to be one."""
        return sha256(tensor_bytes(matrix.to("cpu", torch.float64)) for matrix in (self.mean, self.whiten))

    def to_json(self) -> dict[str, Any]:
        """The record that a pool's header keeps; the numbers themselves are in `tensors`."""
        return {"kind": "zca", "shape": list(self.shape), "digest": self.digest}

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that `from_json` needs beside the record, ready for a safetensors file."""
        return {"zca.mean": self.mean, "zca.whiten": self.whiten, "zca.unwhiten": self.unwhiten}

    @classmethod
    def from_json(cls, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ZCASpace:
        """The inverse of `to_json` and `tensors`; raises `InputError` if the two do not belong together."""
        channels, height, width = record["shape"]
        space = cls(
            (channels, height, width), tensors["zca.mean"], tensors["zca.whiten"], unwhiten=tensors["zca.unwhiten"]
        )
        if space.digest != record["digest"]:
            raise InputError(f"the tensors beside {record} are those of another ZCA; restore the file or fit it anew")
        return space

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ZCASpace) and self.shape == other.shape and self.digest == other.digest

    def __hash__(self) -> int:
        return hash((self.shape, self.digest))

    def __str__(self) -> str:
        return f"ZCA-whitened {' x '.join(map(str, self.shape))} images ({self.digest[:8]})"

    def __repr__(self) -> str:
        return f"ZCASpace(shape={self.shape}, digest={self.digest[:8]!r})"

    def _matrices(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, whitening and inverse where the images are, in their dtype, or float32 for half precision."""
        dtype = images.dtype if images.dtype == torch.float64 else torch.float32
        key = (images.device, dtype)
        if key not in self._moved:
            self._moved[key] = (
                self.mean.to(images.device, dtype),
                self.whiten.to(images.device, dtype),
                self.unwhiten.to(images.device, dtype),
            )
        return self._moved[key]

    def _check(self, images: Tensor) -> None:
        if images.ndim < 3 or tuple(images.shape[-3:]) != self.shape:
            raise InputError(
                f"{self} cannot hold images of shape {tuple(images.shape)}; expected (..., c, h, w) of them"
            )


def _rows(images: Tensor, matrix: Tensor) -> Tensor:
    """Images (..., c, h, w) as rows (n, c h w) of the matrix's dtype."""
    return rearrange(images.to(matrix.dtype), "... c h w -> (...) (c h w)")


def _undoes(unwhiten: Tensor, whiten: Tensor) -> bool:
    """Return True if unwhitening undoes whitening on a few images; False for non-finite numbers."""
    random = torch.Generator().manual_seed(0)
    images = torch.rand(8, len(whiten), generator=random, dtype=torch.float32, device="cpu").to(whiten)
    return bool(((images @ whiten @ unwhiten - images).abs().amax() <= 1e-2).item())
