"""Time of a round of the regulariser against the published recipe and against a bare pass through the proxy.

    python benchmarks/step.py --out step.json [--images 100] [--device cuda]

A round is all of it: the layer's backward call, the draw of the proxy, the estimate, the gradient handed out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import measuring
import torch
from recipe import Recipe, floor

import ddplug
from ddplug.networks.precision import Precision

PRECISIONS: tuple[Precision, ...] = ("exact", "auto", "bf16")


def main(given: Sequence[str] | None = None) -> None:
    """Print the table, and write it as JSON if asked to."""
    parser = measuring.arguments(__doc__)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--compile", action="store_true", help="with torch.compile too")
    parser.add_argument("--classes", type=int, help="estimate on this many random classes of the ten")
    options = parser.parse_args(given)
    device = measuring.start(options)
    images, labels = measuring.random_images(options.images, device)
    pool = measuring.random_pool().to(device)
    with tempfile.TemporaryDirectory() as folder:
        Recipe.save([proxy.network for proxy in pool], Path(folder))
        recipe = Recipe(Path(folder), device)
        sides: dict[str, Callable[[], object]] = {"recipe": lambda: recipe.step(images)}
        for precision, compiled in product(PRECISIONS, (False, True) if options.compile else (False,)):
            regularizer = ddplug.Regularizer(
                pool,
                1.0,
                weighting="absolute",
                compute=ddplug.Compute(precision=precision, classes=options.classes, compile=compiled),
            )

            def ours(regularizer: ddplug.Regularizer = regularizer) -> None:
                leaf = images.detach().requires_grad_()
                torch.autograd.backward(regularizer(leaf, labels).sum())

            def bare(precision: Precision = precision) -> None:
                floor(pool.proxies[0].network, images, precision)

            sides[f"floor {precision}"] = bare
            sides[f"{precision}, compiled" if compiled else precision] = ours
        seconds = measuring.alternate(sides, options.repeats, device)
    rows = {}
    print(f"{options.images} images{f', {options.classes} classes of 10' if options.classes else ''}")
    print(f"{'':16}{'ms':>9}{'x recipe':>10}{'x floor':>9}")
    print(f"{'recipe':16}{1e3 * seconds['recipe']:9.1f}{1:10.2f}")
    for name, took in seconds.items():
        if name != "recipe" and not name.startswith("floor"):
            bare_ = seconds[f"floor {name.partition(',')[0]}"]
            rows[name] = {"to recipe": took / seconds["recipe"], "to floor": took / bare_}
            print(f"{name:16}{1e3 * took:9.1f}{took / seconds['recipe']:10.2f}{took / bare_:9.2f}")
    measuring.write(options.out, device, images=options.images, classes=options.classes, seconds=seconds, ratios=rows)


if __name__ == "__main__":
    main()
