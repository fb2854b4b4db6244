"""The commands about scripts without a patch: `ddplug run --script` and `ddplug find`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from ddplug.core.flags import read
from ddplug.errors import InputError
from ddplug.utils.files import user_path
from ddplug.utils.output import say


def run_script(
    script: Path,
    arguments: Sequence[str],
    weight: str,
    proxies: str,
    options: dict[str, Any],
    *,
    at: Sequence[str],
    path: Sequence[Path],
    inner: str,
    record: Path | None,
    input_space: str,
    **how: Any,
) -> None:
    """Run `ddplug run --script`, with its options as they were typed."""
    from ddplug.core.weighting import check_weight
    from ddplug.hosting.options import Inner
    from ddplug.scripts.any_script import OPTIMIZER, Unpatched, run_unpatched

    try:
        share = check_weight(float(weight))
    except ValueError as error:
        raise InputError(
            f"with --script the weight must be a number >= 0, got {weight!r}; the paper's go with hosts that are known."
        ) from error
    if inner not in get_args(Inner):
        raise InputError(f"unknown inner {inner!r}, expected {', '.join(get_args(Inner))}.")
    given = Unpatched(
        user_path(script).resolve(), at=tuple(at) or (OPTIMIZER,), inner=inner,  # type: ignore[arg-type]
        path=tuple(user_path(folder).resolve() for folder in path),
        record=user_path(record).absolute() if record is not None else None, **how,
    )  # fmt: skip
    said = {name: read(name, value) for name, value in options.items()}
    where = str(user_path(proxies).resolve()) if proxies else ""
    run_unpatched(given, arguments, share, where, input_space=input_space or None, **said)


def find(
    script: Annotated[Path, typer.Argument(metavar="SCRIPT", help="Script to run.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="-- ARGUMENTS", help="Arguments of the script.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Seconds after which the script is ended.")] = 600,
    path: Annotated[list[Path] | None, typer.Option(help="Further folder for the script's imports.")] = None,
    redirect_cuda: Annotated[
        bool, typer.Option("--redirect-cuda", help="Without CUDA, put on the CPU what the script puts on CUDA.")
    ] = False,
    old_numpy: Annotated[
        bool, typer.Option("--old-numpy", help="Define np.int and other names that old NumPy had.")
    ] = False,
) -> None:
    """Run a script until it steps its images, and print the ddplug run command that adds CMI to it.

    Views are followed by autograd from the functions that return them to the images that an optimizer steps.
    """
    from ddplug.scripts.any_script import Unpatched
    from ddplug.scripts.finding import find as look

    there = user_path(script).resolve()
    if there.is_dir():
        raise InputError(f"'{there}' is a folder; name the script in it that is started, with its arguments after --.")
    if not there.is_file():
        raise InputError(f"there is no '{there}'; name a script.")
    folders = tuple(user_path(folder).resolve() for folder in path or [])
    given = Unpatched(there, path=folders, redirect_cuda=redirect_cuda, old_numpy=old_numpy)
    for line in look(given, arguments or [], seconds=seconds):
        say(line)
