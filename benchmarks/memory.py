"""Memory of a round against that of the published recipe.

    python benchmarks/memory.py --out memory.json [--images 5000] [--recipe-images 1000] [--device cuda]

Each side runs in a process of its own and reports its peak above the level just before the round. The recipe's is in
proportion to the images, so that it may be measured on fewer and scaled.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import measuring
import torch
from recipe import Recipe

import ddplug


def peak(device: torch.device, step: Callable[[], object]) -> int:
    """Bytes that `step` takes at its peak above what was there before; on the CPU, of resident memory (Linux)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest level so far
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def side(name: str, images: int, device: torch.device) -> int:
    """Peak of one side."""
    views, labels = measuring.random_images(images, device)
    few, of_few = measuring.random_images(20, device)
    pool = measuring.random_pool(2).to(device)
    with tempfile.TemporaryDirectory() as folder:
        if name == "recipe":
            Recipe.save([proxy.network for proxy in pool], Path(folder))
            recipe = Recipe(Path(folder), device)
            recipe.step(few)  # what only the first step takes is not the question
            return peak(device, lambda: recipe.step(views))
        regularizer = ddplug.Regularizer(
            pool, 1.0, weighting="absolute", announce=lambda _: None,
            compute=ddplug.Compute(precision=name.removeprefix("ddplug ")),  # type: ignore[arg-type]
        )  # fmt: skip

        def ours(leaf: torch.Tensor, labels: torch.Tensor) -> None:
            torch.autograd.backward(regularizer(leaf.requires_grad_(), labels).sum())

        ours(few, of_few)
        return peak(device, lambda: ours(views, labels))


def main(given: Sequence[str] | None = None) -> None:
    """Print the table, and write it as JSON if asked to."""
    parser = measuring.arguments(__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--recipe-images", type=int, default=1000, help="measured for the recipe, then scaled")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    if options.side:
        print(side(options.side[0], int(options.side[1]), torch.device(options.device)))
        return
    device = measuring.start(options)
    counts = {"recipe": options.recipe_images, "ddplug exact": options.images, "ddplug auto": options.images}
    peaks = {}
    for name, count in counts.items():
        command = [sys.executable, __file__, "--device", options.device, "--side", name, str(count)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks[name] = json.loads(answer.splitlines()[-1]) * options.images / count
    print(f"{options.images} images (the recipe: {options.recipe_images}, scaled)")
    for name, peak_ in peaks.items():
        print(f"{name:14}{peak_ / 2**30:8.2f} GiB{peak_ / peaks['recipe']:8.3f} x recipe")
    ratios = {name: peak_ / peaks["recipe"] for name, peak_ in peaks.items()}
    measuring.write(options.out, device, images=counts, bytes=peaks, ratios=ratios)


if __name__ == "__main__":
    main()
