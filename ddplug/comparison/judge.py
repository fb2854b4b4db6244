"""Judging a set: CMI under the proxies, and the accuracy of fresh networks trained on it, one file per judgement."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ddplug.augment.dsa import DSA
from ddplug.comparison.plan import Settings
from ddplug.comparison.records import AGAIN, JUDGEMENT, read_json
from ddplug.datasets.images import ImageData
from ddplug.datasets.spaces import AnySpace
from ddplug.datasets.synthetic import SyntheticSet, load_set
from ddplug.evaluation.evaluate import judged
from ddplug.evaluation.measure import measure
from ddplug.networks.training import evaluate_set
from ddplug.networks.zoo import build, seeded
from ddplug.proxies.pool import ProxyPool
from ddplug.utils.files import write_json


class Judge(NamedTuple):
    """What a set is judged by. Networks of one seed are the same whichever arm the set is of."""

    data: ImageData
    settings: Settings
    pool: ProxyPool
    heldout: ProxyPool | None
    device: torch.device

    def check(self) -> None:
        """Raise for a network or an augmentation that cannot be made, before anything is done."""
        DSA(self.settings.strategy)
        with seeded(0):
            self._network()

    def __call__(self, file: Path, seed: int, tell: Callable[[int], object]) -> dict[str, Any]:
        """The judgement of the set in `file`, from the file beside it, or made and kept there network by network.

        Returns accuracies in [0, 1], and CMI in nats under the training and the held-out proxies (None without).
        `tell(done)` after each network.
        """
        path = file.with_suffix(".json")
        record = read_json(path, AGAIN, JUDGEMENT) if path.is_file() else {}
        if "cmi" in record and len(record["accuracies"]) >= self.settings.runs:
            return record
        synthetic = load_set(file)
        images, labels = synthetic.images.to(self.device), synthetic.labels.to(self.device)
        space, data = judged(synthetic, self.data)  # fits the whitening of a whitened set, once for both uses
        if "cmi" not in record:  # accuracies may be there, taken from another comparison
            record = {"accuracies": record.get("accuracies", []), **self._cmi(synthetic, images, space)}
            write_json(record, path)
        images = space.convert(images, data.space)
        for run in range(len(record["accuracies"]), self.settings.runs):
            record["accuracies"].append(self._train(images, labels, data, judge_seed(seed, run)))
            write_json(record, path)
            tell(run + 1)
        return record

    def _cmi(self, synthetic: SyntheticSet, images: torch.Tensor, space: AnySpace) -> dict[str, float | None]:
        labels, how = synthetic.classes.to(self.device), self.settings.measuring
        pools = {"cmi": self.pool, "cmi_heldout": self.heldout}
        return {
            name: None
            if pool is None
            else measure(pool, images, labels, input_space=pool.derived_space(space), **how).cmi
            for name, pool in pools.items()
        }

    def _network(self) -> nn.Module:
        channels, height, width = self.data.shape
        return build(
            self.settings.arch, num_classes=self.data.num_classes, channels=channels, size=(height, width),
            **self.settings.network,
        )  # fmt: skip

    def _train(self, images: torch.Tensor, labels: torch.Tensor, data: ImageData, seed: int) -> float:
        settings = self.settings
        # Every image has its own draw, as where the field trains networks on a set; distilling shares one.
        dsa = DSA(settings.strategy, siamese=False, seed=seed)
        (accuracy,) = evaluate_set(
            images, labels, data, runs=1, epochs=settings.epochs, lr=settings.judge_lr, seed=seed,
            augment=lambda batch, generator: dsa(batch),
            architecture=self._network,
        )  # fmt: skip
        return accuracy


def judge_seed(seed: int, run: int) -> int:
    """The seed of a judge: far from those that distil, and the same in every arm and at every checkpoint."""
    return 1000 * (seed + 1) + run
