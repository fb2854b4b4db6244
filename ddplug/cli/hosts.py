"""The commands about upstream codebases: `ddplug run` and `ddplug patch`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ddplug.cli.options import HOSTS as NAMED
from ddplug.cli.options import takes
from ddplug.core.flags import FLAGS, HOSTS, read
from ddplug.errors import InputError
from ddplug.utils.files import user_path
from ddplug.utils.output import say

HOST = typer.Argument(metavar="HOST", help=f"{NAMED}, or an installed package's.")
Host = Annotated[str, HOST]
OF_HOST = partial(typer.Option, rich_help_panel="A host")
OF_SCRIPT = partial(typer.Option, rich_help_panel="Any script")


@takes(HOSTS)
def run(
    host: Annotated[str | None, HOST] = None,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="-- UPSTREAM ARGUMENTS", help="Arguments of the host's own script.")
    ] = None,
    repo: Annotated[
        Path | None, OF_HOST(help="Checkout of the host; by default searched in DDPLUG_HOSTS and here.")
    ] = None,
    weight: Annotated[
        str,
        typer.Option(
            help="Norm of CMI's gradient as a share of the norm of the loss's, or paper; 0 runs the host alone."
        ),
    ] = "1",
    proxies: Annotated[str, typer.Option(help="A pool's folder, buffer:PATH or idc:PATH.")] = "",
    views: Annotated[str, OF_HOST(help="The host's augmented views (host) or the clean images (clean).")] = "host",
    inner: Annotated[
        str | None, typer.Option(help="Inner steps whose views get CMI, for MTT and DATM: one, last or all.")
    ] = None,
    download: Annotated[bool, OF_HOST("--download", help="Allow the host to download a missing data set.")] = False,
    script: Annotated[Path | None, OF_SCRIPT(help="Script to run instead of a host.")] = None,
    at: Annotated[
        list[str] | None,
        OF_SCRIPT(help="Function that makes the views, FILE.py:FUNCTION, or FILE.py:LINE; by default optimizer."),
    ] = None,
    labels: Annotated[
        str, OF_SCRIPT(help="Python expression for the labels where that is called or stepped, or calls:CLASSES.")
    ] = "",
    steps: Annotated[
        str, OF_SCRIPT(help="Python expression for the calls per backward pass of an unrolled loop.")
    ] = "",
    history: Annotated[Path | None, OF_SCRIPT(help="File for CMI's history; cmi_SCRIPT.json by default.")] = None,
    input_space: Annotated[
        str, OF_SCRIPT(help="Space of the views, if it is not the pool's: unit, normalized:cifar10, ...")
    ] = "",
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
    if script is not None:
        from ddplug.cli.scripts import run_script

        refused = {"--repo": repo, "--download": download, "--views": views != "host"}
        for name, value in refused.items():
            if value:
                raise InputError(f"{name} is for hosts with a patch; leave it out with --script.")
        run_script(
            script, [*([host] if host is not None else []), *(arguments or [])], weight, proxies, options,
            at=at or [], labels=labels, steps=steps, inner=inner or "one", record=history,
            input_space=input_space, path=path or [], redirect_cuda=redirect_cuda, old_numpy=old_numpy,
        )  # fmt: skip
        return
    if host is None:
        raise InputError(f"name a host ({NAMED}), or any script with --script PATH.")
    if given_for_script := [
        name
        for name, value in {
            "--at": at, "--labels": labels, "--steps": steps, "--history": history, "--path": path,
            "--input-space": input_space, "--redirect-cuda": redirect_cuda, "--old-numpy": old_numpy,
        }.items()
        if value
    ]:  # fmt: skip
        raise InputError(f"{', '.join(given_for_script)} is for --script; {host} has a patch that says it.")
    from ddplug.core.weighting import check_weight
    from ddplug.hosting import checkout as hosts
    from ddplug.hosting.host import upstream
    from ddplug.hosting.options import weight as read_weight
    from ddplug.hosting.script import run as run_host

    adapter = upstream(host)
    spec = adapter.spec()
    checkout = hosts.find_repo(spec, repo)
    spec.patched(checkout)  # the right checkout, before anything is said about the arguments
    given = list(arguments or [])
    if not download:
        adapter.preflight(given)
    try:
        share = read_weight(weight)
    except ValueError as error:
        raise InputError(f"weight must be a number >= 0 or 'paper', got {weight!r}.") from error
    share = share if isinstance(share, str) else check_weight(share)
    spelt = {name: FLAGS[name].written(read(name, value)) for name, value in options.items()}
    ours = {"weight": share, "proxies": proxies, "views": views, **spelt}
    if inner is not None:
        ours["inner"] = inner
    if proxies and ":" not in proxies:
        ours["proxies"] = str(user_path(proxies).resolve())
    said = [f"--cmi_{name}={value}" for name, value in ours.items() if value != ""]
    run_host(spec, checkout, [*given, *said], must=share != 0)


def patch(
    host: Host,
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
        say(f"Now run {spec.script} with --cmi_weight 1. To undo: ddplug patch {host} {path} --reverse")
