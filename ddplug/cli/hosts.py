"""The commands about code of others: `ddplug run`, `ddplug patch` and `ddplug find`."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from ddplug.choices import Inner
from ddplug.cli.options import HOSTS as NAMED
from ddplug.cli.options import PATCHED, load_data, takes
from ddplug.core.flags import FLAGS, HOSTS, read, read_weight
from ddplug.core.options import weight_of
from ddplug.errors import InputError
from ddplug.utils.files import user_path
from ddplug.utils.output import say

OR = ", or an installed package's."
OF_HOST = partial(typer.Option, rich_help_panel="A host")
OF_SCRIPT = partial(typer.Option, rich_help_panel="Any script")


@takes(HOSTS)
def run(
    context: typer.Context,
    host: Annotated[str | None, typer.Argument(metavar="HOST", help=NAMED + OR)] = None,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="-- UPSTREAM ARGUMENTS", help="Arguments of the host's own script.")
    ] = None,
    repo: Annotated[
        Path | None, OF_HOST(help="Checkout of the host; by default searched in DDPLUG_HOSTS and here.")
    ] = None,
    weight: Annotated[
        str | None,
        typer.Option(
            help="Norm of CMI's gradient as a share of the norm of the loss's, 3 by default, or paper; 0 runs the "
            "host alone."
        ),
    ] = None,
    proxies: Annotated[str, typer.Option(help="A pool's folder, buffer:PATH or idc:PATH.")] = "",
    views: Annotated[str, OF_HOST(help="The host's augmented views (host) or the clean images (clean).")] = "host",
    inner: Annotated[
        str | None, typer.Option(help="Inner steps whose views get CMI, for MTT and DATM: one, last or all.")
    ] = None,
    download: Annotated[bool, OF_HOST("--download", help="Allow the host to download a missing data set.")] = False,
    script: Annotated[Path | None, OF_SCRIPT(help="Script to run instead of a host.")] = None,
    at: Annotated[
        list[str] | None,
        OF_SCRIPT(
            help="Function that makes the views, FILE.py:FUNCTION, or FILE.py:LINE[:CALL]; by default optimizer."
        ),
    ] = None,
    labels: Annotated[
        str, OF_SCRIPT(help="Python expression for the labels where that is called or stepped, or calls:CLASSES.")
    ] = "",
    steps: Annotated[
        str, OF_SCRIPT(help="Python expression for the calls per backward pass of an unrolled loop.")
    ] = "",
    history: Annotated[Path | None, OF_SCRIPT(help="File for CMI's history; cmi_SCRIPT.json by default.")] = None,
    input_space: Annotated[
        str,
        OF_SCRIPT(help="Space of the views, if not the script's: unit, normalized:cifar10, normalized:MEAN/STD."),
    ] = "",
    data: Annotated[
        str, OF_SCRIPT(help="Real images for a term that compares with them: a data set's name or a folder's path.")
    ] = "",
    data_path: Annotated[Path | None, OF_SCRIPT(help="Folder of the data set.")] = None,
    path: Annotated[list[Path] | None, OF_SCRIPT(help="Further folder for the script's imports.")] = None,
    redirect_cuda: Annotated[
        bool, OF_SCRIPT("--redirect-cuda", help="Without CUDA, put on the CPU what the script puts on CUDA.")
    ] = False,
    old_numpy: Annotated[
        bool, OF_SCRIPT("--old-numpy", help="Define np.int and other names that old NumPy had.")
    ] = False,
    **options: Any,
) -> None:
    """Run a host's unedited script with the regulariser; arguments after -- are the script's."""
    for_host = {"--download": download, "--views": views != "host"}
    for_script = {
        "--at": at, "--labels": labels, "--steps": steps, "--history": history, "--path": path,
        "--input-space": input_space, "--redirect-cuda": redirect_cuda, "--old-numpy": old_numpy,
        "--data": data, "--data-path": data_path,
    }  # fmt: skip
    if script is None and host is None:
        raise InputError(f"name a host ({NAMED}), or any script with --script PATH.")
    if script is not None and repo is not None:
        raise InputError("--repo is for hosts only; leave it out.")
    from ddplug.hosting.checkout import find_repo
    from ddplug.hosting.host import upstream

    adapter = upstream(host) if script is None and host is not None else None
    spec = adapter.spec() if adapter is not None else None
    patched = spec is not None and spec.run is None
    if misplaced := [name for name, value in (for_script if patched else for_host).items() if value]:
        owner = "--script and hosts without a patch" if patched else "hosts with a patch"
        raise InputError(f"{', '.join(misplaced)} is for {owner} only; leave it out.")
    if inner not in (None, *get_args(Inner)):
        raise InputError(f"unknown inner {inner!r}, expected {', '.join(get_args(Inner))}.")
    flags = {name: read(name, value) for name, value in options.items()}
    share = weight_of(None, flags["weighting"]) if weight is None else read_weight(weight)
    if proxies and ":" not in proxies:
        proxies = str(user_path(proxies).resolve())
    words = arguments or []
    if not patched:
        from ddplug.scripts.any_script import Unpatched, run_unpatched

        if spec is not None and spec.run is not None:
            given = Unpatched.of_host(spec, find_repo(spec, repo))
            source = context.get_parameter_source("term")
            if source is not None and source.name == "DEFAULT":
                flags["term"] = spec.run.get("term", flags["term"])
        else:
            assert script is not None
            given = Unpatched(user_path(script).resolve())
            words = [*([] if host is None else [host]), *words]
        changed: dict[str, Any] = {
            "at": tuple(at or ()), "labels": labels, "steps": steps, "inner": inner, "path": _folders(path),
            "record": user_path(history).absolute() if history is not None else None, "input_space": input_space,
            "redirect_cuda": redirect_cuda, "old_numpy": old_numpy,
        }  # fmt: skip
        given = replace(given, **{name: value for name, value in changed.items() if value})
        real = partial(load_data, data, data_path, download=False) if data else None
        run_unpatched(given, words, share, proxies, data=real, **flags)
        return
    from ddplug.hosting.script import run as run_host

    assert adapter is not None
    assert spec is not None
    checkout = find_repo(spec, repo)
    spec.patched(checkout)  # before the arguments are looked at
    if not download:
        adapter.preflight(words)
    spelt = {name: FLAGS[name].written(value) for name, value in flags.items()}
    ours = {"weight": share, "proxies": proxies, "views": views, **spelt, "inner": inner or ""}
    said = [f"--cmi_{name}={value}" for name, value in ours.items() if value != ""]
    run_host(spec, checkout, [*words, *said], must=share != 0)


def _folders(paths: list[Path] | None) -> tuple[Path, ...]:
    return tuple(user_path(path).resolve() for path in paths or [])


def patch(
    host: Annotated[str, typer.Argument(metavar="HOST", help=PATCHED + OR)],
    path: Annotated[Path, typer.Argument(help="The host's checkout.")],
    check: Annotated[bool, typer.Option("--check", help="Check that the patch fits; change nothing.")] = False,
    reverse: Annotated[
        bool, typer.Option("--reverse", help="Remove the patch; the files are as before, to the byte.")
    ] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Print the patch; change nothing.")] = False,
) -> None:
    """Patch a host's files: all of them or none, and only if they are those that the patch was made for."""
    from ddplug.hosting.host import upstream

    if check + reverse + diff > 1:
        raise InputError("give one of --check, --reverse and --diff.")
    spec = upstream(host).spec()
    if spec.run is not None:
        command = shlex.join(["ddplug", "run", host, "--repo", str(path), "--proxies", "POOL", "--", "ARGUMENTS"])
        raise InputError(f"{host} needs no patch: run it with `{command}`.")
    repo = user_path(path).resolve()
    if diff:
        spec.check(repo)
        sys.stdout.write(spec.patch.raw.decode())
        return
    if check:
        for name, how in spec.check(repo).items():
            say(f"{name}: {'the patch fits' if how == 'clean' else 'patched'}")
        return
    changed = spec.reverse(repo) if reverse else spec.apply(repo)
    if len(changed) < len(spec.files):
        say(f"an earlier patching was interrupted; it is now {'taken out' if reverse else 'complete'}")
    became = "as upstream has it" if reverse else "patched"
    for name in spec.files:
        say(f"{name}: {became}{'' if name in changed else ' already'}")
    if not reverse:
        undo = shlex.join(["ddplug", "patch", host, str(path), "--reverse"])
        say(f"Now run {spec.script} with --cmi_weight 3. To undo: {undo}")


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
    given = Unpatched(there, path=_folders(path), redirect_cuda=redirect_cuda, old_numpy=old_numpy)
    for line in look(given, arguments or [], seconds=seconds):
        say(line)
