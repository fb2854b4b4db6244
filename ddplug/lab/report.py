"""Tables of measurements and evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ddplug.lab.measure import Measurement
from ddplug.proxies.representations import PLURAL

if TYPE_CHECKING:
    from rich.table import Table

    from ddplug.lab.evaluate import Evaluation


def measurement_table(measurement: Measurement, title: str, class_names: Sequence[str] | None = None) -> Table:
    """A table of a measurement: the whole set, then class by class."""
    from rich.table import Table

    table = Table("class", "CMI (nats)", title=title, caption=_caption(measurement))
    for label, value in measurement.per_class.items():
        table.add_row(class_names[label] if class_names and label < len(class_names) else str(label), f"{value:.6f}")
    table.add_section()
    table.add_row("all", f"{measurement.cmi:.6f} ± {measurement.cmi_std:.6f}")
    if measurement.ncmi is not None:
        table.add_row(f"separation ({measurement.separation_name})", f"{measurement.separation:.6f}")
        table.add_row("NCMI = CMI / separation", f"{measurement.ncmi:.6f}")
    return table


def evaluation_table(evaluation: Evaluation, title: str) -> Table:
    """A row per architecture: mean, standard deviation and every run; CMI below."""
    from rich.table import Table

    settings = evaluation.settings
    table = Table(
        "architecture", "test accuracy", "runs", title=title,
        caption=(
            f"{settings['dataset']}, {settings['space']}; {settings['epochs']} epochs, lr {settings['lr']:g}, batch "
            f"{settings['batch_size']}, seed {settings['seed']}, augmentation {settings['augment']}"
        ),
    )  # fmt: skip
    for name, runs in evaluation.accuracies.items():
        row = f"{evaluation.mean(name):.2%} ± {evaluation.std(name):.2%}"
        table.add_row(name, row, "  ".join(f"{value:.2%}" for value in runs))
    if evaluation.cmi is not None:
        table.add_section()
        table.add_row("CMI (nats)", f"{evaluation.cmi.cmi:.6f}", f"under {evaluation.cmi.proxies} proxies")
    return table


def _caption(measurement: Measurement) -> str:
    return (
        f"{measurement.images} images, {measurement.proxies} proxies (± std between them), "
        f"{PLURAL[measurement.representation]}, T = {measurement.temperature:g}"
    )
