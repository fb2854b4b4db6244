"""Results in words: tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import TYPE_CHECKING, Any

from ddplug.lab.statistics import against, cost, interval, ratio_interval, summary, t_quantile
from ddplug.proxies.representations import PLURAL

if TYPE_CHECKING:
    from rich.table import Table

    from ddplug.lab.evaluate import Evaluation
    from ddplug.lab.measure import Measurement

STANDARD_RECIPE = "1000 at 0.01"
"""Epochs and learning rate with which sets are judged elsewhere."""
COSTS = ("lambda", "share", "s/iteration", "memory")


def tables(result: Mapping[str, Any]) -> list[Table]:
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
        for columns, cells in further_tables(result, rows):
            made.append(_table("", columns, cells, None))
    return made


def judging(result: Mapping[str, Any]) -> str:
    """Describe the judges' training beside the standard one, as their accuracies cannot be compared."""
    settings = result["settings"]
    return f"{settings['epochs']} epochs at rate {settings['judge_lr']:g} each; standard is {STANDARD_RECIPE}"


Part = tuple[tuple[str, ...], list[list[str]]]
"""Columns and cells of a table."""


def further_tables(result: Mapping[str, Any], rows: Sequence[dict[str, Any]]) -> list[Part]:
    """A part for each further architecture, and one for the differences between terms, as far as there are several."""
    made: list[Part] = []
    known = [row.get("by_arch", {}) for row in rows]
    for arch in (name for name in known[0] if all(name in each for each in known)):
        cells = [
            [weight_name(row), plus_minus(of["accuracy"], of["accuracy_std"]),
             "" if is_baseline(row) else plus_minus(of["difference"], of["interval"], sign=True)]
            for row, of in ((row, row["by_arch"][arch]) for row in rows)
        ]  # fmt: skip
        made.append((("weight", f"{arch}: accuracy %", "difference"), cells))
    return [*made, *between_terms(result, rows)]


def between_terms(result: Mapping[str, Any], rows: Sequence[dict[str, Any]]) -> list[Part]:
    """Differences of further terms' arms to the first one's, paired by seed."""
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


def measurement_table(measurement: Measurement, title: str, class_names: Sequence[str] | None = None) -> Table:
    """A table of a measurement: class by class, then the whole set."""
    from rich.table import Table

    outputs = f"{PLURAL[measurement.representation]}, T = {measurement.temperature:g}"
    caption = f"{measurement.images} images, {measurement.proxies} proxies (± std between them), {outputs}"
    table = Table("class", "CMI (nats)", title=title, caption=caption)
    for label, value in measurement.per_class.items():
        table.add_row(class_names[label] if class_names and label < len(class_names) else str(label), f"{value:.6f}")
    table.add_section()
    table.add_row("all", f"{measurement.cmi:.6f} ± {measurement.cmi_std:.6f}")
    if measurement.ncmi is not None:
        table.add_row(f"separation ({measurement.separation_name})", f"{measurement.separation:.6f}")
        table.add_row("NCMI = CMI / separation", f"{measurement.ncmi:.6f}")
    return table


def measurement_verdict(measurement: Measurement, title: str) -> str:
    """Sentences on the CMI of a set, with its interval over proxies, and on the images that proxies recognise."""
    shown, proxies = f"{measurement.cmi:.6f} nats", measurement.proxies
    if proxies > 1:
        half = t_quantile(proxies - 1) * measurement.cmi_std / sqrt(proxies)
        shown += f" ± {half:.6f} (95 % interval over {proxies} proxies)"
    said = f"CMI of {title}: {shown}."
    if measurement.recognised is not None:
        said += (
            f" The proxies recognise {measurement.recognised:.1%} of its images; the mean probability of an image's "
        )
        said += f"class is {measurement.confidence:.2f}."
    return said


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


def evaluation_verdict(evaluation: Evaluation, title: str, classes: int) -> str:
    """A sentence on the accuracies of a set, against guessing one of the classes."""
    parts = [
        f"{name} {gain(evaluation.mean(name) - 1 / classes, interval(runs), 'networks', len(runs))}"
        for name, runs in evaluation.accuracies.items()
    ]
    return f"{title} against guessing one of {classes} classes: {'; '.join(parts)}."


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
    """Label and unit of the term that a comparison is about; CMI by default."""
    term = result.get("term")
    return (term["label"], term["unit"]) if isinstance(term, Mapping) else ("CMI", "nats")


def result_columns(result: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns of `results`."""
    label, _ = term_of(result)
    return "weight", "accuracy %", "difference", "reaches", label, f"{label} held out"


def by_views(result: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
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


def costs(result: Mapping[str, Any], row: dict[str, Any]) -> list[str]:
    """Return an arm's lambda and costs, by `COSTS`."""
    seconds, memory = cost(result, row["arm"])
    of_cmi = ["", ""] if is_baseline(row) else [_shown(row["lambda"], ".4g"), _shown(row["share"], ".3f")]
    return [*of_cmi, _shown(seconds, ".3g"), "-" if memory is None else f"{memory / 2**20:.0f} MiB"]


def names_of(result: Mapping[str, Any]) -> dict[str, str]:
    """Return names of the arms, such as "CMI, weight 1", by their ids."""
    label = term_of(result)[0]
    return {row["arm"]: arm_name(row, label) for row in result["summary"]}


def arm_name(row: Mapping[str, Any], label: str) -> str:
    """A name such as "CMI, weight 1" of a row or an entry; `label` is that of the term of the comparison."""
    if is_baseline(row):
        return "weight 0"
    views = "" if row["views"] == "host" else f" on {row['views']} views"
    return f"{row.get('term') or label}{views}, weight {_weight(row)}"


def verdict(result: Mapping[str, Any]) -> str:
    """A sentence on the arm with the largest difference to weight 0."""
    arms = [row for row in result["summary"] if not is_baseline(row)]
    if not arms:
        return "Only weight 0 was run, so nothing is compared."
    best, (label, _) = max(arms, key=lambda row: float(row["difference"])), term_of(result)
    which = f"The best of {len(arms)} arms, " if len(arms) > 1 else ""
    text = f"{which}{arm_name(best, label)}, against weight 0 on {result['host']} and {result['data']['name']}: "
    text += gain(best["difference"], best["interval"], "paired seeds", best["seeds"]) + "."
    if found := ratio_interval(result["entries"], best["arm"], "cmi_heldout"):
        text += " {} under held-out proxies x {:.2f} ({:.2f} to {:.2f}).".format(label, *found)
    if len(arms) > 1 and best["difference"] > (best["interval"] or float("inf")):
        text += " The best of several may do so by chance: confirm it on other seeds."
    return text


def gain(value: float, half: float | None, repetitions: str, count: int) -> str:
    """A difference of accuracies in points with its 95 % interval, and if this excludes 0."""
    points = f"{plus_minus(value, half, sign=True)} points of accuracy"
    if half is None:
        return f"{points} (no interval, which takes several {repetitions})"
    excludes = "excludes" if abs(value) > half else "includes"
    return f"{points} (95 % interval over {count} {repetitions}, which {excludes} 0)"


def standing(records: Sequence[dict[str, Any]], label: str) -> str:
    """A line on the last of the records of a comparison's runs, and how its arm stands so far."""
    run, first = records[-1], records[0]["arm"]
    paired = [each for each in records if each["arm"] in (first, run["arm"])]
    here, so_far = summary([each for each in paired if each["seed"] == run["seed"]])[-1], summary(paired)[-1]
    line = f"seed {run['seed']}, {arm_name(run, label)}: {plus_minus(here['accuracy'], None)} %"
    if is_baseline(run):
        return line
    line += f", {plus_minus(here['difference'], None, sign=True)} to weight 0"
    if so_far["interval"]:
        line += f" (so far {plus_minus(so_far['difference'], so_far['interval'], sign=True)})"
    ratio = here["cmi_heldout_ratio"] or here["cmi_ratio"]
    return line if ratio is None else f"{line}, {label} x {ratio:.2f}"


def weight_name(row: dict[str, Any]) -> str:
    """A row's weight in words."""
    return f"{row['term']} {_weight(row)}" if row.get("term") else _weight(row)


def _weight(row: Mapping[str, Any]) -> str:
    return row["weight"] if isinstance(row["weight"], str) else f"{row['weight']:g}"


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
