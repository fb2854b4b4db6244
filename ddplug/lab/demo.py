"""The demonstration, a preset of a comparison: real images distilled with and without CMI, and what came out.

Proxies are trained first, some of them to measure with only. The comparison itself, `ddplug.lab.compare`, keeps
everything that is finished, so that a demo that was interrupted is resumed by the same command.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ddplug.datasets.images import ImageData
from ddplug.datasets.synthetic import load_set
from ddplug.errors import InputError
from ddplug.lab.compare import ENTRIES, compare
from ddplug.lab.judge import Judge
from ddplug.lab.own_trainer import Own, set_name
from ddplug.lab.plan import BASELINE, Arm, Settings, arms
from ddplug.lab.standing import Standing
from ddplug.lab.statistics import cost, curve, ratio_interval
from ddplug.lab.tables import plus_minus, term_of
from ddplug.networks.precision import fast_bf16
from ddplug.proxies.pool import ProxyPool
from ddplug.proxies.pretrain import pretrain
from ddplug.terms import make
from ddplug.utils.files import user_path

if TYPE_CHECKING:
    from rich.table import Table

COMPARISON, PROXIES = "comparison", "proxies"


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
        ipc=10, iterations=60, batch_real=32, width=32, strategy="color_crop_cutout_flip_scale_rotate", checkpoints=5,
        judge_last=True, runs=3, epochs=100, judge_lr=0.02,
    ),
    weight=3.0, proxy_width=32, proxies=2, held_out=1, proxy_epochs=12,
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
    """The content of the comparison's `compare.json`, and the pictures."""

    preset: Preset
    result: dict[str, Any]
    files: list[Path] = field(default_factory=list)


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
        out: folder for the proxies, the comparison, and the two pictures.
        preset: see there.
        device: to run on.
        pool: proxies to use instead of training some; the last `preset.held_out` of them only measure.
        on_progress: told (what is being done, steps done, steps in all, a note).
        on_line: told each line of the table that grows with every run.

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
    result = compare(
        Own(data, settings, used, device), [BASELINE, preset.arm], preset.seeds, out / COMPARISON, judge,
        on_progress=on_progress,
        on_record=on_line and Standing(on_line, preset.names, settings.term),
    )  # fmt: skip
    return Outcome(preset, result, _draw(data, out, result, preset.names))


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
        batch_size=64, device=device, precision="bf16" if fast_bf16(device) else "exact",
    )  # fmt: skip


def _draw(data: ImageData, out: Path, result: dict[str, Any], names: dict[str, str]) -> list[Path]:
    from ddplug.lab.report import curves, picture_grid

    label, unit = term_of(result)
    last = set_name(result["settings"]["iterations"])
    folder = out / COMPARISON / ENTRIES
    shown = {name: load_set(folder / f"{arm}-seed0" / last).images for arm, name in names.items()}
    picture_grid(shown, data.space, out / "images.png", columns=result["settings"]["ipc"])
    series = {}
    for arm, name in names.items():
        iterations, values = curve(result["entries"], arm, "cmi_heldout")
        for seed in range(len(values[0])):
            series[f"{name}, seed {seed}"] = (iterations, [row[seed] for row in values])
    title = f"{result['data']['name']}: {label} under held-out proxies"
    curves(series, out / "cmi.png", title=title, x="iteration", y=f"{label} ({unit})")
    return [out / "images.png", out / "cmi.png"]
