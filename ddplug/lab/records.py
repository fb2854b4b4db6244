"""Formats of the JSON files of a comparison, and one function that reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddplug.core.history import ROUND
from ddplug.utils.records import (
    Check,
    UnfitError,
    anything,
    dict_of,
    either,
    entries,
    list_of,
    number,
    one_of,
    optional,
    read_record,
    text,
    whole,
)

AGAIN = "delete it, and the same command makes it again"
_SIZE = number(-1e30, 1e30, finite=False)
_NAME = text(200, r"[\w.+-]+")
_TERM = optional(entries({"label": text(100, "[^$]*"), "unit": text(100, "[^$]*")}))

TIMES = entries({"seconds": number(0, 1e30)}, {"extra_memory": optional(whole())})
"""`times.json` of a host's run, and the times of a set."""

_SCORES = list_of(number(0, 1))
JUDGEMENT = entries(
    {"accuracies": _SCORES},
    {"cmi": optional(_SIZE), "cmi_heldout": optional(_SIZE), "accuracies_by_arch": dict_of(_SCORES)},
)
"""What is beside a set: it is judged network by network."""

DISTILLED = entries(
    {
        "sets": list_of(
            entries({"iteration": whole(), "lambda": optional(_SIZE), "share": optional(_SIZE), "times": TIMES}), 1
        ),
        "skipped": whole(),
    },
    {"taken_from": text()},
)
"""`distilled.json`."""

SETTINGS = entries(
    {}, {"settings": entries({}, {"regularizer": dict_of(anything)}), "regularizer": dict_of(anything)}
)  # fmt: skip
"""`settings.json`."""

FACTS = entries({"lambda": optional(_SIZE), "skipped": whole()})
"""Entries of a host's `cmi*.json` that a comparison needs."""

RUN = entries({"history": list_of(ROUND)}, {"term": _TERM})
"""A `cmi*.json`, of which the rounds are drawn."""

_ROW = entries(
    {
        "arm": _NAME, "weight": optional(either(number(0, 1e30), one_of("paper"))), "views": optional(_NAME),
        "accuracy": number(0, 1), "difference": number(-1, 1), "interval": optional(number(0, 1e30)),
        "cmi_ratio": optional(_SIZE), "cmi_heldout_ratio": optional(_SIZE),
    },
    {
        "term": text(200), "accuracy_std": optional(number(0, 1)),
        "cmi": optional(_SIZE), "cmi_heldout": optional(_SIZE),
        "reaches": optional(whole()),
    },
)  # fmt: skip
_ENTRY = entries(
    {
        "arm": _NAME,
        "checkpoints": list_of(entries({"iteration": whole(), "accuracies": _SCORES}), 1),
    },
    {"name": text()},
)  # fmt: skip
_COMPARISON = entries(
    {"arms": list_of(_NAME, 1), "summary": list_of(_ROW, 1), "entries": list_of(_ENTRY, 1)}, {"term": _TERM}
)


def comparison(value: Any) -> None:
    """`compare.json`: every arm has entries, of equal checkpoints, the last of which is judged."""
    _COMPARISON(value)
    for place, entry in enumerate(value["entries"]):
        if not entry["checkpoints"][-1]["accuracies"]:
            raise UnfitError("its last set is not judged", ("entries", place))
    for arm in value["arms"]:
        points = {
            tuple(point["iteration"] for point in entry["checkpoints"])
            for entry in value["entries"]
            if entry["arm"] == arm
        }
        if len(points) != 1:
            raise UnfitError(f"its entries of {arm} have {len(points)} kinds of checkpoints, not one", ("entries",))


def read_json(
    path: Path, advice: str = AGAIN, check: Check = anything, what: str = "a file of a comparison"
) -> dict[str, Any]:
    """Read a file of `write_json`, without its checksum; `DataError`, with advice, for anything else."""
    return read_record(path, check, what, f"{advice[:1].upper()}{advice[1:]}.")
