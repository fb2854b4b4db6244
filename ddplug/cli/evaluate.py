"""The commands `ddplug evaluate` and `ddplug plot`: judge a synthetic set, draw results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ddplug.cli import options as shared
from ddplug.utils.output import say


def evaluate(
    synthetic: Annotated[
        Path, typer.Argument(metavar="SET", help="Synthetic set of ddplug or a host: res_*.pt, images_N.pt, data.pt.")
    ],
    data: shared.DataName = "digits",
    data_path: shared.DataPath = None,
    download: shared.Download = False,
    arch: Annotated[
        str, typer.Option(help="Architectures, separated by commas: ConvNet,ResNet18,VGG11,AlexNet.")
    ] = "ConvNet",
    runs: Annotated[int, typer.Option(help="Fresh networks of each architecture.")] = 5,
    epochs: Annotated[int, typer.Option(help="Passes over the set.")] = 1000,
    lr: Annotated[
        float | None,
        typer.Option(help="Initial learning rate; by default the one that was learned with the set, or 0.01."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 256,
    seed: Annotated[int, typer.Option(help="Run i has seed + i.")] = 0,
    dsa: Annotated[
        str | None, typer.Option(help="DSA's operations in training; those that suit the data set by default.")
    ] = None,
    no_dsa: Annotated[bool, typer.Option("--no-dsa", help="Train without augmentation.")] = False,
    width: Annotated[int | None, typer.Option(help="Channels; each architecture's own by default.")] = None,
    norm: Annotated[
        str | None,
        typer.Option(help="Normalisation layers: instance, batch or none; each architecture's own by default."),
    ] = None,
    input_space: shared.SpaceOfSet = None,
    factor: shared.Factor = None,
    proxies: Annotated[Path | None, typer.Option(help="Pool under which the set's CMI is measured.")] = None,
    json_file: shared.JsonFile = None,
    device: shared.DeviceName = "auto",
) -> None:
    """Train fresh networks on a set and test them on real images; the same command resumes it."""
    from ddplug.datasets.synthetic import load_set
    from ddplug.lab.evaluate import evaluate as evaluate_set
    from ddplug.lab.judging import DSAViews, usual_strategy
    from ddplug.lab.meaning import with_space
    from ddplug.lab.tables import evaluation_table, evaluation_verdict
    from ddplug.proxies.pool import ProxyPool
    from ddplug.utils.files import user_path, write_json
    from ddplug.utils.progress import Bars

    synthetic = user_path(synthetic)  # and its neighbour, which is taken away at the end
    json_file = user_path(json_file) if json_file is not None else None
    where = shared.device_of(device)
    loaded = load_set(synthetic, factor=factor)
    real = shared.load_data(data, data_path, download)
    pool = ProxyPool.load(proxies, dataset=real.name) if proxies is not None else None
    chosen = with_space(loaded, input_space, real)
    augment = None if no_dsa else DSAViews(dsa or usual_strategy(real.name))
    names = [name.strip() for name in arch.split(",") if name.strip()]
    options: dict[str, Any] = {"width": width, "norm": norm}
    keep = json_file.with_name(f"{json_file.name}.runs") if json_file else synthetic.with_name(f"{synthetic.name}.runs")
    with Bars() as progress:
        result = evaluate_set(
            chosen, real, architectures=names, runs=runs, epochs=epochs, lr=lr, batch_size=batch_size, augment=augment,
            seed=seed, pool=pool, device=where, keep=keep, on_progress=progress,
            options={name: value for name, value in options.items() if value is not None},
        )  # fmt: skip
    if json_file is not None:
        write_json(result.to_json(), json_file)
    say(evaluation_table(result, str(synthetic)))
    if json_file is not None:
        say(f"wrote {json_file}, and {keep}, by which more runs or architectures can be added")
    else:
        keep.unlink(missing_ok=True)  # it was for going on, and all is done
    say(evaluation_verdict(result, str(synthetic), real.num_classes))


def plot(
    results: Annotated[
        list[str],
        typer.Argument(metavar="RESULT...", help="A comparison's folder, or the cmi*.json of a run; or LABEL=RESULT."),
    ],
    out: Annotated[Path, typer.Option(help="The picture: .png, .svg or .pdf.")] = Path("ddplug-plot.png"),
) -> None:
    """Draw comparisons (differences, CMI, accuracy over the iterations) or runs (CMI, lambda, share by round)."""
    from ddplug.lab.plot import labelled
    from ddplug.lab.plot import plot as draw

    say(f"wrote {draw(labelled(results), out)}")
