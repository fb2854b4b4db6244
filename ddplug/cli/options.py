"""Options shared by several commands, and the data set and device that they name."""

from __future__ import annotations

import inspect
import os
import tomllib
from collections.abc import Callable, Iterable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ddplug.core.flags import FLAGS
from ddplug.errors import InputError

if TYPE_CHECKING:
    import torch

    from ddplug.datasets.images import ImageData

DataName = Annotated[
    str,
    typer.Option(
        "--data", help="shapes, digits, cifar10, cifar100, svhn, mnist, fashionmnist, stl10, or a folder's path."
    ),
]
DataPath = Annotated[
    Path | None, typer.Option("--data-path", help="Folder of the data set; not for shapes and digits.")
]
Download = Annotated[bool, typer.Option("--download", help="Fetch a data set that is missing, as torchvision does.")]
RepresentationName = Annotated[
    str,
    typer.Option(
        "--representation",
        help="Outputs of the proxies that CMI is computed on: logit, or feature as with weighting absolute.",
    ),
]
SpaceOfSet = Annotated[
    str | None,
    typer.Option(
        "--input-space", help="Space of the set's images, if the file does not record it: normalized, unit or zca."
    ),
]
Factor = Annotated[
    int | None,
    typer.Option(help="Images along one side of an image that holds several, as IDC's do (see its args.txt)."),
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="File to write the results to.")]
DeviceName = Annotated[str, typer.Option("--device", help="cpu, cuda, or auto (cuda if available).")]


_ROWS = tomllib.loads(files("ddplug.patches").joinpath("hosts.toml").read_text(encoding="utf-8"))
HOSTS = ", ".join(_ROWS)
"""All hosts."""
PATCHED = ", ".join(name for name, row in _ROWS.items() if "run" not in row)
"""The hosts that patches are shipped for."""

Command = TypeVar("Command", bound=Callable[..., None])


def takes(names: Iterable[str], other: Callable[..., object] | None = None) -> Callable[[Command], Command]:
    """Decorator that gives a command with `**options` further options.

    Args:
        names: of `ddplug.core.flags.FLAGS`. Values come in as they were typed, see `ddplug.core.flags.read`.
        other: a function whose parameters with defaults are options, too.
    """
    shared = inspect.signature(other, eval_str=True).parameters.values() if other is not None else ()
    added = [each.replace(kind=each.KEYWORD_ONLY) for each in shared if each.default is not each.empty]
    added += [_of_flag(name) for name in names]

    def add(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        *own, _ = signature.parameters.values()
        command.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        return command

    return add


def _of_flag(name: str) -> inspect.Parameter:
    """An option of the regulariser as a command's parameter."""
    about = FLAGS[name]
    default = about.default if isinstance(about.default, bool | str) else about.written(about.default)
    choices = f": {', '.join(about.choices)}" if about.choices and "(" not in about.help else ""
    text = f"{about.help[0].upper()}{about.help[1:]}{choices}."
    kind: Any = Annotated[type(default), typer.Option(help=text, rich_help_panel="Regulariser")]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def load_data(name: str, path: Path | None, download: bool) -> ImageData:
    """The data set that `--data` and `--data-path` mean."""
    from ddplug import datasets

    return datasets.load(name, path, download=download)


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
