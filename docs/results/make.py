"""Write the tables and pictures of README.md anew from the raw figures beside it: `python docs/results/make.py`.

A table is between `<!-- table: FOLDER: name; FOLDER: name -->` and `<!-- end -->`, where FOLDER holds a `compare.json`,
and the name stands in the table's first column.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddplug.lab.folder import read_json
from ddplug.lab.tables import between_terms, by_views, plus_minus, weight_name

HERE = Path(__file__).parent
BLOCK = re.compile(r"(<!-- table: ([^>]+) -->\n).*?(<!-- end -->)", re.DOTALL)
COLUMNS = ("weight", "without", "with", "difference", "held-out CMI", "lambda", "share", "p")


def parts(named: str) -> dict[str, str]:
    """Names of rows by folder."""
    return {folder.strip(): name.strip() for folder, _, name in (part.partition(":") for part in named.split(";"))}


def table(folders: Mapping[str, str]) -> str:
    """Comparisons as Markdown: a row per arm beside its baseline; then differences between arms of several terms."""
    rows, further = [], ""
    for folder, name in folders.items():
        result = read_json(HERE / folder / "compare.json")
        for without, *arms in by_views(result).values():
            rows += [(name, *cells(without, row)) for row in arms]
            further += "".join("\n" + lines(*part) for part in between_terms(result, [without, *arms]))
    first = 0 if any(folders.values()) else 1
    last = None if any(row[-1] for row in rows) else -1
    return lines(("", *COLUMNS)[first:last], [row[first:last] for row in rows]) + further


def cells(without: Mapping[str, Any], row: dict[str, Any]) -> list[str]:
    """An arm beside its baseline, by `COLUMNS`; a difference is bold if its interval excludes 0."""
    ratio = row["cmi_heldout_ratio"] or row["cmi_ratio"]
    difference = plus_minus(row["difference"], row["interval"], sign=True)
    return [
        weight_name(row),
        plus_minus(without["accuracy"], without["accuracy_std"]),
        plus_minus(row["accuracy"], row["accuracy_std"]),
        f"**{difference}**" if abs(row["difference"]) > row["interval"] else difference,
        "-" if ratio is None else f"x {ratio:.2f}",
        f"{float(format(row['lambda'], '.3g')):g}",
        "-" if row["share"] is None else f"{row['share']:.2f}",
        "" if row.get("confidence") is None else f"{without['confidence']:.2f}, {row['confidence']:.2f}",
    ]


def lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown: words to the left, figures to the right."""
    rule = ["---" if name in ("", "weight") else "---:" for name in columns]
    return "\n".join("| " + " | ".join(row) + " |" for row in (columns, rule, *rows)) + "\n"


def written(text: str) -> str:
    """`text` with all of its tables as the raw figures say."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{table(parts(found[2]))}\n{found[3]}", text)


def draw(path: Path) -> None:
    """Draw differences in accuracy against the share at the end, by the epochs that the proxies were trained for."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    folders = sorted(HERE.glob("own-epochs-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))
    for folder in folders:
        arms = [row for row in read_json(folder / "compare.json")["summary"] if row["share"] is not None]
        points = [(row["share"], 100 * row["difference"], 100 * row["interval"]) for row in arms]
        share, gain, half = zip(*points, strict=True)
        axes.errorbar(share, gain, half, fmt="o", capsize=3, label=f"{folder.name.rpartition('-')[2]} epochs")
        for row, x, y in zip(arms, share, gain, strict=True):
            axes.annotate(f" {weight_name(row)}", (x, y), fontsize=8)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="share of CMI in the gradient at the end", ylabel="points of accuracy to weight 0")
    axes.legend(title="proxies trained for", loc="upper left")
    figure.savefig(path, dpi=110)


def draw_room(path: Path) -> None:
    """Draw differences in accuracy against the rise of the mean probability of an image's class, held out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    points: dict[str, list[tuple[float, float, float]]] = {}
    for file in sorted(HERE.glob("*/compare.json")):
        result = read_json(file)
        for without, *arms in by_views(result).values():
            if without.get("confidence") is not None:
                label = result["host"]
                points.setdefault(label, []).extend(
                    (row["confidence"] - without["confidence"], 100 * row["difference"], 100 * row["interval"])
                    for row in arms
                )
    for label, known in points.items():
        axes.errorbar(*zip(*known, strict=True), fmt="o", capsize=3, label=label)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(
        xlabel="rise of the mean probability of an image's class, held out", ylabel="points of accuracy to weight 0"
    )
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(HERE / "share.png")
    draw_room(HERE / "room.png")
    page = HERE / "README.md"
    page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
