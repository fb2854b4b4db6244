"""The networks of the distillation literature, built by name and with a random state of their own.

Every network here is a backbone and a linear head: `net(images) == net.classifier(net.embed(images))`. The head is a
named submodule, so a forward pre-hook on `classifier` sees the features too. Parameters come in the order in which the
layers act, which is the order of the flat parameter lists in expert buffers.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, ParamSpec

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from ddplug.errors import ProxyError
from ddplug.networks.libraries import LIBRARIES, build_from_library, plain_defaults, spec_of

Norm = Literal["instance", "batch", "none"]
P = ParamSpec("P")

_REGISTRY: dict[str, Callable[..., Network]] = {}


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Draw from `seed` inside the block; afterwards torch's generators are as they were before it.

    Covers torch's default CPU generator, from which layers are initialised, and that of `device` if it is a CUDA
    device, from which dropout draws. `torch.manual_seed` would also reseed every other device of the host.
    """
    device = torch.device(device)
    cuda = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        for generator in (torch.default_generator, *(torch.cuda.default_generators[index] for index in cuda)):
            generator.manual_seed(seed)
        yield


class Network(nn.Module):
    """A classifier made of `embed` and `classifier`; `spec` says how to build it again.

    `spec` is JSON-serialisable, `{"architecture": name, "options": {...}}`, such that
    `build(spec["architecture"], **spec["options"])` makes the same network with other initial weights.
    """

    classifier: nn.Linear
    spec: dict[str, Any]

    def embed(self, images: Tensor) -> Tensor:
        """Penultimate features (n, d) of `images` (n, c, h, w)."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of `images` (n, c, h, w)."""
        logits: Tensor = self.classifier(self.embed(images))
        return logits


def register(constructor: Callable[P, Network]) -> Callable[P, Network]:
    """Make `constructor` known to `build` under its own name, and have it record its options in `spec`.

    Its options must be JSON-serialisable (tuples come back as lists). What it builds is on the CPU, whatever torch's
    default device is, so that `seeded` gives equal weights everywhere.
    """
    name = constructor.__name__
    signature = inspect.signature(constructor)

    @functools.wraps(constructor)
    def construct(*args: P.args, **kwargs: P.kwargs) -> Network:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ProxyError(f"{name} was given options it does not have ({error}); it is {name}{signature}") from error
        bound.apply_defaults()
        with plain_defaults():
            network = constructor(*args, **kwargs)
        network.spec = spec_of(name, bound.arguments)
        return network

    _REGISTRY[name] = construct
    return construct


def architectures() -> list[str]:
    """The names that `build` knows, besides torchvision/NAME and timm/NAME for every classifier of these."""
    return sorted(_REGISTRY)


def build(architecture: str, **options: Any) -> nn.Module:
    """A fresh, randomly initialised network by name, on the CPU; call it inside `seeded`.

    `architecture` is one of `architectures()`, or "torchvision/NAME" or "timm/NAME": that model without pretrained
    weights, its options passed on (`channels` must be 3 for torchvision, and is timm's `in_chans`; `size` is left to
    the model, or, where it takes one, is timm's `img_size`). Such a model has `spec`, but no `embed`, and its head has
    the name that the library gave it.

    Raises `ProxyError` for an unknown name, for options that the network does not have, and for impossible ones.
    """
    if architecture.startswith(LIBRARIES):
        return build_from_library(architecture, options)
    if architecture not in _REGISTRY:
        raise ProxyError(
            f"unknown architecture {architecture!r}; known are {', '.join(architectures())} and torchvision/NAME, "
            "for example torchvision/resnet18, and timm/NAME. Own networks are added with ddplug.networks.register."
        )
    return _REGISTRY[architecture](**options)


@register
def convnet(
    num_classes: int = 10,
    *,
    channels: int = 3,
    size: Sequence[int] = (32, 32),
    width: int = 128,
    depth: int = 3,
    norm: Norm = "instance",
) -> Network:
    """The ConvNet of the distillation literature: `depth` blocks of [conv 3x3, norm, ReLU, 2x2 average pool], a head.

    `size` is (height, width) in pixels. Features are the flattened last maps: 2048 of them at width 128, depth 3 and
    32x32. As in the literature, images of one channel and 28x28 are padded to 32x32 by the first convolution.
    "instance" is a group norm with one group per channel and an affine map.

    Raises `ProxyError` where the blocks pool the image away: each side needs 2 ** depth pixels.
    """
    height, breadth, padded = _extent(channels, size)
    _require_size(f"convnet of depth {depth}", (height, breadth), depth, "a smaller depth")
    layers: list[nn.Module] = []
    for block in range(depth):
        padding = 3 if padded and block == 0 else 1
        layers += _convolution(channels if block == 0 else width, width, 3, padding, norm)
        layers.append(nn.AvgPool2d(2))
    return _Flattened(layers, width * (height // 2**depth) * (breadth // 2**depth), num_classes)


@register
def resnet18(
    num_classes: int = 10,
    *,
    channels: int = 3,
    size: Sequence[int] = (32, 32),
    norm: Norm = "instance",
    width: int = 64,
) -> Network:
    """ResNet-18 for small images: 3x3 stem, no max pool, stages of 1, 2, 4 and 8 times `width`, global average pool.

    `size` is (height, width) in pixels; features are 8 * width (512). Convolutions have no bias.

    Raises `ProxyError` with instance norm for images that the last stage sees as one pixel: normalised alone, that
    pixel is zero, and so is every feature.
    """
    height, breadth = size
    if norm == "instance" and height <= 8 and breadth <= 8:
        raise ProxyError(
            f"resnet18 with instance norm cannot take {height}x{breadth} images: its last stage sees one pixel, whose "
            "normalised value is always zero. The smallest size that works is 9x9: enlarge the images, or use "
            "norm='batch' or a convnet."
        )
    return _ResNet18(num_classes, channels, norm, width)


@register
def vgg11(
    num_classes: int = 10,
    *,
    channels: int = 3,
    size: Sequence[int] = (32, 32),
    norm: Norm = "instance",
    width: int = 64,
) -> Network:
    """VGG-11 for small images: eight 3x3 convolutions of 1 to 8 times `width`, five 2x2 max pools, a linear head.

    `size` is (height, width) in pixels; features are the flattened last maps, 8 * width (512) of them at 32x32. As in
    the literature, images of one channel and 28x28 are padded to 32x32 by the first convolution.

    Raises `ProxyError` where the pools leave nothing of the image: each side needs 32 pixels.
    """
    height, breadth, padded = _extent(channels, size)
    _require_size("vgg11", (height, breadth), 5, "another network")
    layers: list[nn.Module] = []
    coming = channels
    for times, pool in ((1, True), (2, True), (4, False), (4, True), (8, False), (8, True), (8, False), (8, True)):
        padding = 3 if padded and not layers else 1
        layers += _convolution(coming, times * width, 3, padding, norm)
        layers += [nn.MaxPool2d(2)] if pool else []
        coming = times * width
    return _Flattened(layers, coming * (height // 32) * (breadth // 32), num_classes)


@register
def alexnet(
    num_classes: int = 10,
    *,
    channels: int = 3,
    size: Sequence[int] = (32, 32),
    norm: Norm = "none",
    width: int = 64,
) -> Network:
    """AlexNet for small images: five convolutions of 2 to 4 times `width`, three 2x2 max pools, a linear head.

    `size` is (height, width) in pixels; features are the flattened last maps, 48 * width (3072) of them at 32x32. As
    in the literature it has no norm, and images of one channel and 28x28 are padded to 32x32 by the first convolution.

    Raises `ProxyError` where the pools leave nothing of the image: each side needs 8 pixels.
    """
    height, breadth, padded = _extent(channels, size)
    _require_size("alexnet", (height, breadth), 3, "another network")
    layers = [
        *_convolution(channels, 2 * width, 5, 4 if padded else 2, norm),
        nn.MaxPool2d(2),
        *_convolution(2 * width, 3 * width, 5, 2, norm),
        nn.MaxPool2d(2),
        *_convolution(3 * width, 4 * width, 3, 1, norm),
        *_convolution(4 * width, 3 * width, 3, 1, norm),
        *_convolution(3 * width, 3 * width, 3, 1, norm),
        nn.MaxPool2d(2),
    ]
    return _Flattened(layers, 3 * width * (height // 8) * (breadth // 8), num_classes)


class _Flattened(Network):
    """Layers whose flattened maps are the features."""

    def __init__(self, layers: list[nn.Module], features: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(features, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        maps: Tensor = self.features(images)
        return rearrange(maps, "n c h w -> n (c h w)")


class _ResNet18(Network):
    def __init__(self, num_classes: int, channels: int, norm: Norm, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            _norm(norm, width),
            nn.ReLU(),
        )
        self.stages = nn.Sequential(
            *(_ResidualBlock(width, width, 1, norm) for _ in range(2)),
            *(
                _ResidualBlock(coming, going, stride, norm)
                for wide in (2 * width, 4 * width, 8 * width)
                for coming, going, stride in ((wide // 2, wide, 2), (wide, wide, 1))
            ),
        )
        self.classifier = nn.Linear(8 * width, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        maps: Tensor = self.stages(self.stem(images))
        return reduce(maps, "n c h w -> n c", "mean")


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions added to a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, coming: int, going: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(coming, going, 3, stride=stride, padding=1, bias=False),
            _norm(norm, going),
            nn.ReLU(),
            nn.Conv2d(going, going, 3, padding=1, bias=False),
            _norm(norm, going),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or coming != going:
            self.shortcut.append(nn.Conv2d(coming, going, 1, stride=stride, bias=False))
            self.shortcut.append(_norm(norm, going))

    def forward(self, maps: Tensor) -> Tensor:
        return torch.relu(self.residual(maps) + self.shortcut(maps))


def _convolution(coming: int, going: int, kernel: int, padding: int, norm: str) -> list[nn.Module]:
    return [nn.Conv2d(coming, going, kernel, padding=padding), _norm(norm, going), nn.ReLU()]


def _norm(norm: str, width: int) -> nn.Module:
    if norm == "instance":
        return nn.GroupNorm(width, width, affine=True)
    if norm == "batch":
        return nn.BatchNorm2d(width)
    if norm == "none":
        return nn.Identity()
    raise ProxyError(f"unknown norm {norm!r}; expected 'instance', 'batch' or 'none'")


def _extent(channels: int, size: Sequence[int]) -> tuple[int, int, bool]:
    """Return height and width after the first convolution, and True if it pads images to that (28x28, grey)."""
    padded = channels == 1 and tuple(size) == (28, 28)
    return (32, 32, True) if padded else (size[0], size[1], False)


def _require_size(name: str, size: tuple[int, int], halvings: int, instead: str) -> None:
    smallest = 2**halvings
    if min(size) < smallest:
        raise ProxyError(
            f"{name} halves the image {halvings} times and cannot take {size[0]}x{size[1]}. The smallest size that "
            f"works is {smallest}x{smallest}: enlarge the images or use {instead}."
        )
