"""Reuse of the baseline, weight 0, of another comparison.

The baseline does not depend on the regulariser. A sweep over representations, temperatures or pools would otherwise
distil and judge the same sets again for each of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddplug.errors import InputError
from ddplug.lab.own_trainer import DONE, set_name
from ddplug.lab.plan import Run
from ddplug.lab.records import Distilled, Judgement, read_json
from ddplug.utils.files import replacing, write_json

TAKEN_FROM = "taken_from"
"""Entry of `distilled.json`: the folder that the run was taken from."""


def to_make(out: Path, runs: Sequence[Run]) -> list[Run]:
    """The baseline's runs that the folder `out` of runs has not finished."""
    return [run for run in runs if run.arm.baseline and not (out / run.name / DONE).is_file()]


def to_take(source: Path, lacking: Sequence[Run], differing: Sequence[str]) -> list[Run]:
    """Return those of the lacking runs that the folder `source` of runs has finished.

    Args:
        differing: settings that differ between the two comparisons and that the baseline depends on.

    Raises:
        InputError: they differ, or `source` has none of them.
        DataError: a file of `source` is damaged.
    """
    if differing:
        raise InputError(
            f"the baseline of '{source.parent}' is of other settings: {'; '.join(differing)}. It can be taken over "
            "where only proxies, held-out proxies and the regulariser's options differ."
        )
    found = [run for run in lacking if _judged(source / run.name)]
    if not found:
        raise InputError(
            f"'{source.parent}' has finished none of {', '.join(run.name for run in lacking)}; leave --baseline "
            "out, or name a comparison that has."
        )
    return found


def take(source: Path, target: Path) -> None:
    """Copy a finished run from folder to folder; `distilled.json`, which marks it as finished, comes last.

    Sets and accuracies are taken. CMI is not: it is measured anew, under the pools and in the space of the new
    comparison. Seconds and memory stay those of the run that they were measured in.
    """
    distilled, judgements = _finished(source)
    for iteration, accuracies in judgements.items():
        name = set_name(iteration)
        with replacing(target / name) as temporary:
            shutil.copyfile(source / name, temporary)
        write_json({"accuracies": accuracies}, (target / name).with_suffix(".json"))
    write_json({**distilled, TAKEN_FROM: source.parent.parent.resolve().name}, target / DONE)


def taken_from(distilled: dict[str, Any]) -> str | None:
    """The name of the folder that a run was taken from, None for one that was made where it is."""
    return distilled.get(TAKEN_FROM)


def _judged(folder: Path) -> bool:
    """Return True if a run is finished: distilled, and its sets judged."""
    return (folder / DONE).is_file() and bool(list(_finished(folder)[1].values())[-1])  # sets are judged in order


def _finished(folder: Path) -> tuple[dict[str, Any], dict[int, list[float]]]:
    """Read `distilled.json` and the accuracies of each set, empty where it is not judged."""
    advice = "name another --baseline"
    distilled = read_json(folder / DONE, advice, Distilled)
    judgements: dict[int, list[float]] = {}
    for made in distilled["sets"]:
        file = folder / set_name(made["iteration"])
        judged = file.is_file() and file.with_suffix(".json").is_file()
        judgements[made["iteration"]] = (
            read_json(file.with_suffix(".json"), advice, Judgement)["accuracies"] if judged else []
        )
    return distilled, judgements
