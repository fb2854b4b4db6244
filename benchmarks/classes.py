"""Time and memory of a round on a thousand classes of large images.

    python benchmarks/classes.py --out classes.json [--images 10 20 40] [--whole 10000] [--device cuda]

Ten images of a class, 224 pixels, under torchvision's ResNet-18 with random weights. A round is measured at the numbers
of images given, each in a process of its own, and extrapolated by a straight line to the whole, but for the memory of
"auto", which grows to 2 GiB beside the gradient and no further; on a GPU give the whole itself. The peak is above the
images and what else was there before; the gradient, as large as the images, is in it. The term alone, on features that
are there already, is measured on the whole.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from typing import Any

import measuring
import torch
from memory import peak
from torch import Tensor

import ddplug
from ddplug.networks.zoo import build, seeded
from ddplug.terms import make
from ddplug.terms.base import group

PER_CLASS = 10
SIDES: dict[str, dict[str, Any]] = {
    "chunk auto": {}, "chunk 10": {"compute": ddplug.Compute(chunk=10)},
}  # fmt: skip


def a_round(name: str, images: int, pixels: int, device: torch.device) -> dict[str, float]:
    """Seconds, on a CPU those of all its threads together, and peak bytes of one side's round."""
    with seeded(0):
        pool = ddplug.ProxyPool.from_modules([build("torchvision/resnet18")]).to(device)
    views = torch.randn(images, 3, pixels, pixels, device=device).requires_grad_()
    labels = torch.arange(images) // PER_CLASS
    regularizer = ddplug.Regularizer(pool, 1.0, weighting="absolute", announce=lambda _: None, **SIDES[name])
    torch.autograd.backward(regularizer(views[:2], labels[:2]).sum())  # what only the first takes is not the question
    views.grad = None
    clock = time.perf_counter if device.type == "cuda" else time.process_time  # whatever else runs on the CPU
    took: list[float] = []

    def ours() -> None:
        before = clock()
        torch.autograd.backward(regularizer(views, labels).sum())
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(clock() - before)

    return {"bytes": float(peak(device, ours)), "seconds": took[0]}


def alone(name: str, images: int, pixels: int, device: torch.device) -> dict[str, float]:
    """The same in a process of its own, where memory is the process's."""
    if device.type == "cuda":
        return a_round(name, images, pixels, device)
    with multiprocessing.get_context("fork").Pool(1) as one:  # importing torch once is enough
        return one.apply(a_round, (name, images, pixels, device))


def line(counts: Sequence[int], values: Sequence[float], at: int) -> float:
    """The least-squares line through `values` at `counts`, at another count."""
    table = torch.tensor([[1.0, count] for count in counts], dtype=torch.float64)
    found: Tensor = torch.linalg.lstsq(table, torch.tensor(values, dtype=torch.float64)[:, None]).solution
    return float(found[0, 0] + at * found[1, 0])


def term(images: int, device: torch.device, repeats: int) -> dict[str, float]:
    """Seconds of the term and its derivative from features of the whole, (images, 512), in float64 as in a round."""
    features = torch.randn(images, 512, dtype=torch.float64, device=device)
    groups = group(torch.arange(images) // PER_CLASS, images, device)
    sides = {
        "batch": lambda: make("cmi").value_and_grad(features, groups),
    }
    return measuring.alternate(sides, repeats, device)


def main(given: Sequence[str] | None = None) -> None:
    """Print the table, and write it as JSON if asked to."""
    parser = measuring.arguments(__doc__, repeats=3)
    parser.add_argument("--images", type=int, nargs="+", default=[10, 20, 40])
    parser.add_argument("--whole", type=int, default=10000)
    parser.add_argument("--pixels", type=int, default=224)
    options = parser.parse_args(given)
    device = measuring.start(options)
    rows: dict[str, dict[int, dict[str, float]]] = {}
    whole: dict[str, dict[str, float]] = {}
    print(f"{'':24}{'images':>8}{'classes':>9}{'s':>9}{'GiB':>8}")
    for name in SIDES:
        rows[name] = {}
        for count in options.images:
            rows[name][count] = alone(name, count, options.pixels, device)
        if options.images != [options.whole]:
            whole[name] = {
                key: line(options.images, [row[key] for row in rows[name].values()], options.whole)
                for key in ("seconds", "bytes")
                if (name, key) != ("chunk auto", "bytes")
            }
        for count, row in [*rows[name].items(), *([(options.whole, whole[name])] if name in whole else [])]:
            gib = f"{row['bytes'] / 2**30:8.2f}" if "bytes" in row else f"{'':8}"
            mark = "" if count in rows[name] else "  extrapolated"
            print(f"{name:24}{count:8}{count // PER_CLASS:9}{row['seconds']:9.2f}{gib}{mark}")
    took = term(options.whole, device, options.repeats)
    print(f"the term alone, {options.whole} x 512: " + ", ".join(f"{k} {1e3 * v:.0f} ms" for k, v in took.items()))
    measuring.write(options.out, device, rows=rows, whole=whole, term=took)


if __name__ == "__main__":
    main()
