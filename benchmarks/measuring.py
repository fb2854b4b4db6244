"""Functions that the benchmarks share: alternating runs, medians, the machine's name, and the pool they look at."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddplug.networks.precision import fast_bf16
from ddplug.networks.zoo import build, seeded
from ddplug.proxies.pool import Proxy, ProxyPool


def arguments(text: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The options that every script has."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=defaults.get("repeats", 7), help="timed runs of each side")
    return parser


def start(options: argparse.Namespace) -> torch.device:
    """Apply the options and say where this runs."""
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    print(", ".join(f"{key} {value}" for key, value in machine(device).items()))
    return device


def machine(device: torch.device) -> dict[str, Any]:
    """What was measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": name, "threads": torch.get_num_threads(), "torch": torch.__version__, "fast bf16": fast_bf16(device),
    }  # fmt: skip


def alternate(sides: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each side. Their runs take turns, so that a busy machine slows all; the first two do not count.

    On a GPU nothing is waited for but at both ends of a run.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 2):
        for name, side in sides.items():
            _wait(device)
            before = time.perf_counter()
            side()
            _wait(device)
            if repeat > 1:
                seconds[name].append(time.perf_counter() - before)
    return {name: statistics.median(times) for name, times in seconds.items()}


def write(out: Path | None, device: torch.device, **figures: Any) -> None:
    """Keep the figures, if that was asked for."""
    if out is not None:
        out.write_text(json.dumps({"machine": machine(device), **figures}, indent=1) + "\n", encoding="utf-8")


def random_pool(count: int = 8, architecture: str = "resnet18") -> ProxyPool:
    """Networks as they are before training, which take as long as trained ones."""
    proxies = []
    for seed in range(count):
        with seeded(seed):
            proxies.append(Proxy(build(architecture), "classifier", f"{architecture}-{seed}"))
    return ProxyPool(proxies)


def random_images(count: int, device: torch.device, classes: int = 10) -> tuple[Tensor, Tensor]:
    """Images (count, 3, 32, 32) and their labels, sorted and balanced, as the recipe wants them."""
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return images.to(device), torch.arange(count).mul(classes).div(count, rounding_mode="floor").to(device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
