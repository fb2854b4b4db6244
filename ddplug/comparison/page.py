"""The page of a comparison: one HTML file with everything in it, for a browser without a network."""

from __future__ import annotations

import base64
import html
import importlib.util
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ddplug.comparison.judge import Judge
from ddplug.comparison.own_trainer import set_name
from ddplug.comparison.statistics import COSTS, RESULTS, by_views, costs, curve, judging, left_out, results
from ddplug.datasets.synthetic import SyntheticSet, load_set
from ddplug.errors import DataError
from ddplug.evaluation.evaluate import with_space
from ddplug.evaluation.report import figure_of
from ddplug.utils.files import replacing

PAGE = "report.html"
_SHOWN_PER_CLASS = 10
_REAL, _SYNTHETIC = 500, 200
"""Points of the t-SNE: real images, and synthetic ones of each arm."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1200px; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; } th, td { padding: .3em .7em; text-align: right; }
th { border-bottom: 2px solid #222; } td { border-bottom: 1px solid #ddd; } img { max-width: 100%; }
.row { display: flex; flex-wrap: wrap; gap: 1em; } figure { margin: 0; } pre { background: #f6f6f6; padding: 1em; }
.note { color: #666; }
"""


def lacking() -> str | None:
    """What to install for the page to be written, as a sentence; None if everything is there."""
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

    `result` is the content of `compare.json`, `entries` the folder of its entries. Raises `DataError`, which says what
    to install, without matplotlib or scikit-learn.
    """
    shown = min(entry["seed"] for entry in result["entries"])
    first = [entry for entry in result["entries"] if entry["seed"] == shown]
    sets = {
        entry["arm"]: load_set(entries / entry["name"] / set_name(entry["checkpoints"][-1]["iteration"]))
        for entry in first
    }
    kept = {arm: (_plain(made, judge), made.classes) for arm, made in sets.items()}
    host, data = html.escape(result["host"]), html.escape(result["data"]["name"])
    parts = [f"<h1>{host} on {data}, with and without CMI</h1>", _intro(result)]
    for views, rows in by_views(dict(result)).items():
        parts += [f"<h2>On {views} views</h2>", _table(result, rows), _curves(result, [row["arm"] for row in rows])]
    parts += ["<h2>Images</h2>", f"<p class=note>Seed {shown}, at the end; a class is a row.</p><div class=row>"]
    parts += [f"<figure>{_images(arm, *given, judge)}</figure>" for arm, given in kept.items()]
    parts += ["</div><h2>Where they lie</h2>", _embedding_note(judge), _embedding(kept, judge)]
    parts += ["<h2>Settings</h2>", f"<pre>{html.escape(json.dumps(_settings(result), indent=1))}</pre>"]
    text = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>ddplug compare: {host} on {data}</title>"
        f"<style>{_STYLE}</style>{''.join(parts)}</html>\n"
    )
    with replacing(out / PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return out / PAGE


def _intro(result: Mapping[str, Any]) -> str:
    missing = left_out(result)
    return (
        f"<p>{result['seeds']} seeds, in each of which all arms share start, networks, batches and augmentation; every "
        f"set judged by {result['settings']['runs']} fresh networks ({judging(result)}). After an accuracy stands the "
        "standard deviation over seeds; after a difference, which is paired by seed, its 95 % t-interval. CMI in nats."
        "</p>" + (f"<p class=note>{html.escape(missing)}</p>" if missing else "")
    )


def _plain(made: SyntheticSet, judge: Judge) -> Tensor:
    """A set's images as the data's are."""
    space = with_space(made, None, judge.data).space
    assert space is not None  # with_space sees to it
    return space.convert(made.images, judge.data.space)


def _settings(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: result[key] for key in ("ddplug", "torch", "host", "data", "device", "settings", "proxies", "heldout")}


def _table(result: Mapping[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    head = "".join(f"<th>{html.escape(name)}" for name in (*RESULTS, *COSTS))
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in (*results(row), *costs(dict(result), row)))
        for row in rows
    )
    return f"<table><tr>{head}{body}</table>"


def _curves(result: Mapping[str, Any], arms: Sequence[str]) -> str:
    """Accuracy and CMI over the iterations: the mean over seeds, in a band of one standard deviation either way."""
    kinds = [("accuracies", "test accuracy (%)", 100.0), ("cmi", "CMI, training pool (nats)", 1.0)]
    if result["heldout"] is not None:
        kinds.append(("cmi_heldout", "CMI, held-out pool (nats)", 1.0))
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
    return _img(figure, "accuracy and CMI over the iterations")


def _images(arm: str, images: Tensor, labels: Tensor, judge: Judge) -> str:
    """The first images of every class, a class to a row."""
    chosen = _some_of_each(labels, _SHOWN_PER_CLASS)
    columns = int(torch.bincount(labels[chosen]).max())
    pixels = judge.data.space.to_unit(images[chosen].float()).clamp(0, 1)
    rows = []
    for label in _classes(labels):
        row = pixels[labels[chosen] == label]
        rows.append(torch.cat([row, row.new_ones(columns - len(row), *row.shape[1:])]))
    framed = torch.nn.functional.pad(torch.cat(rows), (0, 1, 0, 1), value=1.0)
    grid = rearrange(framed, "(row column) c h w -> (row h) (column w) c", column=columns)
    figure = figure_of(3.6, 3.6 * grid.shape[0] / grid.shape[1] + 0.4)
    axis = figure.subplots()
    axis.imshow(grid.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_title(arm)
    axis.axis("off")
    return _img(figure, f"synthetic images of {arm}")


def _embedding_note(judge: Judge) -> str:
    pool = judge.heldout or judge.pool
    kind = "held-out" if judge.heldout else "training"
    return (
        f"<p class=note>t-SNE of the penultimate features under {html.escape(pool.proxies[0].name)} of the {kind} "
        "pool: real test images (dots) and the same seed's synthetic images (stars), coloured by class. One embedding "
        "for all panels, so that the real images are where they are in each.</p>"
    )


def _embedding(kept: Mapping[str, tuple[Tensor, Tensor]], judge: Judge) -> str:
    data, pool = judge.data, judge.heldout or judge.pool
    chosen = _some_of_each(data.test_labels, max(1, _REAL // data.num_classes))
    parts = {"": (data.test_images[chosen], data.test_labels[chosen].cpu())}
    for arm, (images, labels) in kept.items():
        some = _some_of_each(labels, max(1, _SYNTHETIC // data.num_classes))
        parts[arm] = (images[some].to(data.test_images.device), labels[some])
    with torch.no_grad():
        features = [
            pool.proxies[0](pool.prepare(piece, data.space)).float().cpu()
            for images, _ in parts.values()
            for piece in torch.split(images, 256)
        ]
    points = torch.split(_tsne(torch.cat(features)), [len(labels) for _, labels in parts.values()])
    columns = min(3, len(kept))
    rows = -(-len(kept) // columns)
    figure = figure_of(4.2 * columns, 4.2 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    colours = {"cmap": "tab10" if data.num_classes <= 10 else "hsv", "vmin": 0, "vmax": max(data.num_classes - 1, 9)}
    real, real_labels = points[0], parts[""][1]
    for axis, arm, place in zip(axes, kept, points[1:], strict=False):
        axis.scatter(real[:, 0], real[:, 1], c=real_labels, s=6, alpha=0.35, linewidths=0, **colours)
        axis.scatter(
            place[:, 0], place[:, 1], c=parts[arm][1], s=70, marker="*", edgecolors="black", linewidths=0.5, **colours
        )
        axis.set_title(arm)
    for axis in axes:
        axis.axis("off")
    return _img(figure, "t-SNE of real and synthetic images")


def _tsne(features: Tensor) -> Tensor:
    """(n, d) to (n, 2), with a random state of its own."""
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise DataError("the page needs scikit-learn, which is not installed: pip install 'ddplug[demo]'") from error
    perplexity = min(30.0, (len(features) - 1) / 3)
    return torch.from_numpy(
        TSNE(init="pca", perplexity=perplexity, random_state=0, n_jobs=1).fit_transform(features.numpy())
    )


def _some_of_each(labels: Tensor, count: int) -> Tensor:
    """Indices of the first `count` images of every class, by class."""
    return torch.cat([(labels == label).nonzero().flatten()[:count] for label in _classes(labels)])


def _classes(labels: Tensor) -> list[int]:
    return sorted(set(labels.tolist()))


def _img(figure: Any, what: str) -> str:
    """The figure as an <img> that holds its own bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(what)}" src="data:image/png;base64,{encoded}">'
