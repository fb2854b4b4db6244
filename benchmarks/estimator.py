"""Time of CMI and its gradient from features, in float64 as in a round, by the number of classes.

python benchmarks/estimator.py --out estimator.json [--images 2000] [--features 512] [--device cuda]
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import measuring
import torch

from ddplug.terms.base import group
from ddplug.terms.cmi import closed_form

CLASSES = (10, 100, 1000)


def main(given: Sequence[str] | None = None) -> None:
    """Print the table, and write it as JSON if asked to."""
    parser = measuring.arguments(__doc__, repeats=99)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--features", type=int, default=512)
    options = parser.parse_args(given)
    device = measuring.start(options)
    random = torch.Generator().manual_seed(0)
    features = torch.randn(options.images, options.features, generator=random, dtype=torch.float64).to(device)
    shuffled = torch.randperm(options.images, generator=random)
    groups = {classes: group(shuffled % classes, options.images, device) for classes in CLASSES}
    sides = {str(classes): partial(closed_form, features, found, 1.0) for classes, found in groups.items()}
    seconds = measuring.alternate(sides, options.repeats, device)
    print(f"{options.images} images, {options.features} features\n{'classes':>8}{'ms':>9}{'x 10 classes':>14}")
    for classes, time in seconds.items():
        print(f"{classes:>8}{1e3 * time:9.2f}{time / seconds['10']:14.2f}")
    ratios = {classes: time / seconds["10"] for classes, time in seconds.items()}
    measuring.write(
        options.out, device, images=options.images, features=options.features, seconds=seconds, ratios=ratios
    )


if __name__ == "__main__":
    main()
