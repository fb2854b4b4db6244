"""`ddplug compare`: the same distillation with and without CMI, from the same starts and seeds, and what came out.

Everything that is finished is a file, so that the same call resumes what was interrupted and ends with the same
results; with more seeds, weights or views it adds what is missing. Times are kept apart from results.

Several processes may share the runs: each makes its part first, and then what no other has begun. A run is locked while
it is made, so that what a process that ended leaves behind is made by another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ddplug.errors import InputError
from ddplug.lab.baseline import take, taken_from, to_make, to_take
from ddplug.lab.folder import REGULARIZERS, check_folder, claim, differing, made_with
from ddplug.lab.judge import Judge
from ddplug.lab.own_trainer import DONE, set_name
from ddplug.lab.plan import Arm, Run
from ddplug.lab.records import AGAIN, Distilled, read_json
from ddplug.lab.statistics import summary
from ddplug.terms import make
from ddplug.utils.files import HeldError, exclusive_lock, user_path, write_json
from ddplug.utils.processes import place

RESULT, ENTRIES, LOCK = "compare.json", "entries", ".lock"
PAUSE = 0.5
"""Seconds after which a process looks again whether another has finished a run."""


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
    shared: bool = False,
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
        shared: where torchrun has started several processes that all make this call, divide the runs among them. Each
            returns when all runs are done, and the first writes `compare.json`, which is that of one process.
        on_progress: told (what, steps done, steps in all, a note).
        on_record: told the records of the runs so far after each run, also of those that were finished before.

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
    rank, size = place() if shared else (0, 1)
    source, taken = user_path(baseline or out), []
    if baseline is not None and (lacking := to_make(out / ENTRIES, runs)):
        # What the first process finds lacking, another may find made.
        asked = lacking if rank == 0 else [run for run in runs if run.arm.baseline]
        taken = to_take(source / ENTRIES, asked, differing(source, wanted, ignored=REGULARIZERS))
    with exclusive_lock(out / (f"{LOCK}_{rank}" if rank else LOCK), out):
        claim(out, wanted)
        work = _Work(distil, out / ENTRIES, judge, host, len(runs), on_progress, rank, size, on_record)
        work.taken = {run.name: source / ENTRIES / run.name for run in taken}
        records = work.all(runs)
        result = _result(wanted, seeds, records, _others(out, records))
        if rank == 0:
            write_json(result, out / RESULT)
        return result


@dataclass
class _Work:
    """Makes and judges the runs of a comparison in the folder `entries`, as process `rank` of `size`."""

    distil: Distiller
    entries: Path
    judge: Judge
    host: str
    total: int
    on_progress: Callable[[str, int, int, str], object] | None
    rank: int = 0
    size: int = 1
    on_record: Callable[[Sequence[dict[str, Any]]], object] | None = None
    taken: dict[str, Path] = field(default_factory=dict)
    """Runs that are not made but taken over, and where from."""
    done: set[str] = field(default_factory=set)

    def all(self, runs: Sequence[Run]) -> list[dict[str, Any]]:
        """Return the records of all runs, in their order; wait for those that another process makes."""
        self._share(runs)
        records: list[dict[str, Any]] = []
        for run in runs:
            records.append(self._waited_for(run))
            if self.on_record is not None:
                self.on_record(records)
        self._tell(self.total * self.distil.length, "all runs done")
        return records

    def _share(self, runs: Sequence[Run]) -> None:
        """Make this process's part of the runs, and then those of the others that no process is at work on."""
        if self.size == 1:
            return
        for first in range(self.rank, self.rank + self.size):
            for run in runs[first % self.size :: self.size]:
                with suppress(HeldError):
                    self._run(run)

    def _lock(self, name: str) -> AbstractContextManager[None]:
        """Held while a run is made; `HeldError` if another process has it."""
        return nullcontext() if self.size == 1 else exclusive_lock(self.entries / f".{name}.lock", self.entries / name)

    def _waited_for(self, run: Run) -> dict[str, Any]:
        """Return a run's record, as soon as no other process is at work on it."""
        while True:
            try:
                return self._run(run)
            except HeldError:
                time.sleep(PAUSE)

    def _run(self, run: Run) -> dict[str, Any]:
        length, folder = self.distil.length, self.entries / run.name
        before = len(self.done - {run.name})
        note = f"{before} of {self.total} runs done; {run.name}"

        def distilling(step: int) -> None:
            at = f"iteration {step} of {length}" if length > 1 else "the host's run"
            self._tell(before * length + step, f"{note}: {at}")

        with self._lock(run.name):
            if not (folder / DONE).is_file():
                for stale in folder.glob("set-*.json"):  # of a baseline whose taking over was broken off
                    stale.unlink()
                if run.name in self.taken:
                    take(self.taken[run.name], folder)
            self.distil(run, folder, distilling)
            record = self._judged(run, folder, (before + 1) * length, note)
        self.done.add(run.name)
        return record

    def _judged(self, run: Run, folder: Path, step: int, note: str) -> dict[str, Any]:
        """Return the complete record of a finished run, with its judged sets."""
        distilled = read_json(folder / DONE, AGAIN, Distilled)
        checkpoints, times, last = [], [], distilled["sets"][-1]["iteration"]
        for made in distilled["sets"]:
            iteration = made["iteration"]
            count = self.judge.settings.judged_at(iteration, last)

            def networks(done: int, iteration: int = iteration) -> None:
                self._tell(step, f"{note}: judging iteration {iteration}, {done} networks done")

            networks(0)
            judgement = self.judge(folder / set_name(iteration), run.seed, count, networks, last=iteration == last)
            checkpoints.append({"iteration": iteration, **judgement, "lambda": made["lambda"], "share": made["share"]})
            times.append({"iteration": iteration, **made["times"]})
        return {
            **run.described(), "skipped": distilled["skipped"], "taken_from": taken_from(distilled),
            "checkpoints": checkpoints, "times": times,
        }  # fmt: skip

    def _tell(self, step: int, note: str) -> None:
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
