"""`ddplug plot`: what comparisons and runs left behind, drawn.

Comparisons (`compare.json`): what each weight changed, in accuracy and in the term, one line per comparison and kind of
views, and accuracy over the iterations where sets were judged more than once. Runs (the `cmi*.json` that the layer
writes beside a host's results, or a history's own file): the term on the views, lambda, and the share, round by round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddplug.core.figures import figure_of, rounds_figure, save_figure
from ddplug.errors import DataError, InputError
from ddplug.lab.folder import Comparison, Rounds, read_json
from ddplug.lab.pictures import draw_over_time
from ddplug.lab.tables import by_views, term_of, weight_name
from ddplug.utils.files import user_path

COMPARISON, RUN = "ddplug-compare", "ddplug-run"


def labelled(given: Sequence[str]) -> dict[str, Path]:
    """Paths by the names that they are drawn under: "LABEL=PATH", or a path alone, called by its name.

    Raises `InputError` for none, and for two of one name.
    """
    if not given:
        raise InputError("plot needs the result of a comparison, or of a run, to draw.")
    paths: dict[str, Path] = {}
    for text in given:
        label, equals, rest = text.partition("=")
        named = equals and not user_path(text).exists()
        path = user_path(rest if named else text)
        name = label if named else _called(path)
        if name in paths:
            raise InputError(f"two of the results are called {name!r}; name them: LABEL=PATH.")
        paths[name] = path
    return paths


def plot(paths: Mapping[str, Path], out: str | Path) -> Path:
    """Draw the comparisons or runs at `paths` into `out` (.png, .svg or .pdf); returns it.

    Args:
        paths: by label; a comparison's folder or its compare.json, or a run's cmi*.json.

    Raises:
        InputError: comparisons and runs are mixed, or the picture is of another kind.
        DataError: a path is missing or of another kind, or matplotlib is not installed.
    """
    results = {label: _read(path) for label, path in paths.items()}
    kinds = {result["format"] for result in results.values()}
    if len(kinds) > 1:
        raise InputError("comparisons and runs cannot be drawn into one figure; plot one kind at a time.")
    figure = _comparisons(results) if kinds == {COMPARISON} else _runs(results)
    save_figure(figure, out)
    return user_path(out)


def _called(path: Path) -> str:
    """Return the name of the file, or of its folder if all such files have one name."""
    if path.name in ("compare.json", "cmi.json"):
        return path.resolve().parent.name
    return path.resolve().name if path.is_dir() else path.stem


def _read(path: Path) -> dict[str, Any]:
    path = user_path(path)
    inside = [path / name for name in ("compare.json", "comparison/compare.json")]  # the second in a demo's folder
    file = next(filter(Path.is_file, inside), inside[0]) if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"there is no '{file}'; name a comparison's folder, or the cmi*.json of a run.")
    kind = Comparison if read_json(file, "name another").get("format") == COMPARISON else Rounds
    content = read_json(file, "name another", kind, "the result of a comparison or of a run")
    if content["format"] == COMPARISON:
        return content
    return {"format": RUN, "term": content.get("term"), "history": _history(file, content)}


def _history(file: Path, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rounds of a run in which the regulariser acted; nothing else of its file is needed."""
    acted = [
        {"number": of["number"], "value": of["value"], "lam": of["lam"], "share": of.get("share")}
        for of in content["history"]
        if not of["skipped"]
    ]
    if not acted:
        raise DataError(f"the run of '{file}' has no round in which the regulariser acted, so nothing to draw.")
    return acted


def _comparisons(results: Mapping[str, dict[str, Any]]) -> Any:
    series = [
        (label if len(by_views(result)) == 1 else f"{label}, {views} views", rows)
        for label, result in results.items()
        for views, rows in by_views(result).items()
    ]
    over_time = [label for label, result in results.items() if len(result["entries"][0]["checkpoints"]) > 1]
    figure = figure_of(5.2 * (2 + len(over_time)), 4.0)
    figure.set_layout_engine("constrained")
    gains, cmi, *others = figure.subplots(1, 2 + len(over_time))
    ticks = _places([row for _, rows in series for row in rows if row["views"] is not None])
    for number, (label, rows) in enumerate(series):
        weighted = sorted((row for row in rows if row["views"] is not None), key=lambda row: ticks[weight_name(row)])
        shift = 0.06 * (number - (len(series) - 1) / 2)  # so that intervals stand side by side
        x = [ticks[weight_name(row)] + shift for row in weighted]
        known = [row["interval"] or 0.0 for row in weighted]
        gains.errorbar(
            x, [100 * row["difference"] for row in weighted], yerr=[100 * half for half in known], marker="o",
            capsize=3, label=label,
        )  # fmt: skip
        ratios = [row["cmi_heldout_ratio"] or row["cmi_ratio"] for row in weighted]
        cmi.plot(x, ratios, marker="o", label=label)
    gains.axhline(0, color="black", linewidth=0.8)
    cmi.axhline(1, color="black", linewidth=0.8)
    gains.set(ylabel="accuracy, difference to weight 0 (points)", title="95 % intervals of paired differences")
    label = " or ".join(dict.fromkeys(term_of(result)[0] for result in results.values()))
    cmi.set(ylabel=f"{label} / {label} at weight 0", title="under held-out proxies, if any", ylim=(0, None))
    for axis in (gains, cmi):
        axis.set_xticks(list(ticks.values()), list(ticks))
        axis.set(xlabel="weight")
        axis.grid(alpha=0.3)
    gains.legend(fontsize="small")
    for axis, name in zip(others, over_time, strict=True):
        draw_over_time(axis, results[name], results[name]["arms"], "accuracies", "test accuracy (%)")
        axis.axhline(100 * results[name]["summary"][0]["accuracy"], color="black", linewidth=0.8, linestyle="--")
        axis.set_title(name)
    return figure


def _places(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the position of each weight on the axis: evenly spaced, rising, "paper" at the end."""
    weights = {weight_name(row): row["weight"] for row in rows}
    rising = sorted(weights, key=lambda name: float("inf") if weights[name] == "paper" else weights[name])
    return {name: float(place) for place, name in enumerate(rising)}


def _runs(results: Mapping[str, dict[str, Any]]) -> Any:
    said = dict.fromkeys("{} of the views ({})".format(*term_of(run)) for run in results.values())
    return rounds_figure({label: run["history"] for label, run in results.items()}, " or ".join(said))
