"""Shapes: pictures of eight figures before a clutter, drawn by a seeded generator. Nothing is downloaded.

The digits that come with scikit-learn are so easy that a better synthetic set hardly shows. Here a figure of any colour
is turned by up to 23 degrees and lies in any place, so that ten images of a class have to be good ones.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

SIDE = 32
FINER = 3
"""Pixels are means over this many points in each direction."""


def _star(x: Tensor, y: Tensor) -> Tensor:
    tip = (torch.atan2(y, x) * 5 / (2 * torch.pi)) % 1  # 0 and 1 at the tips of five arms
    return x.square() + y.square() < (0.4 + 0.7 * (2 * tip - 1).abs().pow(1.5)).square()


def _arrow(x: Tensor, y: Tensor) -> Tensor:
    shaft = (x > -1) & (x < 0.2) & (y.abs() < 0.25)
    return shaft | ((x > 0.1) & (x < 1) & (y.abs() < 0.8 * (1 - x)))


FIGURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": lambda x, y: x.square() + y.square() < 0.85,
    "ring": lambda x, y: ((x.square() + y.square()).sqrt() - 0.75).abs() < 0.22,
    "square": lambda x, y: torch.maximum(x.abs(), y.abs()) < 0.8,
    "star": _star,
    "cross": lambda x, y: (torch.minimum(x.abs(), y.abs()) < 0.28) & (torch.maximum(x.abs(), y.abs()) < 0.95),
    "arrow": _arrow,
    "triangle": lambda x, y: (y < 0.55) & (y > 1.73 * x.abs() - 1.05),
    "ellipse": lambda x, y: x.square() + (2.2 * y).square() < 1,
}
"""Functions of a point's coordinates, in which a figure reaches from about -1 to 1, to True within the figure."""


def draw(per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw `per_class` pictures of every figure, from a generator of their own.

    Returns:
        Intensities in [0, 1], float32 (n, 3, 32, 32), and class numbers, int64 (n,), in the order of `FIGURES`.
    """
    generator = torch.Generator().manual_seed(seed)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float32, device="cpu")

    fine = SIDE * FINER
    at = (torch.arange(fine, dtype=torch.float32, device="cpu") + 0.5) / fine * 2 - 1
    pictures, labels = [], []
    for label, inside in enumerate(FIGURES.values()):
        turn, size = between(-0.4, 0.4, per_class, 1, 1), between(0.55, 0.85, per_class, 1, 1)
        centre = between(-1, 1, 2, per_class, 1, 1) * (1 - size)
        x, y = (at[None, None, :] - centre[0]) / size, (at[None, :, None] - centre[1]) / size
        figure = inside(x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin())
        coverage = F.avg_pool2d(rearrange(figure.float(), "n h w -> n 1 h w"), FINER)
        clutter = sum(
            F.interpolate(between(-a, a, per_class, 3, side, side), size=SIDE, mode="bicubic", align_corners=False)
            for side, a in ((3, 0.2), (7, 0.15), (SIDE, 0.05))
        )
        ground = between(0.2, 0.8, per_class, 3, 1, 1)
        colour = (ground + between(0.35, 0.65, per_class, 3, 1, 1)) % 1
        pictures.append(torch.lerp(ground + clutter, colour + 0.25 * clutter, coverage).clamp(0, 1))
        labels.append(torch.full((per_class,), label, device="cpu"))
    return torch.cat(pictures), torch.cat(labels)
