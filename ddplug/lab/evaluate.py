"""Judging a synthetic set by the standard recipe: fresh networks, trained on it, tested on real images.

    evaluation = evaluate(load_set("set.pt"), load("cifar10", "data"), architectures=("ConvNet", "ResNet18"))

Every finished run can be kept in a file, so that an evaluation that was interrupted can be resumed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal, TypedDict

import torch
from torch import nn

from ddplug.datasets.images import ImageData
from ddplug.datasets.spaces import AnySpace, too_bright
from ddplug.datasets.synthetic import SyntheticSet
from ddplug.errors import InputError
from ddplug.lab.judging import STANDARD_LR, DSAViews, Recipe, check_fits, maker, resolve, usual_strategy
from ddplug.lab.meaning import is_whitened, with_space
from ddplug.lab.measure import Measurement, measure
from ddplug.networks.training import Augment, named
from ddplug.networks.zoo import seeded
from ddplug.proxies.pool import ProxyPool
from ddplug.utils.digest import short_sha256, typed_bytes
from ddplug.utils.files import exclusive_lock, user_path, write_json
from ddplug.utils.records import Fraction, read_record

Progress = Callable[[str, int, int, str], object]


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation: settings, and the test accuracy in [0, 1] of every network trained on the set."""

    settings: dict[str, Any]
    accuracies: dict[str, list[float]]
    """By architecture, in the order of the seeds."""
    cmi: Measurement | None = None
    """The set's CMI under a pool, if one was given."""

    def mean(self, architecture: str) -> float:
        """Mean accuracy over the runs of an architecture."""
        return fmean(self.accuracies[architecture])

    def std(self, architecture: str) -> float:
        """Standard deviation of accuracy between runs (with n - 1); 0 for one run."""
        runs = self.accuracies[architecture]
        return stdev(runs) if len(runs) > 1 else 0.0

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        results = {
            name: {"mean": self.mean(name), "std": self.std(name), "accuracies": runs}
            for name, runs in self.accuracies.items()
        }
        return {"settings": self.settings, "results": results, "cmi": self.cmi.to_json() if self.cmi else None}


def evaluate(
    synthetic: SyntheticSet,
    data: ImageData,
    *,
    architectures: Sequence[str] = ("convnet",),
    runs: int = 5,
    epochs: int = 1000,
    lr: float | None = None,
    batch_size: int = 256,
    augment: Augment | Literal["dsa"] | None = "dsa",
    seed: int = 0,
    options: dict[str, Any] | None = None,
    pool: ProxyPool | None = None,
    device: torch.device | str = "cpu",
    keep: str | Path | None = None,
    on_progress: Progress | None = None,
) -> Evaluation:
    """Train `runs` fresh networks of every architecture on a set, test them on all of `data`'s test images.

    SGD with momentum 0.9 and weight decay 5e-4; `ddplug.networks.training.fit` says when the rate is divided by ten.

    Args:
        synthetic: the set. A whitened one is judged whitened; any other is brought to `data`'s own space.
        data: the real images.
        architectures: names for `ddplug.networks.build`, in upper or lower case.
        runs: networks of each; run i has seed + i.
        epochs: passes over the set.
        lr: the rate to start from; None is the set's own, if it was learned with one, else 0.01.
        batch_size: images per step.
        augment: `(images, generator) -> images`, None, or "dsa" for the operations of DSA that suit the data.
        seed: of the first run.
        options: further options of the networks, such as `width`.
        pool: proxies of the same data, to measure CMI under.
        device: to train on.
        keep: a JSON file in which finished runs are kept, and from which they are taken the next time.
        on_progress: called with (architecture, epochs done, epochs in all, accuracy of the latest run).

    Raises `InputError` for a set that does not fit the data, or runs kept with other settings, also if it is
    not known what the images mean, `ProxyError` for a pool of other data, and what `build` and `fit` raise.
    """
    names = [resolve(name) for name in architectures]
    _check(synthetic, data, names, runs, epochs, pool)
    if lr is not None and not 0 < lr < float("inf"):
        raise InputError(f"lr must be more than 0 and finite, got {lr}")
    if augment == "dsa":
        augment = DSAViews(usual_strategy(data.name))
    space, judge = judged(synthetic, data)
    rate = lr if lr is not None else synthetic.lr if synthetic.lr is not None else STANDARD_LR
    images = space.convert(synthetic.images, judge.space).to(device)
    labels = synthetic.labels.to(device)
    settings: dict[str, Any] = {
        "dataset": data.name,
        "data": data.fingerprint(),
        "set": short_sha256(typed_bytes((synthetic.images, synthetic.labels))),
        "space": "ZCA-whitened" if is_whitened(judge.space) else str(judge.space),  # its last bits may vary
        "epochs": epochs,
        "lr": rate,
        "batch_size": batch_size,
        "augment": named(augment),
        "seed": seed,
        "options": options or {},
    }
    makers = {name: maker(name, data, options or {}) for name in names}
    for fresh in makers.values():  # so that the last of them is not refused after days
        with seeded(0):
            fresh()
    recipe = Recipe(epochs, rate, batch_size, augment)
    judge = replace(judge, test_images=judge.test_images.to(device), test_labels=judge.test_labels.to(device))
    tell: Progress = on_progress or (lambda what, done, total, note: None)
    with kept_runs(keep, settings) as (finished, write):
        for name in names:
            scores, note = finished.setdefault(name, {}), ""
            for run in range(runs):
                if str(run) not in scores:
                    on_epoch = partial(_tell_epoch, tell, name, run * epochs, runs * epochs, note)
                    score = recipe.judge(images, labels, judge, makers[name], seed=seed + run, on_epoch=on_epoch)
                    scores[str(run)] = score
                    write()
                note = f"{scores[str(run)]:.2%}"
                tell(name, (run + 1) * epochs, runs * epochs, note)
    measured = None
    if pool is not None:
        unconverted = synthetic.images.to(device)
        measured = measure(
            pool.to(device), unconverted, synthetic.classes.to(device), input_space=pool.derived_space(space)
        )
    accuracies = {name: [finished[name][str(run)] for run in range(runs)] for name in names}
    return Evaluation({**settings, "runs": runs}, accuracies, measured)


def _tell_epoch(
    tell: Progress, what: str, before: int, total: int, note: str, net: nn.Module, done: int, loss: float
) -> None:
    tell(what, before + done, total, note)


class _Kept(TypedDict):
    settings: dict[str, Any]
    runs: dict[str, dict[str, Fraction]]


@contextmanager
def kept_runs(
    path: str | Path | None, settings: dict[str, Any]
) -> Iterator[tuple[dict[str, dict[str, float]], Callable[[], None]]]:
    """Yield the accuracies of finished runs, by architecture and number, and a function that writes them.

    The file at `path` is read, written at once, and locked until the end; without a path nothing is kept.

    Raises `InputError` if the file keeps runs of other settings, cannot be read or written, or if another process is at
    work in it.
    """
    ours, runs = json.loads(json.dumps(settings)), dict[str, dict[str, float]]()
    if path is None:
        yield runs, lambda: None
        return
    path = user_path(path)
    with exclusive_lock(path.with_name(f".{path.name}.lock"), path):
        if path.exists():
            kept = read_record(path, _Kept, "the runs of an evaluation", "Delete it to begin anew.", error=InputError)
            theirs, runs = kept["settings"], kept["runs"]
            differing = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
            if differing and any(runs.values()):
                said = "; ".join(f"{key} was {theirs.get(key)!r}, now {ours.get(key)!r}" for key in differing)
                raise InputError(
                    f"'{path}' keeps runs of an evaluation with other settings: {said}. Use the same ones to go on, "
                    "keep these runs in another file, or delete it to begin anew."
                )

        def write() -> None:
            write_json({"settings": ours, "runs": runs}, path)

        write()  # a file that cannot be written must be noticed before the first run
        yield runs, write


def judged(synthetic: SyntheticSet, data: ImageData) -> tuple[AnySpace, ImageData]:
    """The space a set is in, and the data in the space it is judged in: whitened for whitened sets, else its own."""
    space = with_space(synthetic, None, data).space
    assert space is not None  # with_space sees to it
    return space, data.to_space(space) if is_whitened(space) else data


def _check(
    synthetic: SyntheticSet, data: ImageData, names: list[str], runs: int, epochs: int, pool: ProxyPool | None
) -> None:
    if not names or len(set(names)) < len(names):
        raise InputError(f"name at least one architecture, and each once, got {names}")
    if runs < 1 or epochs < 1:
        raise InputError(f"runs and epochs must be at least 1, got {runs} and {epochs}")
    check_fits(synthetic.images, synthetic.labels, data)
    if text := too_bright(synthetic.images, synthetic.space):
        raise InputError(text)
    if synthetic.dataset not in (None, data.name):
        raise InputError(f"the set was distilled from {synthetic.dataset}, not from {data.name}; test it on its own")
    if not torch.isfinite(synthetic.images).all():
        raise InputError("the set's images are not all finite; nothing can be learned from such a set")
    if pool is not None:
        pool.check_data(data.name)
