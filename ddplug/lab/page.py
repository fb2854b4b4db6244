"""The page of a comparison: one HTML file with everything in it, for a browser without a network."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from torch import Tensor

from ddplug.core.figures import figure_of
from ddplug.datasets.synthetic import SyntheticSet, load_set
from ddplug.lab.judge import Judge
from ddplug.lab.meaning import with_space
from ddplug.lab.own_trainer import set_name
from ddplug.lab.pictures import Labelled, Maps, draw_images
from ddplug.lab.statistics import curve
from ddplug.lab.tables import (
    COSTS,
    between_terms,
    by_views,
    costs,
    further_tables,
    judging,
    left_out,
    result_columns,
    results,
    term_of,
)
from ddplug.utils.files import replacing

PAGE = "report.html"


@dataclass(frozen=True)
class _Picture:
    """A figure as the template shows it."""

    text: str
    """What it shows, for those who cannot see it."""
    png: str
    """The bytes of the PNG file in base64."""


def lacking() -> str | None:
    """Return a sentence that names the packages missing for the page; None if all are installed."""
    packages = {"matplotlib": "matplotlib", "sklearn": "scikit-learn"}
    missing = [name for module, name in packages.items() if importlib.util.find_spec(module) is None]
    if not missing:
        return None
    return (
        f"{PAGE} is left out: it needs {' and '.join(missing)}. Install with: pip install 'ddplug[demo]'; the same "
        "command then writes it."
    )


def write_page(result: Mapping[str, Any], out: Path, entries: Path, judge: Judge) -> Path:
    """Write `report.html` into `out`: table, curves, images and t-SNE; returns its path.

    `result` is the content of `compare.json`, `entries` the folder of its runs. Raises `DataError`, which says what
    to install, without matplotlib or scikit-learn.
    """
    shown = min(entry["seed"] for entry in result["entries"])
    first = [entry for entry in result["entries"] if entry["seed"] == shown]
    sets = {
        entry["arm"]: load_set(entries / entry["name"] / set_name(entry["checkpoints"][-1]["iteration"]))
        for entry in first
    }
    kept = {arm: (_plain(made, judge), made.classes) for arm, made in sets.items()}
    pool = judge.heldout or judge.pool
    label, unit = term_of(result)
    text = template().render(
        host=result["host"],
        data=result["data"]["name"],
        seeds=result["seeds"],
        runs=result["settings"]["runs"],
        judging=judging(result),
        left_out=left_out(result),
        columns=(*result_columns(result), *COSTS),
        label=label,
        unit=unit,
        tables=[_table(result, views, rows) for views, rows in by_views(dict(result)).items()],
        seed=shown,
        images=[_images(arm, *given, judge) for arm, given in kept.items()],
        proxy=pool.proxies[0].name,
        pool="held-out" if judge.heldout else "training",
        embedding=_maps(kept, judge),
        settings=json.dumps(_settings(result), indent=1),
    )
    with replacing(out / PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return out / PAGE


def template() -> Template:
    """The page's markup, a file beside this one. Whatever is put in is escaped."""
    environment = Environment(
        loader=PackageLoader("ddplug.lab", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html.j2")


def _plain(made: SyntheticSet, judge: Judge) -> Tensor:
    """The images (n, c, h, w) of a set in the input space of the data."""
    space = with_space(made, None, judge.data).space
    assert space is not None  # with_space sees to it
    return space.convert(made.images, judge.data.space)


def _settings(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: result[key] for key in ("ddplug", "torch", "host", "data", "device", "settings", "proxies", "heldout")}


def _table(result: Mapping[str, Any], views: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The arms of one kind of views: a row of cells for each, and the curves."""
    return {
        "views": views,
        "rows": [(*results(row), *costs(dict(result), row)) for row in rows],
        "further": [*further_tables(rows), *between_terms(result, rows)],
        "curves": _curves(result, [row["arm"] for row in rows]),
    }


def _curves(result: Mapping[str, Any], arms: Sequence[str]) -> _Picture:
    """Accuracy and the term over the iterations: means over seeds, in bands of one standard deviation either way."""
    label, unit = term_of(result)
    kinds = [("accuracies", "test accuracy (%)", 100.0), ("cmi", f"{label}, training pool ({unit})", 1.0)]
    if result["heldout"] is not None:
        kinds.append(("cmi_heldout", f"{label}, held-out pool ({unit})", 1.0))
    figure = figure_of(5.2 * len(kinds), 3.8)
    figure.set_layout_engine("constrained")
    for axis, (key, label, factor) in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        for arm in arms:
            iterations, values = curve(result["entries"], arm, key)
            mean = [factor * fmean(row) for row in values]
            (line,) = axis.plot(iterations, mean, marker="o", markersize=3, label=arm)
            spread = [factor * stdev(row) if len(row) > 1 else 0.0 for row in values]
            low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
            axis.fill_between(iterations, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axis.set(xlabel="iteration", ylabel=label)
        axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    return _picture(figure, f"accuracy and {label} over the iterations")


def _images(arm: str, images: Tensor, labels: Tensor, judge: Judge) -> _Picture:
    figure = figure_of(3.6, 3.6)
    draw_images(figure.subplots(), images, labels, judge.data.space, arm)
    return _picture(figure, f"synthetic images of {arm}")


def _maps(kept: Mapping[str, Labelled], judge: Judge) -> _Picture:
    maps = Maps.of(kept, judge.data, judge.heldout or judge.pool)
    columns = min(3, len(kept))
    rows = -(-len(kept) // columns)
    figure = figure_of(4.2 * columns, 4.2 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, arm in zip(axes, kept, strict=False):
        maps.draw(axis, arm, arm)
    for axis in axes[len(kept) :]:
        axis.axis("off")
    return _picture(figure, "t-SNE of real and synthetic images")


def _picture(figure: Any, text: str) -> _Picture:
    """The figure, drawn, and what it shows."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    return _Picture(text, base64.b64encode(buffer.getvalue()).decode())
