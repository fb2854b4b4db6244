"""Chunks of images that pass a proxy together, and those whose graph is kept until the gradient is known.

The gradient needs the centroids, and those need the features of every image. So each proxy is passed twice: once for
the features, piece by piece, then piece by piece for the gradient. Graphs of the last pieces are kept from the first
pass as far as memory allows; only the others are computed again. The result is the gradient of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddplug.choices import Chunk as Chunk
from ddplug.errors import InputError
from ddplug.networks.precision import Observer

BUDGET = 2 << 30
"""Bytes of kept graphs under "auto"."""

# On the CPU, the allocator returns larger tensors to the operating system when they are freed, and new ones are faulted
# in page by page. It keeps smaller ones. ResNet-18 at 100 images is up to a third faster in three pieces.
LARGEST_ON_CPU = 12 << 20


@dataclass(frozen=True)
class Cost:
    """Bytes that the graph of one image keeps, without weights."""

    total: float
    largest: int
    """Bytes of the largest tensor in the graph of one image."""
    mixes: bool
    """True if features of an image depend on the other images, so that a batch must not be split."""


@dataclass(frozen=True)
class Plan:
    """A split into pieces of `piece` images (the last may be smaller), of which the last `kept` keep their graphs."""

    piece: int
    kept: int
    whole: bool = False
    """True if the batch must not be split."""

    def smaller(self) -> Plan | None:
        """Return pieces of half the size with one graph at a time, or None if the pieces cannot be smaller."""
        return None if self.whole or self.piece == self.kept == 1 else Plan(math.ceil(self.piece / 2), 1)

    def at_most(self, images: int | None) -> Plan:
        """Return this plan with pieces of at most `images`, if that is a number and the batch may be split."""
        return self if images is None or self.whole or self.piece <= images else Plan(images, 1)


def plan(images: int, cost: Cost, chunk: Chunk, device: torch.device) -> Plan:
    """Return the plan for `images` images. A number for `chunk` is the size of a piece; one graph is kept at a time.

    Raises `InputError` if the batch would be split and must not be.
    """
    if chunk != "auto":
        if cost.mixes and chunk < images:
            raise InputError(
                f"chunk={chunk} takes {images} images apart, but in this proxy the features of an image depend on the "
                "others of its batch (batch normalisation without running statistics?). Leave chunk out, which keeps "
                "this batch whole, or use other proxies."
            )
        return Plan(min(chunk, images), 1)
    if cost.mixes:
        return Plan(images, 1, whole=True)
    largest = images
    if device.type == "cpu":
        largest = max(1, LARGEST_ON_CPU // max(cost.largest, 1))
    elif images * cost.total > BUDGET:
        largest = max(1, int(BUDGET / 4 / cost.total))
    pieces = math.ceil(images / largest)
    piece = math.ceil(images / pieces)
    return Plan(piece, max(1, int(BUDGET / max(piece * cost.total, 1))))


def measure(features: Callable[[Tensor], Tensor], views: Tensor) -> Cost:
    """Measure, on one image and on two, the memory that `features`, (n, c, h, w) to (n, d), keeps for backward.

    The images are artificial, like `views` in shape, dtype and device. They differ, so that a network that mixes
    images is recognised.
    """
    ramp = torch.linspace(-1, 1, views[0].numel(), dtype=views.dtype, device=views.device).reshape(1, *views.shape[1:])
    pair = torch.cat([ramp, -(ramp.flip(-1, -2) ** 3)])
    (alone, of_one), (together, of_two) = (_saved(features, images) for images in (pair[:1], pair))
    difference = (together[0] - alone[0]).float().norm()
    # Memory of images doubles with their number. Memory that does not, such as that of weights, is not counted.
    total = max(sum(of_two) - sum(of_one), 0)
    growing = [two - one for one, two in zip(of_one, of_two, strict=True)] if len(of_one) == len(of_two) else of_two
    return Cost(total, max(growing, default=0), bool(difference > 0.05 * alone[0].float().norm()))


def _saved(features: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, list[int]]:
    """Features, and the sizes in bytes of the storages that their graph keeps, each once, in order."""
    sizes = _Sizes()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(sizes, lambda tensor: tensor):
        result = features(images.clone().requires_grad_())
    return result.detach(), list(sizes.values())


class _Sizes(dict[int, int], Observer):
    """Bytes by address of all storages that a graph keeps."""

    def __call__(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor.detach()  # without its graph, as a node that saves its output would keep itself alive
