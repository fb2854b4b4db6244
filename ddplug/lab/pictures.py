"""Panels of figures: the images of a set, a map of them among real images, and curves over the iterations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ddplug.datasets.by_class import ByClass
from ddplug.datasets.images import ImageData
from ddplug.datasets.spaces import AnySpace
from ddplug.errors import DataError
from ddplug.lab.statistics import curve
from ddplug.lab.tables import names_of
from ddplug.proxies.pool import ProxyPool

_SHOWN_PER_CLASS = 10
_REAL, _SYNTHETIC = 500, 200
"""Points of a map: real images, and synthetic ones of each set."""

Labelled = tuple[Tensor, Tensor]
"""Images (n, c, h, w) or points (n, 2), and their class numbers, int64 (n,)."""


def draw_images(axis: Any, images: Tensor, labels: Tensor, space: AnySpace, title: str) -> None:
    """Draw the first ten images of each class, a class to a row; `images` are (n, c, h, w) in `space`."""
    chosen = ByClass(labels).first(_SHOWN_PER_CLASS)
    columns = int(torch.bincount(labels[chosen]).max())
    pixels = space.to_unit(images[chosen].detach().cpu().float()).clamp(0, 1)
    rows = []
    for label in sorted(set(labels.tolist())):
        row = pixels[labels[chosen] == label]
        rows.append(torch.cat([row, row.new_ones(columns - len(row), *row.shape[1:])]))
    framed = torch.nn.functional.pad(torch.cat(rows), (0, 1, 0, 1), value=1.0)
    grid = rearrange(framed, "(row column) c h w -> (row h) (column w) c", column=columns)
    axis.imshow(grid.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_title(title)
    axis.axis("off")


@dataclass(frozen=True)
class Maps:
    """One t-SNE of real images and of several sets, by logits of one network."""

    real: Labelled
    sets: Mapping[str, Labelled]
    classes: int

    @classmethod
    def of(cls, sets: Mapping[str, Labelled], data: ImageData, pool: ProxyPool) -> Maps:
        """Place test images of `data` and the images of `sets`, all in its space, by logits of one proxy.

        Raises `DataError` without scikit-learn.
        """
        chosen = ByClass(data.test_labels).first(max(1, _REAL // data.num_classes))
        parts = [(data.test_images[chosen], data.test_labels[chosen].cpu())]
        for images, labels in sets.values():
            some = ByClass(labels).first(max(1, _SYNTHETIC // data.num_classes))
            parts.append((images[some].to(data.test_images.device), labels[some]))
        with torch.no_grad():
            logits = [pool.features(pool.proxies[0], images, data.space, "logit").float().cpu() for images, _ in parts]
        points = torch.split(_tsne(torch.cat(logits)), [len(labels) for _, labels in parts])
        real, *made = [(place, labels) for place, (_, labels) in zip(points, parts, strict=True)]
        return cls(real, dict(zip(sets, made, strict=True)), data.num_classes)

    def draw(self, axis: Any, name: str, title: str) -> None:
        """Draw one set as stars among the real images, which are dots; a colour is a class."""
        colours = {"cmap": "tab10" if self.classes <= 10 else "hsv", "vmin": 0, "vmax": max(self.classes - 1, 9)}
        (real, real_labels), (made, made_labels) = self.real, self.sets[name]
        axis.scatter(real[:, 0], real[:, 1], c=real_labels, s=6, alpha=0.35, linewidths=0, **colours)
        axis.scatter(
            made[:, 0], made[:, 1], c=made_labels, s=70, marker="*", edgecolors="black", linewidths=0.5, **colours
        )
        axis.set_title(title)
        axis.axis("off")


def draw_over_time(axis: Any, result: Mapping[str, Any], arms: Iterable[str], key: str, label: str) -> None:
    """Draw `key` of arms over the iterations: means over seeds, in bands of one standard deviation either way."""
    names, factor = names_of(result), 100.0 if key == "accuracies" else 1.0
    for arm in arms:
        iterations, values = curve(result["entries"], arm, key)
        mean = [factor * fmean(row) for row in values]
        spread = [factor * stdev(row) if len(row) > 1 else 0.0 for row in values]
        (line,) = axis.plot(iterations, mean, marker="o", markersize=3, label=names[arm])
        low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
        axis.fill_between(iterations, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axis.set(xlabel="iteration", ylabel=label)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")


def _tsne(features: Tensor) -> Tensor:
    """The t-SNE of features (n, d) as points (n, 2), drawn with a random state of its own."""
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise DataError("a map needs scikit-learn, which is not installed: pip install 'ddplug[demo]'") from error
    perplexity = min(30.0, (len(features) - 1) / 3)
    return torch.from_numpy(
        TSNE(init="pca", perplexity=perplexity, random_state=0, n_jobs=1).fit_transform(features.numpy())
    )
