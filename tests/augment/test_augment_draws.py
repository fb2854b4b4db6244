"""Ranges and moments of what DSA draws. Bounds are about five standard errors wide, so a wrong range shows."""

from __future__ import annotations

from collections import Counter
from math import sqrt

import pytest
import torch
from torch import Tensor

from ddplug.augment.dsa import DSA, OPERATIONS, Params

pytestmark = pytest.mark.numerical

N = 20_000

WIDE = {
    "flip": 0.2,
    "scale": 1.6,
    "rotate": 40.0,
    "crop_pad": 0.3,
    "cutout": 0.27,
    "brightness": 0.4,
    "saturation": 1.3,
    "contrast": 0.8,
}
"""Settings other than the defaults, so that no default is hard-coded."""


def drawn(op: str, size: tuple[int, int] = (32, 20), **settings: float) -> Params:
    return DSA(op, siamese=False, seed=11, **settings).draw(torch.empty(1).expand(N, 1, *size))  # type: ignore[arg-type]


def assert_uniform(values: Tensor | None, low: float, high: float) -> None:
    """Minimum, maximum, mean, variance and quartiles of a continuous uniform distribution on [low, high)."""
    assert values is not None
    assert values.shape == (N,)
    unit = (values.double() - low) / (high - low)
    assert unit.min() >= -1e-6
    assert unit.min() < 10 / N
    assert unit.max() <= 1 + 1e-6
    assert unit.max() > 1 - 10 / N
    assert abs(unit.mean() - 1 / 2) < 5 * sqrt(1 / 12 / N)
    assert abs(unit.var() - 1 / 12) < 5 * sqrt(1 / 180 / N)
    below = torch.stack([(unit < quartile).double().mean() for quartile in (0.25, 0.5, 0.75)])
    assert (below - torch.tensor([0.25, 0.5, 0.75])).abs().max() < 5 * sqrt(1 / 4 / N)


def assert_uniform_whole(values: Tensor, low: int, high: int) -> None:
    """Every whole number from low to high inclusive, equally often (chi-square, five sigma)."""
    counts = torch.bincount(values - low, minlength=high - low + 1).double()
    assert len(counts) == high - low + 1
    expected = N / len(counts)
    freedom = len(counts) - 1
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 5 * sqrt(2 * freedom)


def assert_independent(a: Tensor | None, b: Tensor | None) -> None:
    assert a is not None
    assert b is not None
    assert torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1].abs() < 5 / sqrt(N)


def test_the_defaults_are_those_of_the_field() -> None:
    color, scale, angle = drawn("color"), drawn("scale").scale, drawn("rotate").rotate
    assert_uniform(color.brightness, -0.5, 0.5)
    assert_uniform(color.saturation, 0.0, 2.0)
    assert_uniform(color.contrast, 0.5, 1.5)
    assert scale is not None
    assert_uniform(scale[:, 0], 1 / 1.2, 1.2)
    assert_uniform(scale[:, 1], 1 / 1.2, 1.2)
    assert_uniform(angle, -15.0, 15.0)


def test_other_ranges_are_kept_too() -> None:
    size = (32, 20)
    color, scale = drawn("color", size, **WIDE), drawn("scale", size, **WIDE).scale
    angle = drawn("rotate", size, **WIDE).rotate
    assert_uniform(color.brightness, -0.2, 0.2)
    assert_uniform(color.saturation, 0.0, 1.3)
    assert_uniform(color.contrast, 0.8, 1.8)
    assert scale is not None
    assert_uniform(scale[:, 0], 1 / 1.6, 1.6)
    assert_uniform(angle, -40.0, 40.0)


def test_numbers_of_one_view_are_independent() -> None:
    color, scale, crop = drawn("color"), drawn("scale").scale, drawn("crop").crop
    assert_independent(color.brightness, color.saturation)
    assert_independent(color.saturation, color.contrast)
    assert scale is not None
    assert_independent(scale[:, 0], scale[:, 1])
    assert crop is not None
    assert_independent(crop[:, 0], crop[:, 1])


@pytest.mark.parametrize(
    ("size", "pad", "most"), [((32, 32), 0.125, (4, 4)), ((28, 20), 0.125, (4, 3)), ((8, 10), 0.3, (2, 3))]
)
def test_crops_move_by_whole_pixels_up_to_the_padding(size: tuple[int, int], pad: float, most: tuple[int, int]) -> None:
    shift = drawn("crop", size, crop_pad=pad).crop
    assert shift is not None
    assert not shift.is_floating_point()
    for axis in (0, 1):
        assert_uniform_whole(shift[:, axis], -most[axis], most[axis])


@pytest.mark.parametrize(
    ("size", "ratio", "hole", "tops"),
    [
        # Even holes may be centred just past the end (one place more); odd ones may not.
        ((32, 32), 0.5, (16, 16), ((-8, 24), (-8, 24))),
        ((10, 14), 0.5, (5, 7), ((-2, 7), (-3, 10))),
        ((9, 20), 0.27, (2, 5), ((-1, 8), (-2, 17))),
    ],
)
def test_holes_are_centred_anywhere_on_the_image(
    size: tuple[int, int], ratio: float, hole: tuple[int, int], tops: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    params = drawn("cutout", size, cutout=ratio)
    assert params.cutout_size == hole
    assert params.cutout is not None
    for axis in (0, 1):
        assert_uniform_whole(params.cutout[:, axis], *tops[axis])


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 1.0])
def test_flips_come_as_often_as_said(probability: float) -> None:
    mirrored = drawn("flip", flip=probability).flip
    assert mirrored is not None
    assert mirrored.dtype == torch.bool
    assert abs(mirrored.double().mean() - probability) <= 5 * sqrt(probability * (1 - probability) / N)


def test_a_siamese_draw_has_the_same_distribution() -> None:
    augment = DSA("rotate", seed=5)
    angles = [augment.draw(torch.empty(100, 1, 8, 8)).rotate for _ in range(N)]
    assert_uniform(torch.cat([angle for angle in angles if angle is not None]), -15.0, 15.0)


def test_operations_are_chosen_equally_often() -> None:
    augment = DSA(seed=2)
    trials = 6000
    counts = Counter(augment.draw(torch.empty(1, 1, 8, 8)).ops[0] for _ in range(trials))
    assert set(counts) == set(OPERATIONS)
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 5 + 5 * sqrt(2 * 5)
