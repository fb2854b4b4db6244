"""Formats of the JSON files of a comparison, and one function that reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from ddplug.core.history import Round
from ddplug.utils.records import Count, Finite, Fraction, like, read_record, sized

AGAIN = "delete it, and the same command makes it again"
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
