"""Draws the pictures of docs/idea.md: python docs/_site/pictures.py. Every number in them is computed by ddplug."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from ddplug import cmi
from ddplug.core.figures import figure_of

PICTURES = Path(__file__).resolve().parents[1] / "pictures"
CORNERS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]], dtype=torch.float64)
MIDDLES = ((2.2, 0.0, 0.0), (0.0, 2.2, 0.0), (0.0, 0.0, 2.2))


def features(spread: float) -> tuple[Tensor, Tensor]:
    """Logits (24, 3) of eight images of each of three classes, and their labels."""
    generator = torch.Generator().manual_seed(1)
    middles = torch.tensor(MIDDLES, dtype=torch.float64).repeat_interleave(8, 0)
    return middles + spread * torch.randn(24, 3, generator=generator, dtype=torch.float64), torch.arange(
        3
    ).repeat_interleave(8)


def simplex() -> None:
    """P of images and Q of classes on the triangle of three-class distributions, for a large and a small CMI."""
    figure = figure_of(8.4, 3.9)
    figure.set_layout_engine("constrained")
    for axis, spread in zip(figure.subplots(1, 2), (1.3, 0.3), strict=True):
        logits, labels = features(spread)
        logits.requires_grad_()
        value = cmi(logits, labels)
        (step,) = torch.autograd.grad(value, logits)
        p = logits.softmax(1).detach()
        moved = (logits - 20 * step).softmax(1).detach()
        axis.fill(*CORNERS.T, facecolor="none", edgecolor="0.6")
        for label in range(3):
            own = p[labels == label]
            at, to = own @ CORNERS, moved[labels == label] @ CORNERS
            axis.quiver(
                *at.T, *(to - at).T, angles="xy", scale_units="xy", scale=1, color=f"C{label}", alpha=0.6, width=0.006
            )
            axis.scatter(*at.T, s=22, color=f"C{label}", label="P of an image" if label == 0 else None)
            middle = own.mean(0) @ CORNERS
            axis.scatter(
                *middle,
                s=110,
                marker="*",
                color=f"C{label}",
                edgecolor="black",
                label="Q, the class's mean" if label == 0 else None,
            )
        for corner, name, down in zip(CORNERS, ("class 0", "class 1", "class 2"), (True, True, False), strict=True):
            axis.annotate(
                name,
                corner,
                ha="center",
                va="top" if down else "bottom",
                xytext=(0, -6 if down else 6),
                textcoords="offset points",
            )
        axis.set(title=f"CMI = {value.item():.3f} nats", aspect="equal", xlim=(-0.08, 1.08), ylim=(-0.12, 1.0))
        axis.axis("off")
    figure.axes[0].legend(loc="upper left", fontsize="small", frameon=False)
    save(figure, "simplex.svg")


def layer() -> None:
    """The way forward, where nothing changes, and the way back, where CMI's gradient comes in."""
    figure = figure_of(8.4, 2.9)
    axis = figure.add_axes((0, 0, 1, 1))
    boxes = {"synthetic\nimages": 0.07, "your\naugmentation": 0.30, "ddplug's layer": 0.55, "your loss": 0.80}
    for name, x in boxes.items():
        ours = name.startswith("ddplug")
        axis.text(
            x,
            0.72,
            name,
            ha="center",
            va="center",
            fontsize=11,
            bbox={"boxstyle": "round,pad=0.6", "facecolor": "#b2dfdb" if ours else "#eeeeee", "edgecolor": "0.4"},
        )
    arrow = {"arrowstyle": "->", "shrinkA": 0, "shrinkB": 0}
    for start, end in ((0.13, 0.22), (0.38, 0.47), (0.63, 0.74)):
        axis.annotate("", (end, 0.77), (start, 0.77), arrowprops={**arrow, "color": "0.3"})
        axis.annotate("", (start, 0.66), (end, 0.66), arrowprops={**arrow, "color": "C3"})
    axis.text(0.685, 0.81, "views", ha="center", fontsize=9)
    axis.text(0.685, 0.57, "g", ha="center", fontsize=10, color="C3")
    axis.text(0.425, 0.81, "views", ha="center", fontsize=9)
    axis.text(0.425, 0.53, "g + λ dCMI/dviews", ha="center", fontsize=10, color="C3")
    axis.text(
        0.55,
        0.2,
        "frozen proxies:  CMI of the views, and its gradient",
        ha="center",
        va="center",
        fontsize=10,
        bbox={"boxstyle": "round,pad=0.5", "facecolor": "#e0f2f1", "edgecolor": "0.4"},
    )
    axis.annotate("", (0.56, 0.6), (0.56, 0.3), arrowprops={**arrow, "color": "C3"})
    axis.annotate("", (0.54, 0.3), (0.54, 0.6), arrowprops={**arrow, "color": "0.3"})
    axis.text(0.07, 0.3, "grey: forward\nred: backward", ha="center", va="center", fontsize=9, color="0.3")
    axis.set(xlim=(0, 0.9), ylim=(0.05, 0.95))
    axis.axis("off")
    save(figure, "layer.svg")


def save(figure: object, name: str) -> None:
    """Without a date, so that the same picture is the same file."""
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "ddplug"
    figure.savefig(PICTURES / name, metadata={"Date": None})  # type: ignore[attr-defined]


if __name__ == "__main__":
    simplex()
    layer()
