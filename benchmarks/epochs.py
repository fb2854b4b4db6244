"""Epochs after which a network trained on a set with CMI reaches its final accuracy on the set without.

    python benchmarks/epochs.py COMPARISON weight-3-host --data cifar10 --data-path FOLDER --out epochs.json

COMPARISON is a folder of `ddplug compare`. Of every seed, a fresh network is trained on the last set of each arm by the
comparison's own recipe and tested every few epochs; both arms of a seed have the same network, order and augmentation.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import measuring
import torch
from torch import nn

from ddplug import datasets
from ddplug.datasets.images import ImageData
from ddplug.datasets.synthetic import load_set
from ddplug.lab.folder import AGAIN, read_json
from ddplug.lab.judging import DSAPerNetwork, Recipe, maker
from ddplug.networks.training import accuracy


def curve(
    file: Path, data: ImageData, settings: dict[str, Any], seed: int, every: int, device: torch.device
) -> list[tuple[int, float, float]]:
    """(epochs, seconds without testing, accuracy) along the training of one network on the set in `file`."""
    points: list[tuple[int, float, float]] = []
    recipe = Recipe(settings["epochs"], settings["judge_lr"], augment=DSAPerNetwork(settings["strategy"]))
    make = maker(settings["arch"], data, {} if settings["width"] is None else {"width": settings["width"]})
    tested, began = 0.0, time.perf_counter()

    def test(net: nn.Module, done: int, loss: float) -> None:
        nonlocal tested
        if done % every == 0 or done == recipe.epochs:
            before = time.perf_counter()
            trained = before - began - tested
            points.append((done, trained, accuracy(net, data.test_images, data.test_labels)))
            tested += time.perf_counter() - before

    found = load_set(file)
    recipe.judge(found.images.to(device), found.labels.to(device), data, make, seed=seed, on_epoch=test)
    return points


def main(given: Sequence[str] | None = None) -> None:
    """Print the table, and write it as JSON if asked to."""
    parser = measuring.arguments(__doc__)
    parser.add_argument("comparison", type=Path)
    parser.add_argument("arm")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-path", type=Path)
    parser.add_argument("--every", type=int, default=5, help="epochs between two tests")
    parser.add_argument("--test-images", type=int, default=2000, help="so many of them are tested on")
    options = parser.parse_args(given)
    device = measuring.start(options)
    result = read_json(options.comparison / "compare.json", AGAIN)
    real = datasets.load(options.data, options.data_path)
    few = slice(0, options.test_images)
    real = replace(real, test_images=real.test_images[few], test_labels=real.test_labels[few]).to(device)
    rows = []
    print(f"{'seed':>4} {'without %':>10} {'epochs':>7} {'with: epochs':>13} {'seconds x':>10} {'ends at %':>10}")
    for seed in range(result["first_seed"], result["first_seed"] + result["seeds"]):
        curves = {}
        for arm in ("weight-0", options.arm):
            file = max((options.comparison / "entries" / f"{arm}-seed{seed}").glob("set-*.pt"))
            curves[arm] = curve(file, real, result["settings"], 10_000 + seed, options.every, device)
        (epochs, seconds, aim), points = curves["weight-0"][-1], curves[options.arm]
        reached = next(((done, spent) for done, spent, score in points if score >= aim), (None, None))
        rows.append({"seed": seed, "aim": aim, "epochs": epochs, "reached": reached[0], "curves": curves})
        ratio = "-" if reached[1] is None else f"{reached[1] / seconds:.2f}"
        print(f"{seed:4} {100 * aim:10.2f} {epochs:7} {reached[0]!s:>13} {ratio:>10} {100 * points[-1][2]:10.2f}")
    known = [row["reached"] for row in rows if row["reached"] is not None]
    if known:
        print(f"median over seeds: {statistics.median(known):g} epochs; {len(known)} of {len(rows)} seeds got there")
    measuring.write(options.out, device, arm=options.arm, rows=rows)


if __name__ == "__main__":
    main()
