"""Each DSA operation's time against a straightforward formulation that treats one image after the other.

    python benchmarks/augment.py --out augment.json

Both sides get the same images and the same numbers, and must make the same picture before they are timed. Their runs
alternate, so that a busy machine slows both, and the medians are compared. For scale and rotate a third formulation
is timed too: one matrix per image made in Python, then one batched resampling, which is how the hosts' code does it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import kornia
import torch
import torch.nn.functional as F
from torch import Tensor

from ddplug.augment.dsa import DSA, OPERATIONS, Params

View = Callable[[], Tensor]


def image_by_image(images: Tensor, params: Params) -> Tensor:
    """The views, each image taken by itself, its numbers as Python floats."""
    numbers = {name: values.tolist() for name, values in params.tensors().items()}
    views = []
    for i, image in enumerate(images):
        row = {name: values[0 if params.siamese else i] for name, values in numbers.items()}
        views.append(_picture(params.ops[0], image, row, params.cutout_size))
    return torch.stack(views)


def _picture(op: str, image: Tensor, row: dict[str, Any], hole: tuple[int, int]) -> Tensor:
    match op:
        case "color":
            image = image + row["brightness"]
            grey = image.mean(dim=0, keepdim=True)
            image = grey + (image - grey) * row["saturation"]
            middle = image.mean()
            view: Tensor = middle + (image - middle) * row["contrast"]
            return view
        case "crop":
            _, height, width = image.shape
            down, right = row["crop"]
            reach = max(abs(down), abs(right))
            padded = F.pad(image, (reach, reach, reach, reach))
            return padded[:, reach + down : reach + down + height, reach + right : reach + right + width]
        case "cutout":
            top, left = row["cutout"]
            holed = image.clone()
            holed[:, max(top, 0) : max(top + hole[0], 0), max(left, 0) : max(left + hole[1], 0)] = 0
            return holed
        case "flip":
            return image.flip(-1) if row["flip"] else image
        case _:
            theta = torch.tensor([_matrix(op, row)], dtype=image.dtype, device=image.device)
            grid = F.affine_grid(theta, [1, *image.shape], align_corners=False)
            return F.grid_sample(image[None], grid, align_corners=False)[0]


def _matrix(op: str, row: dict[str, Any]) -> list[list[Any]]:
    if op == "scale":
        vertical, horizontal = row["scale"]
        return [[horizontal, 0.0, 0.0], [0.0, vertical, 0.0]]
    angle = torch.deg2rad(torch.tensor(row["rotate"]))
    cosine, sine = float(torch.cos(angle)), float(torch.sin(angle))
    return [[cosine, -sine, 0.0], [sine, cosine, 0.0]]


def matrix_by_matrix(images: Tensor, params: Params) -> Tensor:
    """Scale or rotate with a matrix per image made in Python, and one resampling of the batch."""
    op = params.ops[0]
    numbers = params.tensors()[op].tolist()
    matrices = [_matrix(op, {op: numbers[0 if params.siamese else i]}) for i in range(len(images))]
    theta = torch.tensor(matrices, dtype=images.dtype, device=images.device)
    return F.grid_sample(images, F.affine_grid(theta, list(images.shape), align_corners=False), align_corners=False)


def compare(views: dict[str, View], repeats: int, wait: Callable[[], None]) -> dict[str, float]:
    """Median seconds of each formulation, their runs alternating after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in views}
    for repeat in range(repeats + 1):
        for name, view in views.items():
            wait()
            start = time.perf_counter()
            view()
            wait()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def measure(op: str, n: int, siamese: bool, device: torch.device, repeats: int) -> dict[str, Any]:
    """One row of the table."""
    images = torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(n)).to(device)
    augment = DSA(op, siamese=siamese)
    params = augment.draw(images)
    views: dict[str, View] = {
        "ddplug": lambda: augment(images, params=params),
        "per_image": lambda: image_by_image(images, params),
    }
    if op in ("scale", "rotate"):
        views["per_matrix"] = lambda: matrix_by_matrix(images, params)
    for view in views.values():
        torch.testing.assert_close(view(), views["ddplug"](), atol=1e-4, rtol=0)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds = compare(views, repeats, wait)
    ratios = {name: seconds[name] / seconds["ddplug"] for name in views if name != "ddplug"}
    return {"op": op, "images": n, "siamese": siamese, "seconds": seconds, "times_faster": ratios}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    parser.add_argument("--images", type=int, nargs="+", default=[100, 500, 5000], help="sizes of the batch")
    parser.add_argument("--repeats", type=int, default=9, help="timed runs of each formulation")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads; 1 is the fairest on a machine that others use too")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, kornia {kornia.__version__}")
    print(f"{'op':8}{'images':>8}{'draw':>11}{'ddplug ms':>12}{'per image ms':>14}{'faster':>8}{'vs matrices':>13}")
    rows = []
    for siamese in (True, False):
        for op in OPERATIONS:
            for n in options.images:
                row = measure(op, n, siamese, device, options.repeats)
                rows.append(row)
                ours, theirs = row["seconds"]["ddplug"], row["seconds"]["per_image"]
                matrices = row["times_faster"].get("per_matrix")
                print(
                    f"{op:8}{n:8}{'siamese' if siamese else 'per image':>11}{1e3 * ours:12.2f}{1e3 * theirs:14.2f}"
                    f"{row['times_faster']['per_image']:7.1f}x" + (f"{matrices:12.1f}x" if matrices else ""),
                    flush=True,
                )
    if options.out:
        machine = {"device": str(device), "threads": torch.get_num_threads(), "processor": platform.machine()}
        if device.type == "cuda":
            machine["device"] = torch.cuda.get_device_name(device)
        versions = {"torch": torch.__version__, "kornia": kornia.__version__}
        options.out.write_text(json.dumps({"machine": machine, "versions": versions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
