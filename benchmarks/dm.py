"""Time of an iteration of distribution matching with the regulariser in every step, and without.

    python benchmarks/dm.py --out dm.json [--ipc 10] [--batch-real 256] [--architecture resnet18] [--device cuda]

Our own DM trainer on noise of CIFAR-10's size, which takes as long as CIFAR-10, with a pool of eight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import measuring
import torch

import ddplug
from ddplug.datasets.images import ImageData
from ddplug.datasets.spaces import InputSpace
from ddplug.lab.dm_trainer import DistributionMatching


def noise(images: int) -> ImageData:
    """Ten classes of 32x32 noise."""
    pictures = torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(images) % 10
    names = tuple(str(label) for label in range(10))
    return ImageData("noise", names, InputSpace.unit(3), pictures, labels, pictures[:10], labels[:10])


def main(given: Sequence[str] | None = None) -> None:
    """Print the table, and write it as JSON if asked to."""
    parser = measuring.arguments(__doc__, repeats=5)
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--batch-real", type=int, default=256)
    parser.add_argument("--architecture", default="resnet18", help="of the proxies")
    options = parser.parse_args(given)
    device = measuring.start(options)
    data, pool = noise(5000), measuring.random_pool(architecture=options.architecture).to(device)
    sides: dict[str, Callable[[], object]] = {}
    settings = {
        "without": {},
        "exact": {"compute": ddplug.Compute(precision="exact")},
        "auto": {},
        "bf16": {"compute": ddplug.Compute(precision="bf16")},
    }
    settings["auto, every=2"] = {"compute": ddplug.Compute(every=2)}  # two steps below, of which one acts
    for name, setting in settings.items():
        trainer = DistributionMatching(data, options.ipc, batch_real=options.batch_real, device=device)
        if name != "without":
            ddplug.attach(
                trainer, 1.0, weighting="absolute", proxies=pool, announce=lambda _: None, **setting  # type: ignore[arg-type]
            )  # fmt: skip

        def two_steps(trainer: DistributionMatching = trainer) -> None:
            trainer.step()
            trainer.step()

        sides[name] = two_steps
    seconds = {name: time / 2 for name, time in measuring.alternate(sides, options.repeats, device).items()}
    ratios = {name: time / seconds["without"] for name, time in seconds.items()}
    print(f"{options.ipc} images per class, {options.batch_real} real per class, {options.architecture}")
    for name, time in seconds.items():
        print(f"{name:14}{1e3 * time:9.1f} ms{ratios[name]:7.2f}")
    measuring.write(
        options.out, device, ipc=options.ipc, batch_real=options.batch_real, architecture=options.architecture,
        seconds=seconds, ratios=ratios,
    )  # fmt: skip


if __name__ == "__main__":
    main()
