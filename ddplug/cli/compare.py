"""The commands `ddplug compare` and `ddplug tune`: paired runs with and without CMI."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddplug.cli import options as shared
from ddplug.core.flags import FLAGS, HOSTS, read
from ddplug.errors import InputError
from ddplug.utils.output import say

if TYPE_CHECKING:
    from ddplug.datasets.images import ImageData
    from ddplug.proxies.pool import ProxyPool


OWN = partial(typer.Option, rich_help_panel="Distillation (own)")
JUDGES = partial(typer.Option, rich_help_panel="Judges")
HostOrOwn = Annotated[str, typer.Argument(metavar="HOST", help=f"own (ddplug's DM trainer), or {shared.HOSTS}.")]
UpstreamArguments = Annotated[
    list[str] | None, typer.Argument(metavar="-- UPSTREAM ARGUMENTS", help="Arguments of the host's own script.")
]


def _setup(
    host: str,
    arguments: list[str] | None,
    data: shared.DataName = "digits",
    data_path: shared.DataPath = None,
    proxies: Annotated[Path | None, typer.Option(help="The regulariser's pool.")] = None,
    heldout: Annotated[Path | None, typer.Option(help="A pool that only measures.")] = None,
    ipc: Annotated[int | None, OWN(help="Images per class; 10 by default.")] = None,
    iterations: Annotated[int | None, OWN(help="Distillation steps of a run; 300 by default.")] = None,
    batch_real: Annotated[int | None, OWN(help="Real images per class and step; 64 by default.")] = None,
    lr: Annotated[float | None, OWN(help="Learning rate of the synthetic images; 1 by default.")] = None,
    init: Annotated[str | None, OWN(help="Start of the synthetic images: real (default) or noise.")] = None,
    checkpoints: Annotated[
        int | None, OWN(help="Sets of each run that are saved and judged, the last included; 5 by default.")
    ] = None,
    judge_last: Annotated[
        bool, OWN("--judge-last", help="Judge only the last set, and measure the others (host own only).")
    ] = False,
    strategy: Annotated[str | None, OWN(help="DSA's operations; those that suit the data set by default.")] = None,
    arch: Annotated[str, OWN(help="Network that is used for matching and for judging.")] = "convnet",
    width: Annotated[int | None, OWN(help="Channels of that network; the architecture's own by default.")] = None,
    runs: Annotated[int, JUDGES(help="Fresh networks trained on each set.")] = 3,
    epochs: Annotated[int, JUDGES(help="Epochs for each of them; 1000 are usual.")] = 300,
    judge_lr: Annotated[float, JUDGES(help="Learning rate of these networks; 0.01 is usual.")] = 0.03,
    repo: Annotated[
        Path | None, typer.Option(help="Checkout of the host; by default searched in DDPLUG_HOSTS and here.")
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Download a missing data set.")] = False,
    device: shared.DeviceName = "auto",
    **options: Any,
) -> Any:
    """Build the `Setup` of a command's comparisons; parameters with defaults are options of `compare` and `tune`."""
    from ddplug.hosting.host import comparable
    from ddplug.lab.judge import Judge
    from ddplug.lab.judging import usual_strategy
    from ddplug.lab.plan import Settings
    from ddplug.lab.setup import Setup

    spec = None if host == "own" else comparable(host).spec()
    regularizer = {name: read(name, value) for name, value in options.items()}
    term = regularizer.pop("term")
    where = shared.device_of(device)
    if proxies is None:
        raise InputError("a comparison needs --proxies: a pool's folder, as `ddplug pretrain` makes it.")
    real = shared.load_data(data, data_path, download)
    if strategy is None:
        strategy = usual_strategy(real.name)
    ours: dict[str, Any] = {
        "ipc": ipc, "iterations": iterations, "batch_real": batch_real, "lr": lr, "init": init,
        "checkpoints": checkpoints, "judge_last": judge_last or None,
    }  # fmt: skip
    ours = {name: value for name, value in ours.items() if value is not None}
    settings = Settings(
        strategy=strategy, arch=arch, width=width, runs=runs, epochs=epochs,
        judge_lr=judge_lr, regularizer=regularizer, term=term, arguments=_arguments(host, arguments, ours), **ours,
    )  # fmt: skip
    pool = _pool(proxies, real)
    judge = Judge(real.to(where), settings, pool, _pool(heldout, real) if heldout else None, where)
    setup = Setup(host, judge)
    if spec is None:
        return setup
    from ddplug.hosting.checkout import find_repo
    from ddplug.lab.upstream_host import Upstream

    checkout = find_repo(spec, repo)
    return replace(setup, upstream=lambda changed: Upstream(spec, checkout, proxies, changed, download))


OF_REGULARIZER = [name for name in (*HOSTS, "compile") if name != "seed"]
SWEPT = ("representation", "weighting")


@shared.takes(OF_REGULARIZER, _setup)
def compare(
    host: HostOrOwn,
    arguments: UpstreamArguments = None,
    out: Annotated[Path, typer.Option(help="Folder of the comparison; an unfinished one is resumed.")] = Path(
        "ddplug-compare"
    ),
    weights: Annotated[
        str,
        typer.Option(help="Numbers or paper, separated by commas; 0 is always run. To add some, repeat the old ones."),
    ] = "0,3",
    views: Annotated[
        str, typer.Option(help="Images that CMI is of: host (augmented), clean, or host,clean to compare them.")
    ] = "host",
    terms: Annotated[
        str, typer.Option(help="Terms to compare, or sums of them, separated by commas; all are measured by --term.")
    ] = "",
    seeds: Annotated[int, typer.Option(help="Paired repetitions.")] = 3,
    first_seed: Annotated[int, typer.Option(help="First seed.")] = 0,
    baseline: Annotated[
        Path | None,
        typer.Option(help="Take weight 0 from this comparison, which has other proxies or options of the regulariser."),
    ] = None,
    cross_arch: Annotated[
        str, JUDGES(help="Further architectures to train on the last set of every run, separated by commas.")
    ] = "",
    **options: Any,
) -> None:
    """Distil with and without CMI from the same starts and seeds, judge all sets, and report the differences.

    Interrupt it whenever you like: the same command resumes it, and more seeds, weights or views are added to it.
    The report is of the weights, views and seeds that this command names: repeat the old ones with the new ones.
    """
    from ddplug.lab.compare import RESULT
    from ddplug.lab.folder import ENTRIES
    from ddplug.lab.page import lacking, write_page
    from ddplug.lab.plan import arms, read_weights
    from ddplug.lab.tables import left_out, standing, tables, verdict
    from ddplug.terms import make
    from ddplug.utils.files import user_path
    from ddplug.utils.progress import Bars

    chosen = arms(read_weights(weights), _names(views), _names(terms) or ("",))
    setup = _setup(host, arguments, **options)
    setup = replace(setup, judge=replace(setup.judge, cross_arch=tuple(_names(cross_arch))))
    label = make(setup.judge.settings.term).label
    without = lacking()
    if without:  # at once, and again at the end: the runs may take hours
        say(without)
    with Bars() as progress:
        result = setup.compare(
            chosen, seeds, out, first_seed=first_seed, baseline=baseline, on_progress=progress,
            on_record=lambda records: progress.say(standing(records, label)),
        )  # fmt: skip
    out = user_path(out)
    page = without or f"wrote {write_page(result, out, out / ENTRIES, setup.judge)}"
    for each in (*tables(result), left_out(result), f"wrote {out / RESULT}", page, verdict(result)):
        if each is not None:
            say(each)


@shared.takes([name for name in OF_REGULARIZER if name not in SWEPT], _setup)
def tune(
    host: HostOrOwn,
    arguments: UpstreamArguments = None,
    out: Annotated[Path, typer.Option(help="Folder of the comparisons; unfinished ones are resumed.")] = Path(
        "ddplug-tune"
    ),
    weights: Annotated[str, typer.Option(help="Weights to try, separated by commas.")] = "0.3,1,3",
    representation: Annotated[
        str,
        typer.Option(
            help=f"Representations to try, separated by commas: {', '.join(FLAGS['representation'].choices or ())}."
        ),
    ] = str(FLAGS["representation"].default),
    weighting: Annotated[
        str,
        typer.Option(help=f"Weightings to try, separated by commas: {', '.join(FLAGS['weighting'].choices or ())}."),
    ] = str(FLAGS["weighting"].default),
    seeds: Annotated[int, typer.Option(help="Paired repetitions of the sweep.")] = 2,
    first_seed: Annotated[int, typer.Option(help="First seed.")] = 0,
    confirm: Annotated[int, typer.Option(help="Fresh seeds that the choice is confirmed on; at least 2.")] = 3,
    **options: Any,
) -> None:
    """Try weights and options in a small paired sweep, and confirm the best on fresh seeds.

    Interrupt it whenever you like: the same command resumes it. It is made of comparisons in sub-folders.
    """
    from rich.table import Table

    from ddplug.lab.plan import read_weights
    from ddplug.lab.tune import RESULT, said, table_rows
    from ddplug.lab.tune import tune as run_tune
    from ddplug.utils.files import user_path
    from ddplug.utils.progress import Bars

    wanted = {"representation": _names(representation), "weighting": _names(weighting)}
    chosen = read_weights(weights)
    setup = _setup(host, arguments, **options)
    with Bars() as progress:
        tuned = run_tune(
            setup, out, chosen, wanted, seeds=seeds, confirm=confirm, first_seed=first_seed, on_progress=progress
        )
    table = Table("weight", "options", "accuracy %", "difference", title=f"sweep of {host}, {seeds} seeds")
    for row in table_rows(tuned):
        table.add_row(*row)
    say(table)
    say(f"wrote {user_path(out) / RESULT}")
    for line in said(tuned, host, str(options["proxies"]), setup.unusual(), options["repo"], arguments or ()):
        say(line)


def _names(text: str) -> list[str]:
    """Split at commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _arguments(host: str, given: list[str] | None, ours: Iterable[str]) -> tuple[str, ...] | None:
    """The host's own arguments, None for our trainer; `InputError` for arguments of the other one."""
    if host == "own":
        if given:
            raise InputError(f"own has no script to pass {' '.join(given)} to; leave it out.")
        return None
    foreign = [f"--{name.replace('_', '-')}" for name in ours]
    if foreign:
        raise InputError(f"{', '.join(foreign)} is for own; name the option of {host} instead, after --.")
    return tuple(given or ())


def _pool(folder: Path, data: ImageData) -> ProxyPool:
    """The pool in `folder`, which must be of this very data."""
    from ddplug.errors import ProxyError
    from ddplug.proxies.pool import ProxyPool

    pool = ProxyPool.load(folder, dataset=data.name)
    if pool.info.fingerprint not in (None, data.fingerprint()):
        raise ProxyError(
            f"the proxies in '{folder}' were trained on another edition of {data.name}; train some on this one with "
            "`ddplug pretrain`."
        )
    return pool
