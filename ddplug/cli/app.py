"""The command line: `demo`, `pretrain` and `measure`, and from other files all the other commands of `ddplug`."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ddplug.cli import compare as cli_compare
from ddplug.cli import doctor as cli_doctor
from ddplug.cli import evaluate as cli_evidence
from ddplug.cli import hosts as cli_hosts
from ddplug.cli import options as shared
from ddplug.errors import DDPlugError, InputError
from ddplug.utils.output import say

app = typer.Typer(
    help="CMI regularisation (arXiv 2412.09945) for dataset-distillation code.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

INTERRUPTED = 130


def main() -> None:
    """Run the command line; our own errors end it with status 2 and one paragraph, an interruption with 130."""
    try:
        status = app(standalone_mode=False)
        if status == INTERRUPTED:  # newer versions of typer turn the interruption into this
            raise KeyboardInterrupt
        sys.exit(status)
    except (DDPlugError, OSError) as error:
        say(f"ddplug: error: {error}", error=True)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        say("ddplug: interrupted; the same command goes on from what is saved.", error=True)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        error.show()  # type: ignore[attr-defined]  # a misspelt option: typer's own error, which can print itself
        sys.exit(error.exit_code)
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # Python would end with status 120
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _version(wanted: bool) -> None:
    """Print our version and torch's, and end."""
    if wanted:
        from importlib.util import find_spec
        from runpy import run_path

        from ddplug import __version__

        found = find_spec("torch")  # not imported, which takes a second
        assert found is not None
        assert found.origin is not None
        torch_version = run_path(str(Path(found.origin).with_name("version.py")))["__version__"]
        say(f"ddplug {__version__}, torch {torch_version}")
        raise typer.Exit


@app.callback()
def _before(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the versions and exit.")
    ] = False,
) -> None:
    """Options before the command."""


for _command in (
    cli_compare.compare,
    cli_compare.tune,
    cli_evidence.evaluate,
    cli_evidence.plot,
    cli_hosts.run,
    cli_hosts.patch,
    cli_doctor.doctor,
    cli_hosts.find,
):
    app.command()(_command)


@app.command()
def demo(
    data: shared.DataName = "shapes",
    data_path: shared.DataPath = None,
    download: shared.Download = False,
    out: Annotated[Path, typer.Option(help="Folder for the demo's results.")] = Path("ddplug-demo"),
    weight: Annotated[
        float | None, typer.Option(help="Norm of CMI's gradient as a share of the norm of the loss's.")
    ] = None,
    ipc: Annotated[int | None, typer.Option(help="Images per class.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Distillation steps per run.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Paired repetitions.")] = None,
    proxies: Annotated[Path | None, typer.Option(help="A pool to use instead of training one.")] = None,
    device: shared.DeviceName = "auto",
) -> None:
    """Distil real images with and without CMI and compare: a table, and a picture of images, maps and curves."""
    from ddplug.lab import demo as demonstration
    from ddplug.lab.tables import verdict
    from ddplug.proxies.pool import ProxyPool
    from ddplug.utils.progress import Bars

    preset = demonstration.PRESETS.get(data, demonstration.CIFAR10)
    preset = preset.changed(weight=weight, ipc=ipc, iterations=iterations, seeds=seeds)
    where = shared.device_of(device)
    real = shared.load_data(data, data_path, download)
    pool = ProxyPool.load(proxies, dataset=real.name) if proxies else None
    say(f"{real.name}: {len(real.train_images)} training and {len(real.test_images)} test images, on {where}")
    with Bars() as progress:
        outcome = demonstration.run_demo(
            real, out, preset, device=where, pool=pool, on_progress=progress, on_line=progress.say
        )
    say(demonstration.table(outcome))
    say(f"wrote {outcome.picture}")
    say(verdict(outcome.result))


@app.command()
def pretrain(
    out: Annotated[Path, typer.Argument(help="Folder of the pool; an unfinished pool is continued.")],
    data: shared.DataName = "digits",
    data_path: shared.DataPath = None,
    download: shared.Download = False,
    arch: Annotated[
        str | None,
        typer.Option(help="convnet (the default), resnet18, vgg11, alexnet, torchvision/NAME or timm/NAME."),
    ] = None,
    count: Annotated[int, typer.Option(help="Networks in the pool.")] = 8,
    epochs: Annotated[
        str, typer.Option(help="Epochs for each; auto ends when the accuracy on the test images is steady.")
    ] = "auto",
    lr: Annotated[float, typer.Option(help="Initial learning rate; a cosine schedule ends at zero.")] = 0.05,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 128,
    norm: Annotated[str, typer.Option(help="Normalisation layers: instance or batch.")] = "instance",
    width: Annotated[int | None, typer.Option(help="Channels; the architecture's own by default.")] = None,
    seed: Annotated[int, typer.Option(help="Network i has seed + i.")] = 0,
    flip: Annotated[
        bool | None, typer.Option(help="Mirror images at random; if that suits the data set, by default.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="exact (fp32), or bf16, several times faster on some devices.")
    ] = "exact",
    zca: Annotated[
        bool, typer.Option("--zca", help="Train on ZCA-whitened images, fitted on the training split.")
    ] = False,
    mcmi: Annotated[
        float | None, typer.Option(help="Fine-tune by maximum CMI with this weight; 0.15 is published, 0 is plain.")
    ] = None,
    mcmi_epochs: Annotated[
        int | None, typer.Option(help="Epochs of the fine-tuning; a quarter of --epochs by default.")
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="With --mcmi: a pool whose networks are fine-tuned, instead of new ones.")
    ] = None,
    device: shared.DeviceName = "auto",
) -> None:
    """Train a pool of proxies on real images; the same command resumes it."""
    from rich.table import Table

    from ddplug.networks.libraries import LIBRARIES
    from ddplug.proxies.pool import ProxyPool
    from ddplug.proxies.pretrain import pretrain as train_pool

    if epochs != "auto" and not epochs.isdecimal():
        raise InputError(f"--epochs is a number or auto, got {epochs!r}.")
    number: Any = epochs if epochs == "auto" else int(epochs)
    real = shared.load_data(data, data_path, download)
    if zca:
        from ddplug.datasets.zca import ZCASpace

        real = real.to_space(ZCASpace.fit(real.space.to_unit(real.train_images).clamp(0, 1)))
    options: dict[str, Any] = {} if (arch or "").startswith(LIBRARIES) else {"norm": norm}
    if width is not None:
        options["width"] = width
    pool = train_pool(
        real, out, architecture=arch, count=count, epochs=number, lr=lr, batch_size=batch_size, seed=seed, flip=flip,
        precision=precision, options=options, device=shared.device_of(device),  # type: ignore[arg-type]
        mcmi=mcmi, mcmi_epochs=mcmi_epochs, start=ProxyPool.load(start) if start is not None else None,
    )  # fmt: skip
    tuned = ("before", "CMI", "before") if mcmi is not None else ()
    table = Table("proxy", "seed", "epochs", "test accuracy", *tuned, title=f"{real.name}: pool in {out}")
    for proxy in pool:
        record = proxy.record
        cells = [
            proxy.name,
            *(str(record.get(key, "-")) for key in ("seed", "epochs")),
            f"{record['test_accuracy']:.2%}",
        ]
        if tuned:
            before = record["before"]
            cells += [f"{before['test_accuracy']:.2%}", f"{record['cmi']:.4g} nats", f"{before['cmi']:.4g} nats"]
        table.add_row(*cells)
    say(table)


@app.command()
def relabel(
    synthetic: Annotated[Path, typer.Argument(help="A synthetic set, .pt.")],
    teachers: Annotated[Path, typer.Option(help="A pool whose networks give the labels.")],
    out: Annotated[Path, typer.Option(help="The set with soft labels, .pt.")],
    temperature: Annotated[float, typer.Option(help="T in softmax(logits / T).")] = 1.0,
    data: Annotated[
        str | None, typer.Option(help="The set's real data, if its whitening or normalisation is not known otherwise.")
    ] = None,
    data_path: shared.DataPath = None,
    download: shared.Download = False,
    input_space: shared.SpaceOfSet = None,
    factor: shared.Factor = None,
    device: shared.DeviceName = "auto",
) -> None:
    """Write a set with soft labels from teachers, for `ddplug evaluate`."""
    from ddplug.datasets.synthetic import load_set, save_set
    from ddplug.lab.meaning import seen_by
    from ddplug.lab.relabel import relabel as relabel_set
    from ddplug.proxies.pool import ProxyPool
    from ddplug.utils.files import user_path

    where, loaded = shared.device_of(device), load_set(synthetic, factor=factor)
    pool = ProxyPool.load(teachers).to(where)
    real = shared.load_data(data, data_path, download) if data is not None else None
    chosen = seen_by(pool, loaded, input_space, real)
    made = relabel_set(replace(chosen, images=chosen.images.to(where)), pool, temperature=temperature)
    save_set(made, out)
    agree = (made.labels.argmax(1).cpu() == loaded.classes).float().mean()
    entropy = -(made.labels.clamp(min=1e-30).log() * made.labels).sum(1).mean()
    say(
        f"wrote {user_path(out)}: {len(made.labels)} images; the teachers' first choice is the image's own class for "
        f"{agree:.1%}, mean entropy {entropy:.3f} nats"
    )


@app.command()
def measure(
    proxies: Annotated[Path, typer.Option(help="A pool's folder.")],
    synthetic: Annotated[
        Path | None, typer.Argument(help="A synthetic set, .pt; leave it out to measure --data.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Real data set to measure; or a set's own, for its whitening or a --term that needs real images."
        ),
    ] = None,
    data_path: shared.DataPath = None,
    download: shared.Download = False,
    split: Annotated[str, typer.Option(help="Split of --data: train or test.")] = "test",
    representation: shared.RepresentationName = "logit",
    term: Annotated[str, typer.Option(help="Term to measure, or a sum of several.")] = "cmi",
    temperature: Annotated[float, typer.Option(help="T in softmax(f / T).")] = 1.0,
    separation: Annotated[
        str, typer.Option(help="Distance between classes in NCMI: cross_entropy, kl or centroid_kl.")
    ] = "cross_entropy",
    input_space: shared.SpaceOfSet = None,
    factor: shared.Factor = None,
    json_file: shared.JsonFile = None,
    device: shared.DeviceName = "auto",
) -> None:
    """Print CMI, NCMI and every class's CMI of a synthetic or real set under a pool."""
    from ddplug.datasets.synthetic import SyntheticSet, load_set
    from ddplug.lab.meaning import seen_by
    from ddplug.lab.measure import measure as measure_set
    from ddplug.lab.measure import measure_term
    from ddplug.lab.tables import measurement_table, measurement_verdict
    from ddplug.proxies.pool import ProxyPool
    from ddplug.terms import make
    from ddplug.utils.files import user_path, write_json

    named = make(term, temperature=temperature)
    if synthetic is None and data is None:
        raise InputError("nothing to measure: give a synthetic set (its .pt file) or a real data set (--data NAME).")
    if named.needs_real and data is None:
        raise InputError(f"{named.label} compares with real images: name their data set with --data.")
    if split not in ("train", "test"):
        raise InputError(f"unknown split {split!r}, expected train or test.")
    if synthetic is None and factor is not None:
        raise InputError(f"--factor {factor} is for a synthetic set whose images hold several; leave it out.")
    real, where = shared.load_data(data, data_path, download) if data is not None else None, shared.device_of(device)
    pool = ProxyPool.load(proxies, dataset=real.name if real is not None else None).to(where)
    if synthetic is not None:
        chosen, title = load_set(synthetic, factor=factor), str(synthetic)
        if chosen.dataset is not None:
            pool.check_data(chosen.dataset, because=f"'{synthetic}' was distilled from {chosen.dataset}")
    else:
        assert real is not None
        images, labels = (getattr(real, f"{split}_{part}") for part in ("images", "labels"))
        chosen, title = SyntheticSet(images, labels, real.space), f"{real.name}, {split} images"
    chosen = seen_by(pool, chosen, input_space, real)
    chosen = replace(chosen, images=chosen.images.to(where))
    if term == "cmi":
        result = measure_set(
            pool, chosen.images, chosen.classes.to(where), temperature=temperature,
            representation=representation,  # type: ignore[arg-type]
            separation=separation, input_space=pool.derived_space(chosen.space),  # type: ignore[arg-type]
        )  # fmt: skip
        record = result.to_json()
        lines = [measurement_table(result, title, pool.info.class_names), measurement_verdict(result, title)]
    else:
        value = measure_term(named, pool, chosen, real, representation=representation)
        record = {"term": named.name, "value": value, "unit": named.unit}
        lines = [f"{named.describe(value)}: {title}, mean over {len(pool)} proxies."]
    if json_file is not None:
        write_json(record, json_file)
        lines.insert(-1, f"wrote {user_path(json_file)}")
    for line in lines:
        say(line)
