"""`ddplug compare`: the same distillation with and without CMI, from the same starts and seeds.

Finished work is in files, so the same call resumes an interrupted comparison and ends with the same results. A call
with more seeds, weights or views adds the missing runs. Times are apart from results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ddplug.errors import InputError
from ddplug.lab.folder import (
    AGAIN,
    DONE,
    ENTRIES,
    Distilled,
    check_folder,
    claim,
    read_json,
    set_name,
    take,
    take_baseline,
)
from ddplug.lab.judge import Judge
from ddplug.lab.plan import Arm, Run
from ddplug.lab.statistics import summary
from ddplug.terms import make
from ddplug.utils.files import exclusive_lock, user_path, write_json

RESULT = "compare.json"


class Distiller(Protocol):
    """Maker of a run's sets: our own trainer, or an upstream host."""

    @property
    def length(self) -> int:
        """Steps of a run, for the progress bar."""

    @property
    def made_with(self) -> dict[str, Any]:
        """Further inputs of a run, for the comparison's settings."""

    def check(self, arms: Sequence[Arm], judge: Judge) -> None:
        """Raise for what would otherwise fail in the middle of a comparison, with nothing done yet."""

    def __call__(self, run: Run, folder: Path, tell: Callable[[int], object], /) -> None:
        """Write the sets and `distilled.json` into `folder`, unless it has them; call `tell` with the steps done."""


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
    on_record: Callable[[Sequence[dict[str, Any]]], object] | None = None,
) -> dict[str, Any]:
    """Distil and judge every arm of every seed, or what is left to do, and write `compare.json` into `out`.

    Args:
        distil: makes a run's sets.
        arms: of `ddplug.lab.plan.arms`: the baseline first.
        seeds: how many, from `first_seed` on.
        out: folder of the comparison.
        judge: what sets are judged by.
        host: "own" or the host's name.
        baseline: another comparison's folder, which differs by proxies and the regulariser's options only: its runs at
            weight 0 are taken over instead of being made again.
        on_progress: called with (what, steps done, steps in all, a note).
        on_record: called with the records of the runs so far after each run, also of those that were finished before.

    Returns the content of `compare.json`; see docs/compare.md.

    Raises:
        InputError: no seeds, another process is at work in `out`, or `out` holds a comparison with other settings, or
            `baseline` one with another baseline. The message names the differences.
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
    wanted = {"host": host, **judge.made_with(), **distil.made_with}
    runs = [Run(arm, seed) for seed in range(first_seed, first_seed + seeds) for arm in arms]
    taken = take_baseline(user_path(baseline), out, runs, wanted) if baseline is not None else []
    with exclusive_lock(out / ".lock", out):
        claim(out, wanted)
        work = _Work(distil, out / ENTRIES, judge, host, len(runs), on_progress)
        for source in taken:
            take(source, out / ENTRIES / source.name)
        records: list[dict[str, Any]] = []
        for run in runs:
            records.append(work.record(run, len(records)))
            if on_record is not None:
                on_record(records)
        work.tell(len(runs) * distil.length, "all runs done")
        result = _result(wanted, seeds, records, _others(out, records))
        write_json(result, out / RESULT)
        return result


@dataclass(frozen=True)
class _Work:
    """Makes and judges the runs of a comparison in the folder `entries`."""

    distil: Distiller
    entries: Path
    judge: Judge
    host: str
    total: int
    on_progress: Callable[[str, int, int, str], object] | None

    def record(self, run: Run, before: int) -> dict[str, Any]:
        """Make and judge a run, or what is left of it, after `before` others; returns its record."""
        length, folder = self.distil.length, self.entries / run.name
        note = f"{before} of {self.total} runs done; {run.name}"

        def distilling(step: int) -> None:
            at = f"iteration {step} of {length}" if length > 1 else "the host's run"
            self.tell(before * length + step, f"{note}: {at}")

        if not (folder / DONE).is_file():
            for stale in folder.glob("set-*.json"):  # of a baseline whose taking over was broken off
                stale.unlink()
        self.distil(run, folder, distilling)
        return self._judged(run, folder, (before + 1) * length, note)

    def _judged(self, run: Run, folder: Path, step: int, note: str) -> dict[str, Any]:
        """Return the complete record of a finished run, with its judged sets."""
        distilled = read_json(folder / DONE, AGAIN, Distilled)
        checkpoints, times, last = [], [], distilled["sets"][-1]["iteration"]
        for made in distilled["sets"]:
            iteration = made["iteration"]
            count = self.judge.settings.judged_at(iteration, last)

            def networks(done: int, iteration: int = iteration) -> None:
                self.tell(step, f"{note}: judging iteration {iteration}, {done} networks done")

            networks(0)
            judgement = self.judge(folder / set_name(iteration), run.seed, count, networks, last=iteration == last)
            checkpoints.append({"iteration": iteration, **judgement, "lambda": made["lambda"], "share": made["share"]})
            times.append({"iteration": iteration, **made["times"]})
        return {
            **run.described(), "skipped": distilled["skipped"], "taken_from": distilled.get("taken_from"),
            "checkpoints": checkpoints, "times": times,
        }  # fmt: skip

    def tell(self, step: int, note: str) -> None:
        """Report `step` of all runs' steps as done."""
        if self.on_progress is not None:
            what = f"compare {self.host} on {self.judge.data.name}"
            self.on_progress(what, step, self.total * self.distil.length, note)


def _others(out: Path, records: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the runs that are finished in `out` and not among `records`."""
    ours = {record["name"] for record in records}
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
