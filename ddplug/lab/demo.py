"""The demonstration, a preset of a comparison: real images distilled with and without CMI.

Proxies are trained first, some of them to measure with only. The comparison itself, `ddplug.lab.compare`, keeps
everything that is finished, so that a demo that was interrupted is resumed by the same command.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from ddplug.core.figures import figure_of, save_figure
from ddplug.datasets.images import ImageData
from ddplug.datasets.synthetic import load_set
from ddplug.errors import InputError
from ddplug.lab.compare import compare
from ddplug.lab.folder import ENTRIES, read_json, set_name
from ddplug.lab.judge import Judge
from ddplug.lab.own_trainer import Own
from ddplug.lab.pictures import Labelled, Maps, draw_images
from ddplug.lab.plan import BASELINE, Arm, Settings, arms
from ddplug.lab.statistics import cost, curve, ratio_interval
from ddplug.lab.tables import plus_minus, standing, term_of
from ddplug.proxies.pool import ProxyPool
from ddplug.proxies.pretrain import pretrain
from ddplug.terms import make
from ddplug.utils.files import user_path, write_json

if TYPE_CHECKING:
    from rich.table import Table

COMPARISON, PROXIES, LEARNING = "comparison", "proxies", "learning.json"


@dataclass(frozen=True)
class Preset:
    """Settings of the demo: the arms that it compares and the proxies that it trains."""

    settings: Settings
    weight: float = 1.0
    seeds: int = 3
    proxy_arch: str = "convnet"
    proxy_width: int = 64
    proxies: int = 3
    held_out: int = 2
    """Proxies that only measure."""
    proxy_epochs: int = 15
    proxy_lr: float = 0.1

    def __post_init__(self) -> None:
        for name in ("seeds", "proxy_width", "proxies", "held_out", "proxy_epochs"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.arm == BASELINE:
            raise InputError("weight must be more than 0: what the demo compares is this weight and none at all.")

    @property
    def arm(self) -> Arm:
        """The one with the term."""
        return arms([self.weight])[-1]

    @property
    def names(self) -> dict[str, str]:
        """Names of the two arms."""
        label = make(self.settings.term).label
        return {BASELINE.name: f"without {label}", self.arm.name: f"with {label}"}

    def changed(self, **given: Any) -> Preset:
        """With another weight, seeds, ipc or iterations, where they are not None."""
        wanted = {name: value for name, value in given.items() if value is not None}
        own = {name: wanted.pop(name) for name in ("weight", "seeds") if name in wanted}
        points = min(self.settings.checkpoints, wanted.get("iterations", self.settings.iterations))
        return replace(self, settings=replace(self.settings, **wanted, checkpoints=max(1, points)), **own)


SHAPES = Preset(
    Settings(
        ipc=10, iterations=150, batch_real=32, width=32, strategy="color_crop_cutout_flip_scale_rotate", checkpoints=5,
        judge_last=True, runs=3, epochs=100, judge_lr=0.02,
    ),
    weight=3.0, proxy_width=32, proxies=2, held_out=1, proxy_epochs=4,
)  # fmt: skip
DIGITS = Preset(
    Settings(
        ipc=10, iterations=250, batch_real=64, width=64, strategy="color_crop_cutout_scale_rotate", checkpoints=10,
        judge_last=True, runs=5, epochs=220, judge_lr=0.03,
    )
)  # fmt: skip
# Natural images: mirrored views, and as much of everything as two CPU cores do in about half an hour.
CIFAR10 = Preset(
    replace(DIGITS.settings, strategy="color_crop_cutout_flip_scale_rotate", iterations=150, runs=3, epochs=300),
    weight=3.0, seeds=1, proxy_arch="convnet", proxy_width=64, proxies=1, held_out=1, proxy_epochs=5, proxy_lr=0.05,
)  # fmt: skip


PRESETS = {"shapes": SHAPES, "digits": DIGITS}
"""Presets by the name of the data; others have `CIFAR10`."""


@dataclass(frozen=True)
class Outcome:
    """The content of the comparison's `compare.json`, and the file of the picture."""

    preset: Preset
    result: dict[str, Any]
    picture: Path


def run_demo(
    data: ImageData,
    out: str | Path,
    preset: Preset = SHAPES,
    *,
    device: torch.device | str = "cpu",
    pool: ProxyPool | None = None,
    on_progress: Callable[[str, int, int, str], object] | None = None,
    on_line: Callable[[str], object] | None = None,
) -> Outcome:
    """Run the demo, or what is left of it, and write its files into `out`.

    Args:
        data: real images to distil.
        out: folder for the proxies, the comparison, and the picture.
        preset: settings of the comparison and of the proxies.
        device: to run on.
        pool: proxies to use instead of training some; the last `preset.held_out` of them only measure.
        on_progress: called with (what is being done, steps done, steps in all, a note).
        on_line: called with a line on every run.

    Raises what `compare` raises, such as `InputError` where `out` holds a demo with other settings.
    """
    out, device, settings = user_path(out), torch.device(device), preset.settings
    pool = pool or _pool(data, out / PROXIES, preset, device)
    if len(pool) <= preset.held_out:
        raise InputError(
            f"the demo holds {preset.held_out} proxies out to measure with and needs at least one more, got a pool "
            f"of {len(pool)}."
        )
    used = ProxyPool(pool.proxies[: -preset.held_out], pool.info)
    heldout = ProxyPool(pool.proxies[-preset.held_out :], pool.info)
    judge = Judge(data.to(device), settings, used, heldout, device)
    label = make(settings.term).label
    result = compare(
        Own(data, settings, used, device), [BASELINE, preset.arm], preset.seeds, out / COMPARISON, judge,
        on_progress=on_progress, on_record=on_line and (lambda records: on_line(standing(records, label))),
    )  # fmt: skip
    return Outcome(preset, result, _draw(out, result, preset.names, judge))


def table(outcome: Outcome) -> Table:
    """Return the result as a table: one row per arm, and the paired difference between them."""
    from rich.table import Table

    preset, result, settings = outcome.preset, outcome.result, outcome.preset.settings
    label, unit = term_of(result)
    shown = Table(
        "", "test accuracy", f"{label} ({unit})", "distilling",
        title=f"{result['data']['name']}, {settings.ipc} images per class, {settings.iterations} iterations",
        caption=(
            f"accuracy: mean ± std over {preset.seeds} seeds, {settings.runs} networks each; difference: 95 % "
            f"intervals over the pairs; {label} under proxies the regulariser never used; weight {preset.weight:g}"
        ),
    )  # fmt: skip
    rows = result["summary"]
    for row, name in zip(rows, preset.names.values(), strict=True):
        seconds, _ = cost(result, row["arm"])
        spent = "-" if seconds is None else f"{seconds * settings.iterations:.1f} s"
        accuracy = f"{plus_minus(row['accuracy'], row['accuracy_std'])} %"
        shown.add_row(name, accuracy, f"{row['cmi_heldout']:.3e}", spent)
    gain, ratio = plus_minus(rows[-1]["difference"], rows[-1]["interval"], sign=True), rows[-1]["cmi_heldout_ratio"]
    fallen = "" if ratio is None else f"x {ratio:.2f}"
    if found := ratio_interval(result["entries"], rows[-1]["arm"], "cmi_heldout"):
        fallen = "x {:.2f} ({:.2f} to {:.2f})".format(*found)
    shown.add_section()
    shown.add_row("difference", f"{gain} points", fallen, "")
    return shown


def _pool(data: ImageData, folder: Path, preset: Preset, device: torch.device) -> ProxyPool:
    return pretrain(
        data, folder, architecture=preset.proxy_arch, options={"width": preset.proxy_width},
        count=preset.proxies + preset.held_out, epochs=preset.proxy_epochs, lr=preset.proxy_lr,
        batch_size=64, device=device,
    )  # fmt: skip


def _draw(out: Path, result: dict[str, Any], names: dict[str, str], judge: Judge) -> Path:
    """Draw the first seed's images and their maps, accuracy by epoch, and the term by iteration, in one picture."""
    label, unit = term_of(result)
    data, seed, path = judge.data, min(entry["seed"] for entry in result["entries"]), out / "demo.png"
    sets: dict[str, Labelled] = {}
    for arm in names:
        made = load_set(out / COMPARISON / ENTRIES / f"{arm}-seed{seed}" / set_name(result["settings"]["iterations"]))
        sets[arm] = (made.images, made.labels)
    learned = read_json(out / LEARNING) if (out / LEARNING).is_file() else {}
    for arm in names:
        if arm not in learned:
            learned[arm] = judge.learning(*sets[arm], seed)
            write_json(learned, out / LEARNING)
    maps = Maps.of(sets, data, judge.heldout or judge.pool)
    figure = figure_of(13.0, 8.0)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(2, 3, gridspec_kw={"width_ratios": (1, 1, 1.1)})
    for column, (arm, name) in enumerate(names.items()):
        draw_images(axes[0, column], *sets[arm], data.space, f"images, {name}")
        maps.draw(axes[1, column], arm, f"t-SNE among real images, {name}")
    accuracy_axis, term_axis = axes[:, 2]
    for arm, name in names.items():
        epochs, accuracies = learned[arm]
        accuracy_axis.plot(epochs, [100 * value for value in accuracies], marker="o", markersize=3, label=name)
        iterations, values = curve(result["entries"], arm, "cmi_heldout")
        term_axis.plot(iterations, [fmean(row) for row in values], marker="o", markersize=3, label=name)
    accuracy_axis.set(title="a fresh network trained on the images", xlabel="epoch", ylabel="test accuracy (%)")
    term_axis.set(title=f"{label} under held-out proxies", xlabel="iteration", ylabel=f"{label} ({unit})")
    for axis in axes[:, 2]:
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend()
    save_figure(figure, path)
    return path
