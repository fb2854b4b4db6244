"""Statistics of a comparison in words: tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ddplug.lab.statistics import against, cost

if TYPE_CHECKING:
    from rich.table import Table

STANDARD_RECIPE = "1000 at 0.01"
"""Epochs and learning rate with which sets are judged elsewhere."""
COSTS = ("lambda", "share", "s/iteration", "memory")


def tables(result: dict[str, Any]) -> list[Table]:
    """Return, for each kind of views, a table of results and one of costs, with the baseline; 80 columns wide."""
    made: list[Table] = []
    label, unit = term_of(result)
    for views, rows in by_views(result).items():
        title = f"{result['host']} on {result['data']['name']}, {views} views: "
        title += f"{result['seeds']} seeds x {result['settings']['runs']} networks\n{judging(result)}"
        caption = (
            f"± after an accuracy: std over seeds; after a difference: 95 % t-interval. {label} in {unit}, and over "
            "that of weight 0. Reaches: the first checkpoint at least as accurate as the end of weight 0."
        )
        made.append(_table(title, result_columns(result), [results(row) for row in rows], caption))
        made.append(_table("", ("weight", *COSTS), [[weight_name(row), *costs(result, row)] for row in rows], None))
        for columns, cells in (*further_tables(rows), *between_terms(result, rows)):
            made.append(_table("", columns, cells, None))
    return made


def judging(result: Mapping[str, Any]) -> str:
    """Describe the judges' training beside the standard one, as their accuracies cannot be compared."""
    settings = result["settings"]
    return f"{settings['epochs']} epochs at rate {settings['judge_lr']:g} each; standard is {STANDARD_RECIPE}"


def further_tables(rows: Sequence[dict[str, Any]]) -> list[tuple[tuple[str, ...], list[list[str]]]]:
    """Return columns and cells for each further architecture."""
    made: list[tuple[tuple[str, ...], list[list[str]]]] = []
    known = [row.get("by_arch", {}) for row in rows]
    for arch in (name for name in known[0] if all(name in each for each in known)):
        columns = ("weight", f"{arch}: accuracy %", "difference")
        cells = [
            [weight_name(row), plus_minus(of["accuracy"], of["accuracy_std"]),
             "" if is_baseline(row) else plus_minus(of["difference"], of["interval"], sign=True)]
            for row, of in ((row, row["by_arch"][arch]) for row in rows)
        ]  # fmt: skip
        made.append((columns, cells))
    return made


def between_terms(
    result: Mapping[str, Any], rows: Sequence[dict[str, Any]]
) -> list[tuple[tuple[str, ...], list[list[str]]]]:
    """Columns and cells of the differences of further terms' arms to the first one's, paired by seed."""
    arms = [row for row in rows if row.get("term")]
    if len({row["term"] for row in arms}) < 2:
        return []
    first = arms[0]
    cells = []
    for row in arms[1:]:
        found = against(result["entries"], row["arm"], first["arm"])
        assert found["difference"] is not None
        cells.append([weight_name(row), plus_minus(found["difference"], found["interval"], sign=True)])
    return [(("weight", f"difference to {weight_name(first)}"), cells)]


def left_out(result: Mapping[str, Any]) -> str | None:
    """Return a sentence about what the folder holds beyond the report; None if it holds nothing more."""
    names = result.get("left_out")
    if not names:
        return None
    return (
        f"Left out of this report, but in the folder: {', '.join(names)}. Name their weights, views and seeds, too, to "
        "have them in it."
    )


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title or None, caption=caption, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")  # a digit that is cut off would be another number
    for row in rows:
        table.add_row(*row)
    return table


def term_of(result: Mapping[str, Any]) -> tuple[str, str]:
    """Label and unit of the term that a comparison is about; CMI unless it says otherwise."""
    term = result.get("term")
    return (term["label"], term["unit"]) if isinstance(term, Mapping) else ("CMI", "nats")


def result_columns(result: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns of `results`."""
    label, _ = term_of(result)
    return "weight", "accuracy %", "difference", "reaches", label, f"{label} held out"


def by_views(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The summary's rows by kind of views, the baseline first in each."""
    baseline, *others = result["summary"]
    kinds = list(dict.fromkeys(row["views"] for row in others)) or ["host"]
    return {kind: [baseline, *(row for row in others if row["views"] == kind)] for kind in kinds}


def results(row: dict[str, Any]) -> list[str]:
    """A row of the summary in words, by `result_columns`."""
    baseline = is_baseline(row)
    return [
        weight_name(row), plus_minus(row["accuracy"], row["accuracy_std"]),
        "" if baseline else plus_minus(row["difference"], row["interval"], sign=True),
        _shown(row["reaches"], "d"), *(_cmi(row, key, baseline) for key in ("cmi", "cmi_heldout")),
    ]  # fmt: skip


def costs(result: dict[str, Any], row: dict[str, Any]) -> list[str]:
    """Return an arm's lambda and costs, by `COSTS`."""
    seconds, memory = cost(result, row["arm"])
    of_cmi = ["", ""] if is_baseline(row) else [_shown(row["lambda"], ".4g"), _shown(row["share"], ".3f")]
    return [*of_cmi, _shown(seconds, ".3g"), "-" if memory is None else f"{memory / 2**20:.0f} MiB"]


def weight_name(row: dict[str, Any]) -> str:
    """A row's weight in words."""
    weight = row["weight"] if isinstance(row["weight"], str) else f"{row['weight']:g}"
    return f"{row['term']} {weight}" if row.get("term") else weight


def is_baseline(row: Mapping[str, Any]) -> bool:
    """Return True if a row is of weight 0."""
    return row["views"] is None


def _cmi(row: dict[str, Any], key: str, baseline: bool) -> str:
    ratio = row[f"{key}_ratio"]
    return _shown(row[key], ".2e") + ("" if baseline or ratio is None else f" x{ratio:.2f}")


def plus_minus(value: float, spread: float | None, sign: bool = False) -> str:
    """A share in [0, 1] in percent, or points, and its spread if there is one."""
    shown = f"{100 * value:+.2f}" if sign else f"{100 * value:.2f}"
    return shown if spread is None else f"{shown} ± {100 * spread:.2f}"


def _shown(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)
