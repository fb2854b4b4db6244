"""One run of a comparison, distilled by our own trainer so that it can be killed at any moment and resumed.

Its folder has a set for every checkpoint, `set-000060.pt`; during the run `running.pt`, the state for resuming; and at
the end `distilled.json`, the list of the sets. Files are replaced as a whole, and a second run gives the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from ddplug.attaching.attach import Augment, Handle, attach
from ddplug.core.flags import keywords
from ddplug.core.regularizer import Regularizer
from ddplug.datasets.images import ImageData
from ddplug.datasets.synthetic import SyntheticSet, save_set
from ddplug.lab.dm_trainer import DistributionMatching
from ddplug.lab.folder import DONE, set_name, write_done
from ddplug.lab.judge import Judge
from ddplug.lab.plan import Arm, Run, Settings
from ddplug.proxies.pool import ProxyPool
from ddplug.utils.meter import Meter
from ddplug.utils.reading import load_tensors, reported_as, write_tensors

RUNNING = "running.pt"
LAST_ROUNDS = 4
"""Rounds before a checkpoint whose mean share it records."""


@dataclass(frozen=True)
class Own:
    """Distils runs by `ddplug.lab.dm_trainer.DistributionMatching`.

    `save_every` is how many seconds of work may be lost; it decides nothing else.
    """

    data: ImageData
    settings: Settings
    pool: ProxyPool
    device: torch.device
    save_every: float = 5.0

    @property
    def length(self) -> int:
        """Iterations of a run."""
        return self.settings.iterations

    @property
    def made_with(self) -> dict[str, Any]:
        """Return nothing: the settings determine a run."""
        return {}

    def check(self, arms: Sequence[Arm], judge: Judge) -> None:
        """Raise for a set or a regulariser that cannot be made, before anything is done."""
        settings, trainer = self.settings, self.trainer(0)
        for arm in arms:
            regularizer = Regularizer(self.pool, data=self.data, **self._options(arm))
            regularizer.pool.check(trainer.images, self.data.space)
        settings.check_arms(arms, settings.ipc, -(-settings.iterations // settings.option("every")))

    def __call__(self, run: Run, folder: Path, tell: Callable[[int], object]) -> None:
        """Distil `run` into `folder`, or what is left of it; `tell(iteration)` after each iteration."""
        if (folder / DONE).is_file():
            (folder / RUNNING).unlink(missing_ok=True)
            return
        if not run.arm.baseline:
            self.pool.to(self.device)  # beside what the meter counts, as it is when a run before has used it
        meter = Meter(self.device)
        trainer = self.trainer(run.seed)
        with self._attached(trainer, run) as handle:
            notes = self._resume(folder / RUNNING, trainer, handle, meter)
            while trainer.iteration < self.length:
                goal = next(point for point in self.settings.points if point > trainer.iteration)
                self._stretch(trainer, meter, goal, tell)
                if trainer.iteration == goal:
                    save_set(self._set(trainer), folder / set_name(goal))
                    shares = [each.share for each in list(handle.history)[-LAST_ROUNDS:] if each.share]
                    share = fmean(shares) if shares else None  # unknown at weight 0 and while lambda is measured
                    notes.append({"iteration": goal, "lambda": handle.lam, "share": share, "times": meter.read()})
                self._save(folder / RUNNING, trainer, handle, notes, meter)
            skipped = handle.history.skipped
        write_done(folder, notes, skipped)
        (folder / RUNNING).unlink(missing_ok=True)

    def trainer(self, seed: int) -> DistributionMatching:
        """The trainer of one seed, as it starts in every arm."""
        settings = self.settings
        return DistributionMatching(
            self.data, settings.ipc, strategy=settings.strategy, batch_real=settings.batch_real, lr=settings.lr,
            architecture=settings.arch, options=settings.network, init=settings.init, seed=seed, device=self.device,
        )  # fmt: skip

    def _attached(self, trainer: DistributionMatching, run: Run) -> Handle:
        options = self._options(run.arm, run.seed)
        augment: Augment = "none" if run.arm.views == "clean" else "host"
        return attach(trainer, proxies=self.pool, labels="labels", augment=augment, **options)

    def _options(self, arm: Arm, seed: int = 0) -> dict[str, Any]:
        """Return the regulariser's options of a run."""
        flags = {**self.settings.regularizer, "term": self.settings.term_of(arm), "seed": seed}
        return {**keywords(arm.weight, ("dm", self.data.name, self.settings.ipc), **flags), "announce": _silent}

    def _stretch(self, trainer: DistributionMatching, meter: Meter, goal: int, tell: Callable[[int], object]) -> None:
        """Iterations up to `goal`, or as many as fit between two saves; at least one."""
        with meter:
            until = time.monotonic() + self.save_every
            while True:
                trainer.step()
                tell(trainer.iteration)
                if trainer.iteration == goal or time.monotonic() >= until:
                    return

    def _set(self, trainer: DistributionMatching) -> SyntheticSet:
        return SyntheticSet(trainer.images.detach(), trainer.labels, self.data.space, self.data.name)

    def _save(
        self, path: Path, trainer: DistributionMatching, handle: Handle, notes: list[dict[str, Any]], meter: Meter
    ) -> None:
        state = {
            "trainer": trainer.state_dict(), "regularizer": handle.state_dict(), "notes": notes, "meter": meter.read(),
        }  # fmt: skip
        write_tensors(state, path)

    def _resume(self, path: Path, trainer: DistributionMatching, handle: Handle, meter: Meter) -> list[dict[str, Any]]:
        """Bring everything to the state at `path`, if that exists; returns the notes on its checkpoints."""
        if not path.is_file():
            return []
        expected, advice = "the state of a distillation", "Delete it to distil this run from the beginning."
        state = load_tensors(path, "state", expected, advice)
        with reported_as(path, expected, advice):
            trainer.load_state_dict(state["trainer"])
            handle.load_state_dict(state["regularizer"])
            meter.go_on(state["meter"])
            return list(state["notes"])


def _silent(line: str) -> None:
    """Lambda goes into the results instead."""
