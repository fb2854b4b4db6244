"""Tables and pictures: what came out, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from ddplug.core.figures import figure_of, save_figure
from ddplug.datasets.spaces import AnySpace
from ddplug.lab.measure import Measurement
from ddplug.proxies.representations import PLURAL

if TYPE_CHECKING:
    from rich.table import Table

    from ddplug.lab.evaluate import Evaluation


def measurement_table(measurement: Measurement, title: str, class_names: Sequence[str] | None = None) -> Table:
    """A table of a measurement: the whole set, then class by class."""
    from rich.table import Table

    table = Table("class", "CMI (nats)", title=title, caption=_caption(measurement))
    for label, value in measurement.per_class.items():
        table.add_row(class_names[label] if class_names and label < len(class_names) else str(label), f"{value:.6f}")
    table.add_section()
    table.add_row("all", f"{measurement.cmi:.6f} ± {measurement.cmi_std:.6f}")
    if measurement.ncmi is not None:
        table.add_row(f"separation ({measurement.separation_name})", f"{measurement.separation:.6f}")
        table.add_row("NCMI = CMI / separation", f"{measurement.ncmi:.6f}")
    return table


def evaluation_table(evaluation: Evaluation, title: str) -> Table:
    """A row per architecture: mean, standard deviation and every run; CMI below."""
    from rich.table import Table

    settings = evaluation.settings
    table = Table(
        "architecture", "test accuracy", "runs", title=title,
        caption=(
            f"{settings['dataset']}, {settings['space']}; {settings['epochs']} epochs, lr {settings['lr']:g}, batch "
            f"{settings['batch_size']}, seed {settings['seed']}, augmentation {settings['augment']}"
        ),
    )  # fmt: skip
    for name, runs in evaluation.accuracies.items():
        row = f"{evaluation.mean(name):.2%} ± {evaluation.std(name):.2%}"
        table.add_row(name, row, "  ".join(f"{value:.2%}" for value in runs))
    if evaluation.cmi is not None:
        table.add_section()
        table.add_row("CMI (nats)", f"{evaluation.cmi.cmi:.6f}", f"under {evaluation.cmi.proxies} proxies")
    return table


def _caption(measurement: Measurement) -> str:
    return (
        f"{measurement.images} images, {measurement.proxies} proxies (± std between them), "
        f"{PLURAL[measurement.representation]}, T = {measurement.temperature:g}"
    )


def picture_grid(sets: Mapping[str, Tensor], space: AnySpace, path: str | Path, *, columns: int) -> None:
    """Draw sets of images (n, c, h, w) below each other, `columns` to a row (images per class: a class is a row)."""
    figure = figure_of(4.2 * len(sets), 4.6)
    axes = figure.subplots(1, len(sets), squeeze=False)
    for axis, (title, images) in zip(axes[0], sets.items(), strict=True):
        missing = -len(images) % columns
        pixels = space.to_unit(images.detach().cpu().float()).clamp(0, 1)
        pixels = torch.cat([pixels, pixels.new_ones(missing, *pixels.shape[1:])])
        framed = torch.nn.functional.pad(pixels, (0, 1, 0, 1), value=1.0)
        grid = rearrange(framed, "(row column) c h w -> (row h) (column w) c", column=columns)
        axis.imshow(grid.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title)
        axis.axis("off")
    save_figure(figure, path)


def curves(
    series: Mapping[str, tuple[Sequence[int], Sequence[float]]], path: str | Path, *, title: str, x: str, y: str
) -> None:
    """Draw curves, each its x values and y values, with a logarithmic y axis if all values are positive.

    The part of a name before its first comma says what a curve is of; several of one kind share a colour.
    """
    figure = figure_of(6.4, 4.2)
    axis = figure.subplots()
    colours: dict[str, str] = {}
    for name, (xs, ys) in series.items():
        kind = name.partition(",")[0]  # repetitions of one thing share its colour and its line in the legend
        label = None if kind in colours else kind
        axis.plot(xs, ys, label=label, color=colours.setdefault(kind, f"C{len(colours)}"), alpha=0.8)
    if all(value > 0 for _, ys in series.values() for value in ys):
        axis.set_yscale("log")
    axis.set(title=title, xlabel=x, ylabel=y)
    axis.grid(alpha=0.3)
    axis.legend()
    save_figure(figure, path)
