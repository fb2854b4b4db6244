"""`ddplug compare`: the same distillation with and without CMI, from the same starts and seeds, and what came out.

Everything that is finished is a file, so that the same call resumes what was interrupted and ends with the same
results; with more seeds, weights or views it adds what is missing. Times are kept apart from results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ddplug.comparison.baseline import take, taken_from, to_make, to_take
from ddplug.comparison.folder import REGULARIZERS, check_folder, claim, differing, made_with
from ddplug.comparison.judge import Judge
from ddplug.comparison.own_trainer import DONE, set_name
from ddplug.comparison.plan import Arm, Run
from ddplug.comparison.records import AGAIN, DISTILLED, read_json
from ddplug.comparison.statistics import summary
from ddplug.errors import InputError
from ddplug.objectives.base import make
from ddplug.utils.files import exclusive_lock, user_path, write_json

RESULT, ENTRIES, LOCK = "compare.json", "entries", ".lock"


class Distiller(Protocol):
    """What makes a run's sets: our own trainer, or an upstream host."""

    @property
    def length(self) -> int:
        """Steps of a run, for the progress bar."""

    @property
    def made_with(self) -> dict[str, Any]:
        """What else decides a run's outcome, for the comparison's settings."""

    def check(self, arms: Sequence[Arm], judge: Judge) -> None:
        """Raise for what would otherwise fail in the middle of a comparison, with nothing done yet."""

    def __call__(self, run: Run, folder: Path, tell: Callable[[int], object], /) -> None:
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
        distil: makes a run's sets.
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
    check_folder(out)
    wanted = {**made_with(host, judge), **distil.made_with}
    runs = [Run(arm, seed) for seed in range(first_seed, first_seed + seeds) for arm in arms]
    source, taken = user_path(baseline or out), []
    if baseline is not None and (lacking := to_make(out / ENTRIES, runs)):
        taken = to_take(source / ENTRIES, lacking, differing(source, wanted, ignored=REGULARIZERS))
    with exclusive_lock(out / LOCK, out):
        claim(out, wanted)
        for run in taken:
            take(source / ENTRIES / run.name, out / ENTRIES / run.name)
        return _compare(distil, runs, seeds, out, judge, host, wanted, on_progress)


def _compare(
    distil: Distiller,
    runs: Sequence[Run],
    seeds: int,
    out: Path,
    judge: Judge,
    host: str,
    wanted: dict[str, Any],
    on_progress: Callable[[str, int, int, str], object] | None,
) -> dict[str, Any]:
    """Run the comparison while holding the lock of its folder `out`."""
    tell = on_progress or (lambda what, done, total, note: None)
    total = len(runs) * distil.length
    what, records = f"compare {host} on {judge.data.name}", []
    for number, run in enumerate(runs):
        before, done_so_far = number * distil.length, f"{number} of {len(runs)} runs done; {run.name}"
        folder = out / ENTRIES / run.name

        def distilling(step: int, before: int = before, note: str = done_so_far) -> None:
            at = f"iteration {step} of {distil.length}" if distil.length > 1 else "the host's run"
            tell(what, before + step, total, f"{note}: {at}")

        def judging(line: str, before: int = before, note: str = done_so_far) -> None:
            tell(what, before + distil.length, total, f"{note}: {line}")

        if not (folder / DONE).is_file():
            for stale in folder.glob("set-*.json"):  # of a baseline whose taking over was broken off
                stale.unlink()
        distil(run, folder, distilling)
        records.append(_judged(run, folder, judge, judging))
    result = _result(wanted, seeds, records, _others(out, runs))
    write_json(result, out / RESULT)
    tell(what, total, total, f"{len(runs)} runs done")
    return result


def _judged(run: Run, folder: Path, judge: Judge, tell: Callable[[str], object]) -> dict[str, Any]:
    """Everything about a distilled run, its sets judged."""
    distilled = read_json(folder / DONE, AGAIN, DISTILLED)
    checkpoints, times, last = [], [], distilled["sets"][-1]["iteration"]
    for made in distilled["sets"]:
        iteration = made["iteration"]
        count = judge.settings.judged_at(iteration, last)

        def networks(done: int, iteration: int = iteration) -> None:
            tell(f"judging iteration {iteration}, {done} networks done")

        networks(0)
        judgement = judge(folder / set_name(iteration), run.seed, count, networks, last=iteration == last)
        checkpoints.append({"iteration": iteration, **judgement, "lambda": made["lambda"], "share": made["share"]})
        times.append({"iteration": iteration, **made["times"]})
    return {
        "name": run.name, "arm": run.arm.name, "weight": run.arm.weight,
        "views": None if run.arm.baseline else run.arm.views, "seed": run.seed, "skipped": distilled["skipped"],
        "taken_from": taken_from(distilled),
        "checkpoints": checkpoints, "times": times,
    }  # fmt: skip


def _others(out: Path, runs: Sequence[Run]) -> list[str]:
    """Names of the runs that are distilled in `out` and not among `runs`."""
    ours = {run.name for run in runs}
    return sorted({file.parent.name for file in (out / ENTRIES).glob(f"*/{DONE}")} - ours)


def _result(wanted: dict[str, Any], seeds: int, records: list[dict[str, Any]], left_out: list[str]) -> dict[str, Any]:
    arms = list(dict.fromkeys(record["arm"] for record in records))
    term = make(wanted["settings"]["term"])
    results = [{key: value for key, value in record.items() if key != "times"} for record in records]
    return {
        "format": "ddplug-compare", "version": 1, **wanted, "arms": arms, "seeds": seeds,
        "first_seed": records[0]["seed"], "term": {"name": term.name, "label": term.label, "unit": term.unit},
        "summary": summary(results), "entries": results, "left_out": left_out,
        "times": {record["name"]: record["times"] for record in records},
    }  # fmt: skip
