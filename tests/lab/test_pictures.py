"""Panels of figures: images class by class, and maps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ddplug import InputSpace, ProxyPool
from ddplug.core.figures import figure_of, save_figure
from ddplug.datasets.images import ImageData
from ddplug.lab.pictures import Maps, draw_images

pytest.importorskip("matplotlib")
SPACE = InputSpace.normalized((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def shown(images: Tensor, labels: list[int], space: InputSpace) -> Any:
    """Return the pixels that are drawn."""
    axis = figure_of(3.0, 3.0).subplots()
    draw_images(axis, images, torch.tensor(labels), space, "title")
    return torch.as_tensor(axis.images[0].get_array())


def test_a_class_is_a_row_whatever_the_order_of_the_images() -> None:
    images = torch.tensor([0.6, 0.1, 0.7, 0.2]).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    pixels = shown(SPACE.from_unit(images), [1, 0, 1, 0], SPACE)[..., 0]
    assert torch.allclose(pixels[::3, ::3], torch.tensor([[0.1, 0.2], [0.6, 0.7]]), atol=1e-6)
    assert (pixels[2::3] == 1).all(), "a white line below each row"


def test_a_class_of_fewer_images_is_filled_up_and_of_more_than_ten_is_cut() -> None:
    pixels = shown(torch.zeros(14, 1, 4, 4), [0] * 12 + [3] * 2, InputSpace.unit(1))
    assert pixels.shape[:2] == (2 * 5, 10 * 5)
    assert (pixels[5:, 2 * 5 :] == 1).all()


def test_a_map_shows_each_set_among_the_same_real_images(digits: ImageData, trained: Callable[..., Path]) -> None:
    pytest.importorskip("sklearn")
    sets = {
        name: (digits.train_images[at : at + 20], digits.train_labels[at : at + 20])
        for name, at in (("a", 0), ("b", 50))
    }
    maps = Maps.of(sets, digits, ProxyPool.load(trained(1)))
    axes = figure_of(6.0, 3.0).subplots(1, 2)
    for axis, name in zip(axes, sets, strict=True):
        maps.draw(axis, name, name)
    dots, stars = zip(*(axis.collections for axis in axes), strict=True)
    assert (dots[0].get_offsets() == dots[1].get_offsets()).all()
    assert [len(each.get_offsets()) for each in stars] == [20, 20]
    assert (stars[0].get_offsets() != stars[1].get_offsets()).any()
    assert sorted(stars[0].get_array()) == sorted(sets["a"][1].tolist())


def test_a_drawing_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(self: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", half)
    with pytest.raises(KeyboardInterrupt):
        save_figure(figure_of(1.0, 1.0), tmp_path / "cmi.png")
    assert os.listdir(tmp_path) == []


def test_drawing_does_not_touch_pyplot(tmp_path: Path) -> None:
    program = f"""
import sys, torch
from ddplug import InputSpace
from ddplug.core.figures import figure_of, save_figure
from ddplug.lab.pictures import draw_images
def draw():
    figure = figure_of(2.0, 2.0)
    draw_images(figure.subplots(), torch.rand(2, 1, 4, 4), torch.tensor([0, 1]), InputSpace.unit(1), "")
    save_figure(figure, r"{tmp_path}/g.png")
draw()
assert "matplotlib.pyplot" not in sys.modules, "pyplot was imported"
import matplotlib; matplotlib.use("svg")
from matplotlib import pyplot
mine = pyplot.figure()
draw()
assert matplotlib.get_backend() == "svg" and pyplot.get_fignums() == [1] and pyplot.gcf() is mine
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
