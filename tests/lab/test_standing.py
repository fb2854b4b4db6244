"""The table that grows while a comparison runs."""

from __future__ import annotations

from typing import Any

from ddplug.lab.standing import Standing

CMI = "weight-1-host"


def record(arm: str, seed: int, accuracies: list[float], cmi: float, heldout: float | None) -> dict[str, Any]:
    point = {"iteration": 5, "accuracies": accuracies, "cmi": cmi, "cmi_heldout": heldout, "lambda": 2.0, "share": 1.0}
    views, weight = (None, 0.0) if arm == "weight-0" else ("host", 1.0)
    return {
        "name": f"{arm}-seed{seed}",
        "arm": arm,
        "weight": weight,
        "views": views,
        "seed": seed,
        "checkpoints": [point],
    }


RECORDS = [
    record("weight-0", 3, [0.5, 0.6], 0.4, 0.2),
    record(CMI, 3, [0.58, 0.6], 0.1, 0.02),
    record("weight-0", 4, [0.5, 0.5], 0.4, None),
    record(CMI, 4, [0.5, 0.52], 0.3, None),
]


def lines(records: list[dict[str, Any]], arms: Any = ("weight-0", CMI)) -> list[list[str]]:
    """What is said as the records come one by one, each line in its columns."""
    said: list[str] = []
    standing = Standing(said.append, arms)
    for count in range(1, len(records) + 1):
        standing(records[:count])
    starts = [0, 6, 6 + 2 + 13, 33, 45, 61]
    return [[line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)] for line in said]


def test_a_line_for_every_run() -> None:
    """Differences to the baseline of the same seed; 0.04 and 0.01 have the mean 0.025, and 12.706 x 0.015 about it."""
    assert lines(RECORDS) == [
        ["seed", "run", "accuracy %", "difference", "so far", "CMI"],
        ["3", "weight-0", "55.00", "", "", ""],
        ["3", CMI, "59.00", "+4.00", "", "x 0.10"],
        ["4", "weight-0", "50.00", "", "", ""],
        ["4", CMI, "51.00", "+1.00", "+2.50 ± 19.06", "x 0.75"],
    ]


def test_several_records_at_once_and_names() -> None:
    said: list[str] = []
    Standing(said.append, {"weight-0": "without CMI", CMI: "with CMI"})(RECORDS[:2])
    assert len(said) == 3
    assert said[1].split()[:3] == ["3", "without", "CMI"]
    assert said[2].split()[:3] == ["3", "with", "CMI"]
