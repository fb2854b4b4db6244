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
    from ddplug.scripts.any_script import Unpatched, run_unpatched

    try:
        share = check_weight(float(weight))
    except ValueError as error:
        raise InputError(
            f"with --script the weight must be a number >= 0, got {weight!r}; the paper's go with hosts that are known."
        ) from error
    if inner not in get_args(Inner):
        raise InputError(f"unknown inner {inner!r}, expected {', '.join(get_args(Inner))}.")
    given = Unpatched(
        user_path(script).resolve(), at=tuple(at), inner=inner,  # type: ignore[arg-type]
        path=tuple(user_path(folder).resolve() for folder in path),
        record=user_path(record).absolute() if record is not None else None, **how,
    )  # fmt: skip
    said = {name: read(name, value) for name, value in options.items()}
    where = str(user_path(proxies).resolve()) if proxies else ""
    run_unpatched(given, arguments, share, where, input_space=input_space or None, **said)


def find(
    where: Annotated[Path, typer.Argument(metavar="PATH", help="A script, or the folder of a repository.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="-- ARGUMENTS", help="With --try, the script's own.")
    ] = None,
    try_them: Annotated[
        bool, typer.Option("--try", help="Run the script for a few steps, and see which places get synthetic images.")
    ] = False,
    most: Annotated[int, typer.Option(help="Candidates to list.")] = 10,
    passes: Annotated[int, typer.Option(help="With --try: backward passes after which the script is ended.")] = 3,
    seconds: Annotated[float, typer.Option(help="With --try: seconds after which it is ended in any case.")] = 600,
    path: Annotated[list[Path] | None, typer.Option(help="A folder for the script's imports besides its own.")] = None,
    redirect_cuda: Annotated[
        bool, typer.Option("--redirect-cuda", help="Without CUDA, what the script puts there is on the CPU.")
    ] = False,
    old_numpy: Annotated[
        bool, typer.Option("--old-numpy", help="np.int and the like, for code that uses them.")
    ] = False,
) -> None:
    """List where the synthetic views of a code base may enter its loss, by reading it, the likeliest first."""
    from ddplug.scripts.any_script import Unpatched
    from ddplug.scripts.finding import find as find_places

    there = user_path(where).resolve()
    folders = tuple(user_path(folder).resolve() for folder in path or [])
    if not there.exists():
        raise InputError(f"there is no '{there}'; name a script, or the folder of a repository.")
    found = find_places(there, folders)
    for number, each in enumerate(found[:most], 1):
        say(f"{number}. {each.path.relative_to(there if there.is_dir() else there.parent)}:{each.line}  {each.code}")
        say(f"   {'; '.join(each.why)}")
        say(f"   {each.command}")
    if len(found) > most:
        say(f"and {len(found) - most} more, with --most {len(found)}")
    if not found:
        say(
            "Nothing was found that augments what becomes of a tensor in an optimizer. Name the line where the "
            "synthetic images are taken for the loss: ddplug run --script SCRIPT --at FILE.py:LINE."
        )
    if not try_them:
        return
    from ddplug.scripts.placing import usual
    from ddplug.scripts.trying import try_places

    if not there.is_file():
        raise InputError("--try runs one script: ddplug find SCRIPT --try -- ARGUMENTS.")
    script = Unpatched(there, path=folders, redirect_cuda=redirect_cuda, old_numpy=old_numpy)
    places = dict.fromkeys([*(each.at for each in found), *(place.at for place in usual(script.read()))])
    say(f"trying {len(places)} places")
    seen = try_places(script, list(places), arguments or [], passes=passes, seconds=seconds)
    for one in seen:
        say(f"--at {one.at}: called at {one.where} on synthetic images {one.calls} times, views {one.shape}")
        say(f"   {one.rows}")
        say(f"   a gradient came in {one.passes} backward passes")
        say(f"   may be their labels: {', '.join(one.labels) or 'nothing'}; also of that length: "
              f"{', '.join(one.others) or 'nothing'}")  # fmt: skip
    unseen = [at for at in places if at not in {one.at for one in seen}]
    if unseen:
        say(f"not called on synthetic images: {', '.join(unseen)}")
