"""Judging the sets of a comparison: the term under the proxies, and the accuracy of fresh networks, a file per set."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ddplug.datasets.images import ImageData
from ddplug.datasets.spaces import AnySpace
from ddplug.datasets.synthetic import SyntheticSet
from ddplug.errors import InputError
from ddplug.lab.evaluate import judged
from ddplug.lab.folder import AGAIN, Judgement, read_json
from ddplug.lab.judging import DSAPerNetwork, Recipe, maker, resolve
from ddplug.lab.meaning import kept_set
from ddplug.lab.measure import measure_term, recognition
from ddplug.lab.plan import Settings
from ddplug.networks.training import accuracy
from ddplug.networks.zoo import seeded
from ddplug.proxies.pool import ProxyPool
from ddplug.terms import make
from ddplug.utils.files import write_json


@dataclass(frozen=True)
class Judge:
    """Judge of a set. Networks of one seed are the same for every arm.

    `cross_arch` are further architectures, each of its own width, that judge the last set of a run.
    """

    data: ImageData
    settings: Settings
    pool: ProxyPool
    heldout: ProxyPool | None
    device: torch.device
    cross_arch: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise for a network or an augmentation that cannot be made, before anything is done."""
        recipe = self.recipe
        assert isinstance(recipe.augment, DSAPerNetwork)  # its making has checked it
        names = [resolve(name) for name in self.cross_arch]
        if len({*names, resolve(self.settings.arch)}) <= len(names):
            raise InputError(
                f"cross_arch names further architectures, each once, got {', '.join(names)} beside "
                f"{self.settings.arch}, which judges all sets."
            )
        for arch in (None, *self.cross_arch):
            with seeded(0):
                self._maker(arch)()

    def made_with(self) -> dict[str, Any]:
        """Return the inputs of a run's outcome that are the same for all runs, as read back from JSON."""
        digests = [None if pool is None else [proxy.digest() for proxy in pool] for pool in (self.pool, self.heldout)]
        return {
            "data": {"name": self.data.name, "fingerprint": self.data.fingerprint()},
            "proxies": digests[0], "heldout": digests[1], "device": self.device.type,
            "settings": self.settings.to_json(), "ddplug": importlib.metadata.version("ddplug"),
            "torch": torch.__version__,
        }  # fmt: skip

    @property
    def recipe(self) -> Recipe:
        """Training recipe of the networks; every image has its own draw, as is standard in judging."""
        settings = self.settings
        return Recipe(settings.epochs, settings.judge_lr, augment=DSAPerNetwork(settings.strategy))

    def __call__(self, file: Path, seed: int, runs: int, tell: Callable[[int], object], last: bool) -> dict[str, Any]:
        """Judge the set in `file`; results are kept in a file beside it, network by network, and read from there.

        Returns accuracies of `runs` networks in [0, 1]; those of `cross_arch` by architecture, if the set is the `last`
        of its run; and the term under the training and the held-out proxies (None without). `tell(done)` after each
        network.
        """
        path = file.with_suffix(".json")
        record = read_json(path, AGAIN, Judgement) if path.is_file() else {}
        names = [resolve(name) for name in self.cross_arch] if last else []
        by_arch: dict[str, list[float]] = record.get("accuracies_by_arch", {})
        complete = all(len(by_arch.get(name, [])) >= runs for name in names)
        if "cmi" in record and len(record["accuracies"]) >= runs and complete:
            return _of(record, names)
        synthetic, _ = kept_set(file, self.data)
        images, labels = synthetic.images.to(self.device), synthetic.labels.to(self.device)
        space, data = judged(synthetic, self.data)  # fits the whitening of a whitened set, once for both uses
        if "cmi" not in record:  # accuracies may be there, taken from another comparison
            record = {"accuracies": [], **record, **self._term(synthetic, images, space)}
            write_json(record, path)
        images = space.convert(images, data.space)

        done = 0
        for arch in (None, *names):
            scores = record["accuracies"] if arch is None else by_arch.setdefault(arch, [])
            if arch is not None:
                record["accuracies_by_arch"] = by_arch
            while len(scores) < runs:
                scores.append(self._train(images, labels, data, arch, judge_seed(seed, len(scores))))
                write_json(record, path)
                tell(done + len(scores))
            done += len(scores)
        return _of(record, names)

    def learning(self, images: torch.Tensor, labels: torch.Tensor, seed: int) -> tuple[list[int], list[float]]:
        """Train one network on images (n, c, h, w) in the data's space.

        Returns about ten of its epochs, and its test accuracies in [0, 1] after them.
        """
        data, every = self.data, max(1, self.settings.epochs // 10)
        epochs, accuracies = [], []

        def look(net: torch.nn.Module, done: int, loss: float) -> None:
            if done % every == 0:
                epochs.append(done)
                accuracies.append(accuracy(net, data.test_images, data.test_labels))

        self.recipe.judge(
            images.to(self.device),
            labels.to(self.device),
            data,
            self._maker(None),
            seed=judge_seed(seed, 0),
            on_epoch=look,
        )
        return epochs, accuracies

    def _term(self, synthetic: SyntheticSet, images: torch.Tensor, space: AnySpace) -> dict[str, float | None]:
        """The term under both pools, under the keys of CMI whatever it is, and the images that proxies recognise."""
        others = self.heldout or self.pool
        recognised, confidence = recognition(others, images, synthetic.classes, others.derived_space(space))
        return {
            "cmi": self._value(self.pool, synthetic, images, space),
            "cmi_heldout": None if self.heldout is None else self._value(self.heldout, synthetic, images, space),
            "recognised": recognised, "confidence": confidence,
        }  # fmt: skip

    def _value(self, pool: ProxyPool, synthetic: SyntheticSet, images: torch.Tensor, space: AnySpace) -> float:
        how = dict(self.settings.measuring)
        term = make(self.settings.term, temperature=how.pop("temperature"))
        return measure_term(term, pool, replace(synthetic, images=images, space=space), self.data, **how)

    def _maker(self, arch: str | None) -> Callable[[], torch.nn.Module]:
        if arch is None:
            return maker(self.settings.arch, self.data, self.settings.network)
        return maker(arch, self.data, {})

    def _train(self, images: torch.Tensor, labels: torch.Tensor, data: ImageData, arch: str | None, seed: int) -> float:
        return self.recipe.judge(images, labels, data, self._maker(arch), seed=seed)


def _of(record: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Return the judgement with the architectures `names` only."""
    by_arch = record.get("accuracies_by_arch", {})
    kept = {name: by_arch[name] for name in names}
    plain = {key: value for key, value in record.items() if key != "accuracies_by_arch"}
    return {**plain, "accuracies_by_arch": kept} if kept else plain


def judge_seed(seed: int, run: int) -> int:
    """The seed of a judge: far from those that distil, and the same in every arm and at every checkpoint."""
    return 1000 * (seed + 1) + run
