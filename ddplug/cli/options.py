"""What several commands have in common: options, the data and the device that they mean."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddplug.errors import InputError

if TYPE_CHECKING:
    import torch

    from ddplug.datasets.images import ImageData

DataName = Annotated[str, typer.Option("--data", help="digits, cifar10, cifar100 or folder.")]
DataPath = Annotated[Path | None, typer.Option("--data-path", help="Where the data lies; digits need none.")]
DeviceName = Annotated[str, typer.Option("--device", help="cpu, cuda, or auto: cuda if there is one.")]


def load_data(name: str, path: Path | None) -> ImageData:
    """The data set that `--data` and `--data-path` mean."""
    from ddplug import datasets

    return datasets.load(name, path)


def device_of(name: str) -> torch.device:
    """The device meant by `name`, with torch's threads held to the processors this process may use."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"unknown device {name!r}, expected cpu, cuda, cuda:N or auto.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {name!r} was asked for, but torch sees no CUDA device. Use --device cpu.")
    if hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(min(torch.get_num_threads(), len(os.sched_getaffinity(0))))
    return device
