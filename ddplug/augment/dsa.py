"""DSA, differentiable siamese augmentation: the standard random views, on kornia.

augment = DSA(seed=0)
real_views = augment(real)
synthetic_views = augment(synthetic, params=augment.last_params)    # the very same draw
"""

from __future__ import annotations

from math import isfinite
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ddplug.augment import ops as dsa_ops
from ddplug.augment.params import OPERATIONS, Params, check_known
from ddplug.errors import InputError

__all__ = ["DSA", "OPERATIONS", "Mode", "Params"]

Mode = Literal["single", "all", "idc"]


class DSA(nn.Module):
    """Random, differentiable views of a batch of images, drawn with a generator of its own.

    `strategy` names operations, joined by "_": color (brightness, saturation, contrast), crop, cutout, flip, scale,
    rotate; "" or "none" leaves images as they are. `mode` says which of them make a view: "single" one, drawn per
    call (DM, MTT, DATM); "all" every one, in the order named; "idc" flip, color and cutout always, with one of the
    others in between (IDC). With `siamese` all images of a batch share one draw; without, each has its own, though a
    call still has one choice of operations.

    What is drawn: a mirror image with probability `flip`; factors in [1/`scale`, `scale`] on each axis's coordinates;
    an angle within `rotate` degrees either way; a window moved by whole pixels up to `crop_pad` of the size each way;
    a hole of `cutout` of the size, centred anywhere; `brightness` times [-1/2, 1/2) added; a colour factor in
    [0, `saturation`); a contrast factor in [`contrast`, 1 + `contrast`). All uniform; the defaults are standard.

    `align_corners` is the sampling convention of scale and rotate: False in DM and IDC, True in MTT and DATM. They
    differ only where an image that is not square is rotated.

    The generator lives on the CPU, whatever the device, so a seed means the same views everywhere and reading
    `last_params` never waits for a GPU. Its state is part of `state_dict()`.

    Raises `InputError` for an unknown or repeated operation, an unknown mode, or a range that makes no sense.
    """

    def __init__(
        self,
        strategy: str = "color_crop_cutout_flip_scale_rotate",
        *,
        siamese: bool = True,
        mode: Mode = "single",
        flip: float = 0.5,
        scale: float = 1.2,
        rotate: float = 15.0,
        crop_pad: float = 0.125,
        cutout: float = 0.5,
        brightness: float = 1.0,
        saturation: float = 2.0,
        contrast: float = 0.5,
        align_corners: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.operations = _parse(strategy)
        if mode not in get_args(Mode):
            raise InputError(f"unknown mode {mode!r}; expected one of {', '.join(map(repr, get_args(Mode)))}")
        self.strategy, self.siamese, self.mode, self.align_corners = strategy, siamese, mode, align_corners
        self.flip = _within("flip", flip, 0, 1)
        self.scale = _within("scale", scale, 1)
        self.rotate = _within("rotate", rotate, 0, 180)
        self.crop_pad = _within("crop_pad", crop_pad, 0, 1)
        self.cutout = _within("cutout", cutout, 0, 1)
        self.brightness = _within("brightness", brightness, 0)
        self.saturation = _within("saturation", saturation, 0)
        self.contrast = _within("contrast", contrast, 0)
        self.last_params: Params | None = None
        """The parameters of the latest view, on the device they were drawn on or came from; None before the first."""
        self._generator = torch.Generator()
        self.manual_seed(seed)

    def forward(self, images: Tensor, *, params: Params | None = None) -> Tensor:
        """Views (n, c, h, w) of images (n, c, h, w), of their dtype and device; newly drawn unless `params` is given.

        The images may be in any input space: nothing is clamped. `params` is a draw of this or any other `DSA`: a
        siamese one serves a batch of any size, another only one of as many images. Raises `InputError` for images
        that are not four-dimensional and floating, or that `params` does not fit.
        """
        _check_images(images)
        if params is None:
            params = self.draw(images)
        params.check_serves(images)
        self.last_params = params
        here = params.to(images.device)
        for op in here.ops:
            images = self._perform(op, images, here)
        return images

    def draw(self, images: Tensor) -> Params:
        """Parameters for a batch (n, c, h, w), on the CPU, and one step of the generator; nothing is applied."""
        _check_images(images)
        rows, size = 1 if self.siamese else len(images), (images.shape[2], images.shape[3])
        ops = self._choose()
        numbers: dict[str, Any] = {}
        for op in ops:
            numbers |= self._draw_one(op, rows, size)
        return Params(ops, self.siamese, size, **numbers)

    def manual_seed(self, seed: int) -> DSA:
        """Start the generator anew from `seed`; returns the module."""
        self._generator.manual_seed(seed)
        return self

    def _choose(self) -> tuple[str, ...]:
        """The operations of the next view, in order."""
        if self.mode == "all":
            return self.operations
        if self.mode == "single":
            return self._one_of(self.operations)
        always = {"flip", "color", "cutout"}
        first = tuple(op for op in ("flip", "color") if op in self.operations)
        last = tuple(op for op in ("cutout",) if op in self.operations)
        return first + self._one_of(tuple(op for op in self.operations if op not in always)) + last

    def _one_of(self, ops: tuple[str, ...]) -> tuple[str, ...]:
        if not ops:
            return ()
        # The generator is on the CPU, so item() waits for no device.
        return (ops[int(torch.randint(len(ops), (1,), generator=self._generator, device="cpu").item())],)

    def _draw_one(self, op: str, rows: int, size: tuple[int, int]) -> dict[str, Any]:
        match op:
            case "color":
                return {
                    "brightness": self._uniform(-self.brightness / 2, self.brightness / 2, rows),
                    "saturation": self._uniform(0.0, self.saturation, rows),
                    "contrast": self._uniform(self.contrast, 1 + self.contrast, rows),
                }
            case "crop":
                most = [_share(extent, self.crop_pad) for extent in size]
                return {"crop": self._whole([-reach for reach in most], most, rows)}
            case "cutout":
                hole = [_share(extent, self.cutout) for extent in size]
                # The hole's middle is a pixel of the image or, if the hole is of even size, the first one past its end.
                first = [-(across // 2) for across in hole]
                last = [low + extent - across % 2 for low, extent, across in zip(first, size, hole, strict=True)]
                return {"cutout": self._whole(first, last, rows), "cutout_size": (hole[0], hole[1])}
            case "flip":
                return {"flip": self._uniform(0.0, 1.0, rows) < self.flip}
            case "scale":
                return {"scale": self._uniform(1 / self.scale, self.scale, rows, 2)}
            case _:
                return {"rotate": self._uniform(-self.rotate, self.rotate, rows)}

    def _uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self._generator, dtype=torch.float32, device="cpu")

    def _whole(self, lowest: list[int], highest: list[int], rows: int) -> Tensor:
        """Whole numbers (rows, 2), uniform between `lowest` and `highest` inclusive on each axis."""
        pairs = [
            torch.randint(low, high + 1, (rows,), generator=self._generator, device="cpu")
            for low, high in zip(lowest, highest, strict=True)
        ]
        return torch.stack(pairs, dim=1)

    def _perform(self, op: str, images: Tensor, params: Params) -> Tensor:
        numbers = [getattr(params, name) for name in OPERATIONS[op]]
        aligned: dict[str, Any] = {"align_corners": self.align_corners}
        more = {"cutout": {"size": params.cutout_size}, "scale": aligned, "rotate": aligned}
        views: Tensor = getattr(dsa_ops, op)(images, *numbers, **more.get(op, {}))
        return views

    def get_extra_state(self) -> Tensor:
        """The generator's state, so that a resumed run draws on where it stopped."""
        return self._generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Take up the generator's state from `get_extra_state`."""
        self._generator.set_state(state.cpu())

    def extra_repr(self) -> str:
        """Return the operations in one line."""
        names = ("flip", "scale", "rotate", "crop_pad", "cutout", "brightness", "saturation", "contrast")
        ranges = ", ".join(f"{name}={getattr(self, name):g}" for name in names)
        return f"{self.strategy!r}, siamese={self.siamese}, mode={self.mode!r}, {ranges}"


def _parse(strategy: str) -> tuple[str, ...]:
    if strategy.lower() in ("", "none"):
        return ()
    ops = tuple(strategy.lower().split("_"))
    check_known(ops)
    if len(set(ops)) < len(ops):
        raise InputError(f"strategy {strategy!r} names an operation twice; name each once")
    return ops


def _within(name: str, value: float, lowest: float, highest: float = float("inf")) -> float:
    if not (isfinite(value) and lowest <= value <= highest):
        raise InputError(f"{name} must lie in [{lowest:g}, {highest:g}], got {value}")
    return float(value)


def _share(extent: int, ratio: float) -> int:
    """`ratio` of a number of pixels, rounded to the nearest whole one, halves up."""
    return int(extent * ratio + 0.5)


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(
            f"expected floating images of shape (n, channels, height, width), got {images.dtype} of shape "
            f"{tuple(images.shape)}; add a batch axis, or convert integers to intensities, first"
        )
