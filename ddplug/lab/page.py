"""The page of a comparison: one HTML file with everything in it, for a browser without a network."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from torch import Tensor

from ddplug.core.figures import figure_of
from ddplug.lab.folder import set_name
from ddplug.lab.judge import Judge
from ddplug.lab.meaning import kept_set
from ddplug.lab.pictures import Labelled, Maps, draw_images, draw_over_time
from ddplug.lab.tables import (
    COSTS,
    by_views,
    costs,
    further_tables,
    judging,
    left_out,
    names_of,
    result_columns,
    results,
    term_of,
    verdict,
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

    `result` is the content of `compare.json`, `entries` the folder of its runs. Raises `DataError` without
    matplotlib or scikit-learn.
    """
    names, sets = names_of(result), dict[str, Labelled]()
    for entry in (entry for entry in result["entries"] if entry["seed"] == result["first_seed"]):
        file = entries / entry["name"] / set_name(entry["checkpoints"][-1]["iteration"])
        made, space = kept_set(file, judge.data)
        sets[names[entry["arm"]]] = (space.convert(made.images, judge.data.space), made.classes)
    pool = judge.heldout or judge.pool
    label, unit = term_of(result)
    settings = ("ddplug", "torch", "host", "data", "device", "settings", "proxies", "heldout")
    text = template().render(
        host=result["host"],
        data=result["data"]["name"],
        seeds=result["seeds"],
        runs=result["settings"]["runs"],
        judging=judging(result),
        verdict=verdict(result),
        left_out=left_out(result),
        columns=(*result_columns(result), *COSTS),
        label=label,
        unit=unit,
        tables=[_table(result, views, rows) for views, rows in by_views(result).items()],
        seed=result["first_seed"],
        images=[_images(name, *made, judge) for name, made in sets.items()],
        proxy=pool.proxies[0].name,
        pool="held-out" if judge.heldout else "training",
        embedding=_maps(sets, judge),
        settings=json.dumps({key: result[key] for key in settings}, indent=1),
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


def _table(result: Mapping[str, Any], views: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The arms of one kind of views: a row of cells for each, and the curves."""
    return {
        "views": views,
        "rows": [(*results(row), *costs(result, row)) for row in rows],
        "further": further_tables(result, rows),
        "curves": _curves(result, [row["arm"] for row in rows]),
    }


def _curves(result: Mapping[str, Any], arms: Sequence[str]) -> _Picture:
    """Accuracy, and the term under each pool, over the iterations."""
    label, unit = term_of(result)
    kinds = {"accuracies": "test accuracy (%)", "cmi": f"{label}, training pool ({unit})"}
    if result["heldout"] is not None:
        kinds["cmi_heldout"] = f"{label}, held-out pool ({unit})"
    figure = figure_of(5.2 * len(kinds), 3.8)
    figure.set_layout_engine("constrained")
    for axis, (key, shown) in zip(figure.subplots(1, len(kinds)), kinds.items(), strict=True):
        draw_over_time(axis, result, arms, key, shown)
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
