"""Draw docs/augment-gallery.png: one photograph under every operation of `ddplug.augment.DSA`.

    python docs/make_gallery.py

The photograph is scikit-learn's sample "flower.jpg". It is normalised first, as a host's images are, and shown in
[0, 1] again, so what colour pushes out of range is clipped here and only here.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from kornia.geometry.transform import resize
from sklearn.datasets import load_sample_image
from torch import Tensor

from ddplug.augment.dsa import DSA, OPERATIONS
from ddplug.datasets.spaces import InputSpace

SPACE = InputSpace.normalized((0.49, 0.48, 0.45), (0.2, 0.2, 0.2))
COLUMNS = 5


def photograph(pixels: int = 96) -> Tensor:
    """The middle of the flower, (1, 3, pixels, pixels), in [0, 1]."""
    image = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None] / 255
    side = min(image.shape[2:])
    left = (image.shape[3] - side) // 2
    square: Tensor = resize(image[..., left : left + side], (pixels, pixels), antialias=True)
    return square


def main() -> None:
    """Draw the gallery beside this file."""
    image = photograph()
    rows: list[tuple[str, Tensor]] = []
    for op in OPERATIONS:
        rows.append((op, DSA(op, siamese=False, seed=4)(SPACE.from_unit(image).expand(COLUMNS, -1, -1, -1))))
    everything = DSA(mode="all", siamese=False, seed=4)
    rows.append(("all", everything(SPACE.from_unit(image).expand(COLUMNS, -1, -1, -1))))
    figure, axes = plt.subplots(len(rows), COLUMNS + 1, figsize=(COLUMNS + 1, len(rows)), layout="constrained")
    for line, (name, views) in zip(axes, rows, strict=True):
        line[0].set_ylabel(name)
        for axis, view in zip(line, [image[0], *SPACE.to_unit(views)], strict=True):
            axis.imshow(view.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
    axes[0, 0].set_title("image", fontsize=9)
    figure.savefig(Path(__file__).with_name("augment-gallery.png"), dpi=64)


if __name__ == "__main__":
    main()
