"""The folder of a comparison: `settings.json`, a folder of each run in `entries`, and `compare.json`.

The folder of a run has its sets, beside each its judgement, and `distilled.json` when all sets are made. The baseline,
weight 0, does not depend on the regulariser, so its runs can be taken from another comparison.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, TypedDict

from ddplug.core.history import Round
from ddplug.errors import DataError, InputError
from ddplug.utils.files import replacing, write_json
from ddplug.utils.records import Count, Finite, Fraction, like, read_record, sized

if TYPE_CHECKING:
    from ddplug.lab.plan import Run

SETTINGS, ENTRIES, DONE = "settings.json", "entries", "distilled.json"
REGULARIZERS = ("proxies", "heldout", "regularizer", "term")
"""Settings that a baseline does not depend on."""
AGAIN = "delete it, and the same command makes it again"
ELSEWHERE = "choose another --out"
OTHER = "name another --baseline"
Name = Annotated[str, like(r"[\w.+-]+")]
Plain = Annotated[str, like("[^$]*")]
"""Text that matplotlib shows as it is."""


class Term(TypedDict):
    """Label and unit of a term's values."""

    label: Plain
    unit: Plain


class Times(TypedDict):
    """`times.json` of a host's run, and the times of a set."""

    seconds: Finite
    extra_memory: NotRequired[int | None]


class Judgement(TypedDict):
    """The file beside a set, which is judged network by network."""

    accuracies: list[Fraction]
    cmi: NotRequired[float | None]
    cmi_heldout: NotRequired[float | None]
    recognised: NotRequired[float | None]
    """As in `ddplug.lab.measure.Measurement`, under the held-out pool, or the proxies without one."""
    confidence: NotRequired[float | None]
    accuracies_by_arch: NotRequired[dict[str, list[Fraction]]]


Note = TypedDict("Note", {"iteration": Count, "lambda": float | None, "share": float | None, "times": Times})
"""A set's entry in `distilled.json`."""


class Distilled(TypedDict):
    """`distilled.json`."""

    sets: Annotated[list[Note], sized(1)]
    skipped: Count
    taken_from: NotRequired[str]


Facts = TypedDict("Facts", {"lambda": float | None, "skipped": Count})
"""Entries of a host's `cmi*.json` that a comparison needs."""


class Rounds(TypedDict):
    """A `cmi*.json`, of which the rounds are drawn."""

    format: Literal["ddplug-run"]
    history: list[Round]
    term: NotRequired[Term | None]


class Row(TypedDict):
    """An arm's entry in the summary."""

    arm: Name
    weight: float | str
    views: str | None
    accuracy: Fraction
    difference: float
    interval: float | None
    cmi_ratio: float | None
    cmi_heldout_ratio: float | None
    accuracy_std: NotRequired[float | None]
    reaches: NotRequired[int | None]


class Point(TypedDict):
    """A set that was kept along a run."""

    iteration: Count
    accuracies: list[Fraction]


class Entry(TypedDict):
    """A run."""

    arm: Name
    checkpoints: Annotated[list[Point], sized(1)]


class Comparison(TypedDict):
    """`compare.json`."""

    format: Literal["ddplug-compare"]
    arms: Annotated[list[Name], sized(1)]
    summary: Annotated[list[Row], sized(1)]
    entries: Annotated[list[Entry], sized(1)]
    term: NotRequired[Term | None]


def read_json(path: Path, advice: str = AGAIN, kind: Any = Any, what: str = "a file of a comparison") -> dict[str, Any]:
    """Read a file of `write_json`, without its checksum; `DataError`, with advice, for anything else."""
    return read_record(path, kind, what, f"{advice[:1].upper()}{advice[1:]}.")


def set_name(iteration: int) -> str:
    """The file of the set after `iteration` iterations."""
    return f"set-{iteration:06d}.pt"


def write_done(folder: Path, notes: list[dict[str, Any]], skipped: int) -> None:
    """Record that a run is distilled: for each set its iteration, lambda, share and times; rounds left out."""
    write_json({"sets": notes, "skipped": skipped}, folder / DONE)


def check_folder(out: Path) -> None:
    """Raise `DataError` if `out` is not empty and is not the folder of a comparison."""
    foreign = out.exists() and (not out.is_dir() or any(not held.name.startswith(".") for held in out.iterdir()))
    if foreign and not (out / SETTINGS).is_file():  # last, as another process may be making it
        raise DataError(f"'{out}' exists and is no folder of a comparison; {ELSEWHERE}.")


def claim(out: Path, wanted: dict[str, Any]) -> None:
    """Write the settings `wanted` into `out`; raise `InputError` if it has others."""
    path = out / SETTINGS
    if not path.is_file():
        write_json(wanted, path)
    if found := differing(out, wanted, ELSEWHERE):
        raise InputError(
            f"'{out}' holds a comparison with other settings: {'; '.join(found)}. Choose another --out, or the "
            "settings it has; seeds, weights and views can be added to it."
        )


def differing(folder: Path, wanted: dict[str, Any], advice: str, ignored: Sequence[str] = ()) -> list[str]:
    """Return a phrase for each setting in which the comparison in `folder` differs from `wanted`.

    Raises `DataError`, with advice, if it is not the folder of a comparison.
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise DataError(f"'{folder}' is no folder of a comparison: it has no {SETTINGS}; {advice}.")
    there = read_json(path, advice)
    found, asked = _flat(there, ignored), _flat(wanted, ignored)
    return [
        f"{key} ({found.get(key)} there, {asked.get(key)} asked for)"
        for key in dict.fromkeys([*found, *asked])
        if found.get(key) != asked.get(key)
    ]


def _flat(record: dict[str, Any], ignored: Sequence[str], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one dictionary."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if key in ignored:
            continue
        if isinstance(value, dict):
            flat |= _flat(value, ignored, "" if key in ("settings", "regularizer") else f"{key} ")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def take_baseline(source: Path, out: Path, runs: Sequence[Run], wanted: dict[str, Any]) -> list[Path]:
    """Return the folders of finished runs in the comparison `source` that `out` lacks and needs as its baseline.

    Raises:
        InputError: `source` has none of them, or its settings differ from `wanted` in more than the regulariser.
        DataError: a file of `source` is damaged.
    """
    lacking = [run.name for run in runs if run.arm.baseline and not (out / ENTRIES / run.name / DONE).is_file()]
    if not lacking:
        return []
    if differ := differing(source, wanted, OTHER, REGULARIZERS):
        raise InputError(
            f"the baseline of '{source}' is of other settings: {'; '.join(differ)}. It can be taken over where only "
            "proxies, held-out proxies and the regulariser's options differ."
        )
    found = [source / ENTRIES / name for name in lacking if _finished(source / ENTRIES / name)]
    if not found:
        raise InputError(
            f"'{source}' has finished none of {', '.join(lacking)}; leave --baseline out, or name a comparison that "
            "has."
        )
    return found


def take(source: Path, target: Path) -> None:
    """Copy a finished run from folder to folder; `distilled.json`, which marks it as finished, comes last.

    Sets and accuracies are taken. CMI is not: it is measured anew, under the pools and in the space of the new
    comparison. Seconds and memory stay those of the run that they were measured in.
    """
    distilled = read_json(source / DONE, OTHER, Distilled)
    for made in distilled["sets"]:
        name = set_name(made["iteration"])
        with replacing(target / name) as temporary:
            shutil.copyfile(source / name, temporary)
        judgement = read_json((source / name).with_suffix(".json"), OTHER, Judgement)
        write_json({"accuracies": judgement["accuracies"]}, (target / name).with_suffix(".json"))
    write_json({**distilled, "taken_from": source.parent.parent.resolve().name}, target / DONE)


def _finished(folder: Path) -> bool:
    """Return True if a run is distilled and its last set judged; sets are judged in order."""
    if not (folder / DONE).is_file():
        return False
    last = set_name(read_json(folder / DONE, OTHER, Distilled)["sets"][-1]["iteration"])
    file = (folder / last).with_suffix(".json")
    return file.is_file() and bool(read_json(file, OTHER, Judgement)["accuracies"])
