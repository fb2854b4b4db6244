"""The pictures, held to their definitions: one image at a time, in NumPy float64, and in PyTorch's own resampling."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import kornia
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from ddplug.augment.dsa import DSA, OPERATIONS, Params

pytestmark = pytest.mark.numerical

Array = NDArray[np.float64]

SIZES = [(8, 8), (8, 13), (32, 32), (40, 21), (64, 96)]


def drawn_view(
    op: str,
    size: tuple[int, int],
    channels: int,
    dtype: torch.dtype,
    siamese: bool,
    seed: int = 0,
    n: int = 4,
    **kw: Any,
) -> tuple[Tensor, Tensor, Params]:
    """Normalised images, their views and what was drawn."""
    noise = torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    images = (noise + 0.5).to(dtype)
    augment = DSA(op, siamese=siamese, seed=seed, **kw)
    views = augment(images)
    assert augment.last_params is not None
    return images, views, augment.last_params


def reference(images: Tensor, params: Params, align_corners: bool) -> Array:
    """The definition of every operation, applied image by image."""
    views = []
    for i, image in enumerate(images.double().numpy()):
        row = {name: values[0 if params.siamese else i].double().numpy() for name, values in params.tensors().items()}
        for op in params.ops:
            image = _PICTURES[op](image, row, params.cutout_size, align_corners)
        views.append(image)
    return np.stack(views)


def _color(image: Array, row: dict[str, Array], hole: tuple[int, int], align: bool) -> Array:
    image = image + row["brightness"]
    grey = image.sum(axis=0) / len(image)
    image = np.stack([grey + row["saturation"] * (channel - grey) for channel in image])
    middle = image.sum() / image.size
    view: Array = middle + row["contrast"] * (image - middle)
    return view


def _crop(image: Array, row: dict[str, Array], hole: tuple[int, int], align: bool) -> Array:
    down, right = (int(step) for step in row["crop"])
    view = np.zeros_like(image)
    for y, x in np.ndindex(image.shape[1:]):
        if 0 <= y + down < image.shape[1] and 0 <= x + right < image.shape[2]:
            view[:, y, x] = image[:, y + down, x + right]
    return view


def _cutout(image: Array, row: dict[str, Array], hole: tuple[int, int], align: bool) -> Array:
    top, left = (int(edge) for edge in row["cutout"])
    view = image.copy()
    view[:, max(top, 0) : max(top + hole[0], 0), max(left, 0) : max(left + hole[1], 0)] = 0
    return view


def _flip(image: Array, row: dict[str, Array], hole: tuple[int, int], align: bool) -> Array:
    return image[:, :, ::-1].copy() if row["flip"] else image


def _scale(image: Array, row: dict[str, Array], hole: tuple[int, int], align: bool) -> Array:
    vertical, horizontal = row["scale"]
    return _resampled(image, np.array([[horizontal, 0], [0, vertical]]), align)


def _rotate(image: Array, row: dict[str, Array], hole: tuple[int, int], align: bool) -> Array:
    angle = np.deg2rad(row["rotate"])
    return _resampled(image, np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]), align)


def _resampled(image: Array, matrix: Array, align: bool) -> Array:
    """Every pixel read bilinearly at its coordinates (x, y) in [-1, 1] times `matrix`, zero outside."""
    _, height, width = image.shape
    reach = np.array([width - 1, height - 1] if align else [width, height]) / 2
    centre = (np.array([width, height]) - 1) / 2
    y, x = np.mgrid[:height, :width]
    place = np.stack([x, y], -1) - centre
    column, row = np.moveaxis((place / reach) @ matrix.T * reach + centre, -1, 0)
    left, top = np.floor(column).astype(int), np.floor(row).astype(int)
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    view = np.zeros_like(image)
    for dy in (0, 1):
        for dx in (0, 1):
            near = padded[:, np.clip(top + dy + 1, 0, height + 1), np.clip(left + dx + 1, 0, width + 1)]
            view += near * (1 - np.abs(row - top - dy)) * (1 - np.abs(column - left - dx))
    return view


def rounding(op: str, images: Tensor, params: Params, align_corners: bool, dtype: torch.dtype) -> float:
    """How far from its definition, at most, a view lies if every step of its arithmetic is rounded to `dtype`.

    With u, half a unit in the last place of 1, every step is off by u times its own result, however the processor
    orders the sums, and whether or not it rounds a product before it adds. The bound is a sum over those steps, so
    nothing in it was measured.
    """
    if op in ("crop", "cutout", "flip"):
        return 0.0  # numbers are copied or replaced by zero, never computed with
    u = torch.finfo(dtype).eps / 2
    numbers = {name: values.double() for name, values in params.tensors().items()}
    images = images.double()
    if op == "color":
        return u * _color_roundings(images, numbers)
    # Columns and rows in [-1, 1]: the step of linspace, its multiple and the sum, 2 u together (of the two rounded
    # parts of a coordinate, one grows as the other falls); without aligned corners times (n - 1) / n, 2 u more.
    place = 2 if align_corners else 4
    if op == "scale":
        reach = numbers["scale"].abs().max().item()
        moved = reach * (place + 1)  # the coordinate's own, and that of the product
    else:
        angle = numbers["rotate"].deg2rad().abs().max().item()
        reach = math.sqrt(2)  # what |x cos| + |y sin| can be, and so a coordinate that was turned
        # The coordinate's own; the angle's, from pi, a product and a quotient; the cosine's and sine's, which are
        # right to one unit in the last place; that of the products; that of their sum.
        moved = reach * (place + 3 * angle + 2 + 1 + 1)
    # In pixels a coordinate is ((c + 1) size - 1) / 2, of which each step but the halving rounds (1 + reach) or less.
    moved += 3 * (1 + reach)
    # A picture read so many half widths and half heights beside its place changes by so many pixels' differences.
    across, down = _neighbours(images)
    width, height = images.shape[3] / 2, images.shape[2] / 2
    # Four weights that add up to 1: two distances and their product, times a pixel, and three sums.
    return u * (moved * (width * across + height * down) + 7 * images.abs().max().item())


def _color_roundings(images: Tensor, numbers: dict[str, Tensor]) -> float:
    """The same for the colours, in units of u: steps times what they work on, for the image that fares worst."""
    pixels, largest = images[0, 0].numel(), images.abs().amax((1, 2, 3))
    added, saturated, contrasted = (numbers[name].abs() for name in ("brightness", "saturation", "contrast"))
    grey = contrasted * (1 - numbers["saturation"]).abs() * largest  # the part of a view that its pixels' means are
    flat = (1 - numbers["contrast"]).abs() * images.abs().mean((1, 2, 3))  # the part that the image's mean is
    own = contrasted * saturated * largest
    # A mean of k numbers: k - 1 sums, in any order, and a quotient. A part: its mean's, 1 - factor, and its products.
    # All parts are then added up in three steps.
    parts = (3 + images.shape[1]) * grey + (2 + images.shape[1] + pixels) * flat + 2 * own
    return (parts + 3 * (grey + flat + own + added)).max().item()


def _neighbours(images: Tensor) -> tuple[float, float]:
    """The greatest difference between neighbouring pixels, across and down, where beyond the border all is zero."""
    padded = F.pad(images, (1, 1, 1, 1))
    return padded.diff(dim=3).abs().max().item(), padded.diff(dim=2).abs().max().item()


_PICTURES = {"color": _color, "crop": _crop, "cutout": _cutout, "flip": _flip, "scale": _scale, "rotate": _rotate}


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_view_is_what_its_definition_says(
    op: str, size: tuple[int, int], channels: int, dtype: torch.dtype
) -> None:
    for siamese in (True, False):
        for align_corners in (False, True):
            images, views, params = drawn_view(
                op, size, channels, dtype, siamese, flip=0.7, rotate=40, scale=1.5, align_corners=align_corners
            )
            assert views.dtype == dtype
            defined = torch.from_numpy(reference(images, params, align_corners))
            # The definition itself is rounded too, to float64, in about as many steps.
            bound = sum(rounding(op, images, params, align_corners, d) for d in (dtype, torch.float64))
            assert (views.double() - defined).abs().max() <= bound


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    op=st.sampled_from(list(OPERATIONS)),
    height=st.integers(2, 40),
    width=st.integers(2, 40),
    channels=st.integers(1, 4),
    siamese=st.booleans(),
    align_corners=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_the_definition_holds_for_any_size(
    op: str, height: int, width: int, channels: int, siamese: bool, align_corners: bool, seed: int
) -> None:
    images, views, params = drawn_view(
        op, (height, width), channels, torch.float64, siamese, seed, n=2, align_corners=align_corners
    )
    defined = torch.from_numpy(reference(images, params, align_corners))
    bound = 2 * rounding(op, images, params, align_corners, torch.float64)  # that of the views and of the definition
    assert (views - defined).abs().max() <= bound


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("siamese", [True, False])
@pytest.mark.parametrize("size", [(32, 32), (224, 224), (100, 224)])
@pytest.mark.parametrize("op", ["scale", "rotate"])
def test_resampling_is_pytorchs_own_but_for_rounding(
    op: str, size: tuple[int, int], siamese: bool, align_corners: bool
) -> None:
    """Both stay as near to what PyTorch makes of the same numbers in float64 as float32 arithmetic can promise.

    They differ from each other in the last digits of the coordinates, by how a processor multiplies and adds: in the
    matrix product of `affine_grid`, and in our sums. A 224-pixel image of noise shows that in its fifth digit.
    """
    images, views, params = drawn_view(op, size, 3, torch.float32, siamese, n=2, align_corners=align_corners)
    exact, single = (_pytorchs(op, images, params, align_corners, dtype) for dtype in (torch.float64, torch.float32))
    bound = sum(rounding(op, images, params, align_corners, dtype) for dtype in (torch.float32, torch.float64))
    assert (views.double() - exact).abs().max() <= bound
    # The bound is one for this arithmetic, not for our code: PyTorch's own, of other steps, keeps it as well.
    assert (single.double() - exact).abs().max() <= bound


def _pytorchs(op: str, images: Tensor, params: Params, align_corners: bool, dtype: torch.dtype) -> Tensor:
    """The views by `affine_grid` and `grid_sample`, image by image, in `dtype` from the drawn numbers on."""
    views = []
    numbers = params.tensors()[op].to(dtype)
    for i, image in enumerate(images.to(dtype)):
        row = numbers[0 if params.siamese else i]
        if op == "scale":
            matrix = torch.stack([row[1], row[0]]).diag()
        else:
            angle = row / 180 * math.pi
            matrix = torch.stack([torch.cos(angle), -torch.sin(angle), torch.sin(angle), torch.cos(angle)]).view(2, 2)
        theta = torch.cat([matrix, matrix.new_zeros(2, 1)], dim=1)[None]
        grid = F.affine_grid(theta, [1, *image.shape], align_corners=align_corners)
        views.append(F.grid_sample(image[None], grid, align_corners=align_corners)[0])
    return torch.stack(views)


def test_a_positive_angle_turns_anticlockwise_and_a_scale_above_one_shrinks() -> None:
    image = torch.zeros(1, 1, 9, 9)
    image[..., 4, 8] = 1.0  # three o'clock
    turned = DSA()(image, params=Params(("rotate",), True, rotate=torch.tensor([90.0])))
    torch.testing.assert_close(turned[0, 0, 0, 4], torch.tensor(1.0))  # twelve o'clock
    small = DSA()(torch.ones(1, 1, 12, 12), params=Params(("scale",), True, scale=torch.tensor([[2.0, 1.0]])))
    assert small[0, 0, :, 6].sum() == pytest.approx(6.0)
    assert small[0, 0, 6].sum() == pytest.approx(12.0)


def test_kornias_own_operations_agree_where_their_convention_fits() -> None:
    images = torch.randn(3, 3, 20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    degrees = torch.tensor([-14.0, 3.0, 40.0], dtype=torch.float64)
    factor = torch.tensor([[0.8, 1.3], [1.0, 0.7], [1.2, 1.1]], dtype=torch.float64)
    added, one = torch.tensor([-0.4, 0.1, 0.5], dtype=torch.float64), torch.ones(3, dtype=torch.float64)

    def view(op: str, **numbers: Any) -> Tensor:
        made: Tensor = DSA()(images, params=Params((op,), False, **numbers))
        return made

    across, down = _neighbours(images)

    def within(op: str, angle: float = 0.0, **numbers: Any) -> dict[str, float]:
        params = Params((op,), False, **numbers)
        # kornia composes and inverts matrices that count in pixels: a dozen sums of three products, rounded at
        # coordinates of up to 20. Before version 0.9 it takes pi from float32, which turns the picture, 10 pixels
        # times the square root of 2 to its corners, by half of that precision's last place more or less.
        pixels = 36 * 20 * torch.finfo(torch.float64).eps / 2
        pixels += 10 * math.sqrt(2) * angle * torch.finfo(torch.float32).eps / 2
        theirs = pixels * (across + down)
        return {"atol": rounding(op, images, params, False, torch.float64) + theirs, "rtol": 0}

    # Both turn anticlockwise; kornia in pixels, so only a square image comes out the same.
    turned = kornia.geometry.transform.rotate(images, degrees, align_corners=True)
    torch.testing.assert_close(
        view("rotate", rotate=degrees), turned, **within("rotate", math.radians(40), rotate=degrees)
    )
    wide = torch.cat([images, images], dim=3)
    sheared = DSA()(wide, params=Params(("rotate",), False, rotate=degrees))
    assert not torch.allclose(sheared, kornia.geometry.transform.rotate(wide, degrees, align_corners=True), atol=0.1)
    # kornia's factor enlarges, and is (horizontal, vertical).
    scaled = kornia.geometry.transform.scale(images, 1 / factor.flip(1), align_corners=True)
    torch.testing.assert_close(view("scale", scale=factor), scaled, **within("scale", scale=factor))
    mirrored = kornia.geometry.transform.hflip(images)
    torch.testing.assert_close(view("flip", flip=torch.ones(3, dtype=torch.bool)), mirrored)
    brighter = kornia.enhance.adjust_brightness(images, added, clip_output=False)
    torch.testing.assert_close(view("color", brightness=added, saturation=one, contrast=one), brighter)


def test_the_benchmark_times_equal_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "augment.py"
    benchmark = _module_at(path)
    out = tmp_path / "augment.json"
    benchmark.main(["--images", "3", "--repeats", "1", "--device", "cpu", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 2 * len(OPERATIONS)
    assert all(row["seconds"]["ddplug"] > 0 and row["times_faster"]["per_image"] > 0 for row in rows)
    assert capsys.readouterr().out.count("\n") == 2 + len(rows)


def _module_at(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- An independent implementation from PyPI ------------------------------------------------------------------------


def _ddranking() -> Any:
    """The module with ddranking's DSA, read alone: the package around it wants dependencies that this needs not."""
    found = importlib.util.find_spec("ddranking")
    if found is None or found.origin is None:
        pytest.skip("ddranking is not installed (pip install --no-deps ddranking)")
    return _module_at(Path(found.origin).parent / "aug" / "dsa.py")


@pytest.mark.parametrize("op", OPERATIONS)
def test_ddrankings_dsa_makes_the_same_views_of_the_same_numbers(op: str) -> None:
    settings = {"flip": 0.5, "scale": 1.2, "rotate": 15.0, "crop": 0.125, "cutout": 0.5}
    settings |= {"brightness": 1.0, "saturation": 2.0, "contrast": 0.5, "siamese": True, "latestseed": -1}
    theirs = _ddranking().DSA(dict(settings))
    images = torch.randn(4, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    for seed in range(5):
        # It seeds torch anew before every number, counting up from latestseed.
        theirs.params["latestseed"] = seed
        if op == "color":
            views = theirs.rand_contrast(theirs.rand_saturation(theirs.rand_brightness(images)))
        else:
            views = getattr(theirs, f"rand_{op}")(images)
        params = seeded(op, (24, 40), seed, len(images))
        ours = DSA(align_corners=True)(images, params=params)
        # Each is off by as much, one way or the other.
        torch.testing.assert_close(ours, views, atol=2 * rounding(op, images, params, True, torch.float32), rtol=0)


def seeded(op: str, size: tuple[int, int], seed: int, n: int) -> Params:
    """The siamese draw of one operation when every number is the first after seeding with seed, seed + 1, ..."""

    def uniform(step: int) -> Tensor:
        return torch.rand(n, generator=torch.Generator().manual_seed(seed + step))[:1]

    def whole(step: int, low: int, high: int) -> Tensor:
        return torch.randint(low, high, (n,), generator=torch.Generator().manual_seed(seed + step))[:1]

    reach, hole = [int(extent * 0.125 + 0.5) for extent in size], [int(extent * 0.5 + 0.5) for extent in size]
    numbers: dict[str, dict[str, Any]] = {
        "color": {"brightness": uniform(0) - 0.5, "saturation": 2 * uniform(1), "contrast": uniform(2) + 0.5},
        "crop": {"crop": torch.stack([whole(axis, -reach[axis], reach[axis] + 1) for axis in (0, 1)], dim=1)},
        "cutout": {
            "cutout": torch.stack(
                [whole(axis, 0, size[axis] + 1 - hole[axis] % 2) - hole[axis] // 2 for axis in (0, 1)], dim=1
            ),
            "cutout_size": (hole[0], hole[1]),
        },
        "flip": {"flip": uniform(0) < 0.5},
        # The first factor is the horizontal one.
        "scale": {"scale": torch.stack([uniform(1), uniform(0)], dim=1) * (1.2 - 1 / 1.2) + 1 / 1.2},
        "rotate": {"rotate": (uniform(0) - 0.5) * 2 * 15},
    }
    return Params((op,), True, size, **numbers[op])
