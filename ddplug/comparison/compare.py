"""`ddplug compare`: the same distillation with and without CMI, from the same starts and seeds, and what came out.

Everything that is finished is a file, so that the same call goes on where it was interrupted and ends with the same
results; with more seeds, weights or views it adds what is missing. Times are kept apart from results.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from ddplug.comparison.baseline import take, taken_from, to_make, to_take
from ddplug.comparison.judge import Judge
from ddplug.comparison.own_trainer import DONE, set_name
from ddplug.comparison.plan import Arm, Entry
from ddplug.comparison.records import AGAIN, DISTILLED, read_json
from ddplug.comparison.records import SETTINGS as SETTINGS_RECORD
from ddplug.comparison.statistics import summary
from ddplug.core.options import ABOUT, renamed
from ddplug.errors import DataError, InputError
from ddplug.proxies.pool import ProxyPool
from ddplug.utils.files import exclusive_lock, user_path, write_json

SETTINGS, RESULT, ENTRIES, LOCK = "settings.json", "compare.json", "entries", ".lock"
NOTED = ("ddplug", "torch", "checkout", "configuration", "experts")
"""Settings that comparisons of older versions lack."""
REGULARIZERS = ("proxies", "heldout", "regularizer")
"""Settings that a baseline does not depend on."""


class Distiller(Protocol):
    """What makes an entry's sets: our own trainer, or an upstream host."""

    @property
    def length(self) -> int:
        """Steps of an entry, for the progress bar."""

    @property
    def made_with(self) -> dict[str, Any]:
        """What else decides an entry's outcome, for the comparison's settings."""

    def check(self, arms: Sequence[Arm], judge: Judge) -> None:
        """Raise for what would otherwise fail in the middle of a comparison, with nothing done yet."""

    def __call__(self, entry: Entry, folder: Path, tell: Callable[[int], object]) -> None:
        """Leave in `folder` the sets and `distilled.json`, or do nothing if that is there; `tell(steps done)`."""


def compare(
    distil: Distiller,
    arms: Sequence[Arm],
    seeds: int,
    out: str | Path,
    judge: Judge,
    *,
    host: str = "own",
    first_seed: int = 0,
    baseline: str | Path | None = None,
    on_progress: Callable[[str, int, int, str], object] | None = None,
) -> dict[str, Any]:
    """Distil and judge every arm of every seed, or what is left to do, and write `compare.json` into `out`.

    Args:
        distil: makes an entry's sets.
        arms: of `ddplug.comparison.plan.arms`: the baseline first.
        seeds: how many, from `first_seed` on.
        out: folder of the comparison.
        judge: what sets are judged by.
        host: "own" or the host's name.
        baseline: another comparison's folder, which differs by proxies and the regulariser's options only: its runs at
            weight 0 are taken over instead of being made again.
        on_progress: told (what, steps done, steps in all, a note).

    Returns the content of `compare.json`; see docs/compare.md.

    Raises:
        InputError: no seeds, another process is at work in `out`, or `out` holds a comparison with other settings, or
            `baseline` one with another baseline; it says what differs.
        DataError: a file of the comparison is damaged, or `out` holds something else.
    """
    if seeds < 1:
        raise InputError(f"seeds must be at least 1, got {seeds}.")
    if first_seed < 0:
        raise InputError(f"first_seed must be at least 0, got {first_seed}.")
    judge.check()
    distil.check(arms, judge)
    out = user_path(out)
    _check_folder(out)
    made_with = {**_made_with(host, judge), **distil.made_with}
    entries = [Entry(arm, seed) for seed in range(first_seed, first_seed + seeds) for arm in arms]
    source, taken = user_path(baseline or out), []
    if baseline is not None and (lacking := to_make(out / ENTRIES, entries)):
        differing = _differing(source, made_with, ignored=REGULARIZERS)
        taken = to_take(source / ENTRIES, lacking, differing)
    with exclusive_lock(out / LOCK, out):
        _claim(out, made_with)
        for entry in taken:
            take(source / ENTRIES / entry.name, out / ENTRIES / entry.name)
        return _compare(distil, entries, seeds, out, judge, host, made_with, on_progress)


def _compare(
    distil: Distiller,
    entries: Sequence[Entry],
    seeds: int,
    out: Path,
    judge: Judge,
    host: str,
    made_with: dict[str, Any],
    on_progress: Callable[[str, int, int, str], object] | None,
) -> dict[str, Any]:
    """Run the comparison while holding the lock of its folder `out`."""
    tell = on_progress or (lambda what, done, total, note: None)
    total = len(entries) * distil.length
    what, records = f"compare {host} on {judge.data.name}", []
    for number, entry in enumerate(entries):
        before, done_so_far = number * distil.length, f"{number} of {len(entries)} entries done; {entry.name}"
        folder = out / ENTRIES / entry.name

        def distilling(step: int, before: int = before, note: str = done_so_far) -> None:
            at = f"iteration {step} of {distil.length}" if distil.length > 1 else "the host's run"
            tell(what, before + step, total, f"{note}: {at}")

        def judging(line: str, before: int = before, note: str = done_so_far) -> None:
            tell(what, before + distil.length, total, f"{note}: {line}")

        if not (folder / DONE).is_file():
            for stale in folder.glob("set-*.json"):  # of a baseline whose taking over was broken off
                stale.unlink()
        distil(entry, folder, distilling)
        records.append(_judged(entry, folder, judge, judging))
    result = _result(made_with, seeds, records, _others(out, entries))
    write_json(result, out / RESULT)
    tell(what, total, total, f"{len(entries)} entries done")
    return result


def _judged(entry: Entry, folder: Path, judge: Judge, tell: Callable[[str], object]) -> dict[str, Any]:
    """Everything about a distilled entry, its sets judged."""
    distilled = read_json(folder / DONE, AGAIN, DISTILLED)
    checkpoints, times = [], []
    for made in distilled["sets"]:
        iteration = made["iteration"]

        def networks(done: int, iteration: int = iteration) -> None:
            tell(f"judging iteration {iteration}, {done} of {judge.settings.runs} networks")

        networks(0)
        judgement = judge(folder / set_name(iteration), entry.seed, networks)
        checkpoints.append({"iteration": iteration, **judgement, "lambda": made["lambda"], "share": made["share"]})
        times.append({"iteration": iteration, **made["times"]})
    return {
        "name": entry.name, "arm": entry.arm.name, "weight": entry.arm.weight,
        "views": None if entry.arm.baseline else entry.arm.views, "seed": entry.seed, "skipped": distilled["skipped"],
        "taken_from": taken_from(distilled),
        "checkpoints": checkpoints, "times": times,
    }  # fmt: skip


def _others(out: Path, entries: Sequence[Entry]) -> list[str]:
    """Names of the entries that are distilled in `out` and not among `entries`."""
    ours = {entry.name for entry in entries}
    return sorted({file.parent.name for file in (out / ENTRIES).glob(f"*/{DONE}")} - ours)


def _result(
    made_with: dict[str, Any], seeds: int, records: list[dict[str, Any]], left_out: list[str]
) -> dict[str, Any]:
    arms = list(dict.fromkeys(record["arm"] for record in records))
    results = [{key: value for key, value in record.items() if key != "times"} for record in records]
    return {
        "format": "ddplug-compare", "version": 1, **made_with, "arms": arms, "seeds": seeds,
        "first_seed": records[0]["seed"], "summary": summary(results), "entries": results, "left_out": left_out,
        "times": {record["name"]: record["times"] for record in records},
    }  # fmt: skip


def _made_with(host: str, judge: Judge) -> dict[str, Any]:
    """Everything that decides an entry's outcome and is the same for all, as it is read back from JSON."""
    return {
        "host": host, "data": {"name": judge.data.name, "fingerprint": judge.data.fingerprint()},
        "proxies": _digests(judge.pool), "heldout": _digests(judge.heldout), "device": judge.device.type,
        "settings": judge.settings.to_json(), "ddplug": importlib.metadata.version("ddplug"),
        "torch": torch.__version__,
    }  # fmt: skip


def _digests(pool: ProxyPool | None) -> list[str] | None:
    return None if pool is None else [proxy.digest() for proxy in pool]


def _check_folder(out: Path) -> None:
    """Raise if `out` holds something else than a comparison."""
    if (out / SETTINGS).is_file() or not out.exists():
        return
    if not out.is_dir() or any(not held.name.startswith(".") for held in out.iterdir()):
        raise DataError(f"'{out}' exists and is no folder of a comparison; choose another --out.")


def _claim(out: Path, wanted: dict[str, Any]) -> None:
    """Note in `out` what its entries are made with, or raise if that is something else than `wanted`."""
    path = out / SETTINGS
    if not path.is_file():
        write_json(wanted, path)
    if differing := _differing(out, wanted):
        raise InputError(
            f"'{out}' holds a comparison with other settings: {'; '.join(differing)}. Choose another --out, or the "
            "settings it has; seeds, weights and views can be added to it."
        )


def _differing(folder: Path, wanted: dict[str, Any], ignored: Sequence[str] = ()) -> list[str]:
    """In what the entries of the comparison in `folder` are made otherwise than `wanted`, a phrase each.

    What older versions did not note is not known, and not taken for a difference. Raises `DataError` where there is no
    comparison.
    """
    path = folder / SETTINGS
    if not path.is_file():
        raise DataError(f"'{folder}' is no folder of a comparison: it has no {SETTINGS}.")
    there = read_json(path, AGAIN, SETTINGS_RECORD)
    known = {key: value for key, value in wanted.items() if key in there or key not in NOTED}
    found, asked = _flat(there, ignored), _flat(known, ignored)
    return [
        f"{key} ({found.get(key)} there, {asked.get(key)} asked for)"
        for key in dict.fromkeys([*found, *asked])
        if found.get(key) != asked.get(key)
    ]


def _flat(record: dict[str, Any], ignored: Sequence[str], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names, but for the first level's."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if key in ignored:
            continue
        if key == "regularizer":  # as any version wrote it: by its names, and with or without what was the default
            value = {**{name: about.default for name, about in ABOUT.items()}, **renamed(value)}
        if isinstance(value, dict):
            flat |= _flat(value, ignored, "" if key in ("settings", "regularizer") else f"{key} ")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
