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

from ddplug.augment import DSA, OPERATIONS, Params

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


_PICTURES = {"color": _color, "crop": _crop, "cutout": _cutout, "flip": _flip, "scale": _scale, "rotate": _rotate}


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_every_view_is_what_its_definition_says(
    op: str, size: tuple[int, int], channels: int, dtype: torch.dtype, tolerance: float
) -> None:
    # float32 places a pixel to within 1e-7 of the half width: what that means for a picture grows with its size.
    tolerance *= max(1.0, max(size) / 16)
    for siamese in (True, False):
        for align_corners in (False, True):
            images, views, params = drawn_view(
                op, size, channels, dtype, siamese, flip=0.7, rotate=40, scale=1.5, align_corners=align_corners
            )
            assert views.dtype == dtype
            np.testing.assert_allclose(views, reference(images, params, align_corners), rtol=0, atol=tolerance)


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
    np.testing.assert_allclose(views, reference(images, params, align_corners), rtol=0, atol=1e-11)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("siamese", [True, False])
@pytest.mark.parametrize("size", [(32, 32), (224, 224), (100, 224)])
@pytest.mark.parametrize("op", ["scale", "rotate"])
def test_resampling_is_pytorchs_own_to_the_last_digits(
    op: str, size: tuple[int, int], siamese: bool, align_corners: bool
) -> None:
    images, views, params = drawn_view(op, size, 3, torch.float32, siamese, n=2, align_corners=align_corners)
    rows = params.tensors()[op].expand(2, -1) if op == "scale" else params.tensors()[op].expand(2)
    for image, view, row in zip(images, views, rows, strict=True):
        if op == "scale":
            matrix = torch.stack([row[1], row[0]]).diag()
        else:
            angle = row / 180 * math.pi
            matrix = torch.stack([torch.cos(angle), -torch.sin(angle), torch.sin(angle), torch.cos(angle)]).view(2, 2)
        theta = torch.cat([matrix, torch.zeros(2, 1)], dim=1)[None]
        grid = F.affine_grid(theta, [1, 3, *size], align_corners=align_corners)
        expected = F.grid_sample(image[None], grid, align_corners=align_corners)[0]
        torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)


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

    # Both turn anticlockwise; kornia in pixels, so only a square image comes out the same.
    turned = kornia.geometry.transform.rotate(images, degrees, align_corners=True)
    torch.testing.assert_close(view("rotate", rotate=degrees), turned, atol=1e-5, rtol=0)
    wide = torch.cat([images, images], dim=3)
    sheared = DSA()(wide, params=Params(("rotate",), False, rotate=degrees))
    assert not torch.allclose(sheared, kornia.geometry.transform.rotate(wide, degrees, align_corners=True), atol=0.1)
    # kornia's factor enlarges, and is (horizontal, vertical).
    scaled = kornia.geometry.transform.scale(images, 1 / factor.flip(1), align_corners=True)
    torch.testing.assert_close(view("scale", scale=factor), scaled, atol=1e-5, rtol=0)
    mirrored = kornia.geometry.transform.hflip(images)
    torch.testing.assert_close(view("flip", flip=torch.ones(3, dtype=torch.bool)), mirrored)
    brighter = kornia.enhance.adjust_brightness(images, added, clip_output=False)
    torch.testing.assert_close(view("color", brightness=added, saturation=one, contrast=one), brighter)


def test_the_benchmark_times_equal_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parent.parent / "benchmarks" / "augment.py"
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
        ours = DSA(align_corners=True)(images, params=seeded(op, (24, 40), seed, len(images)))
        torch.testing.assert_close(ours, views, atol=1e-5, rtol=0)


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
