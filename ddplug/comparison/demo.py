"""The demonstration: distil real images with and without CMI, from the same start and seeds, and see what came out.

Two arms, "without" (weight 0) and "with", are run per seed and judged by fresh networks on held-out real images. CMI is
measured under proxies that the regulariser never used. Every finished run is kept in the output folder, so a demo that
was interrupted goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import torch

from ddplug.attaching.attach import attach
from ddplug.augment.dsa import DSA
from ddplug.comparison.dm_trainer import DistributionMatching
from ddplug.comparison.records import read_json
from ddplug.datasets.images import ImageData
from ddplug.datasets.synthetic import SyntheticSet, load_set, save_set
from ddplug.errors import DataError, InputError
from ddplug.evaluation.measure import measure
from ddplug.networks.precision import fast_bf16
from ddplug.networks.training import evaluate_set
from ddplug.networks.zoo import build
from ddplug.proxies.pool import ProxyPool
from ddplug.proxies.pretrain import pretrain
from ddplug.utils.files import user_path, write_json

if TYPE_CHECKING:
    from rich.table import Table

WITHOUT, WITH = "without CMI", "with CMI"


@dataclass(frozen=True)
class Settings:
    """Everything that decides the demo's outcome."""

    ipc: int = 10
    weight: float = 1.0
    iterations: int = 250
    seeds: int = 3
    """Paired repetitions; the arms of one seed share start, networks, batches and augmentation."""
    batch_real: int = 64
    width: int = 64
    """Channels of the ConvNet-3 that is matching network and judge."""
    strategy: str = "color_crop_cutout_scale_rotate"
    proxy_arch: str = "convnet"
    proxy_width: int = 64
    proxies: int = 3
    held_out: int = 2
    """Proxies that only measure."""
    proxy_epochs: int = 15
    proxy_lr: float = 0.1
    runs: int = 5
    """Fresh networks that judge each distilled set."""
    epochs: int = 220
    lr: float = 0.03

    def __post_init__(self) -> None:
        for name in ("ipc", "iterations", "seeds", "batch_real", "width", "proxy_width", "proxies", "held_out",
                     "proxy_epochs", "runs", "epochs"):  # fmt: skip
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}.")


DIGITS = Settings()
# Natural images: mirrored views, proxies of another architecture than the one that matches, and as much of everything
# as two CPU cores do in about an hour.
CIFAR10 = Settings(
    weight=3.0, strategy="color_crop_cutout_flip_scale_rotate", iterations=150, seeds=1, proxy_arch="resnet18",
    proxy_width=32, proxies=1, held_out=1, proxy_epochs=5, proxy_lr=0.05, runs=3, epochs=300,
)  # fmt: skip


@dataclass
class Run:
    """One arm of one seed."""

    arm: str
    seed: int
    accuracies: list[float]
    """Test accuracy of each judge, in [0, 1]."""
    iterations: list[int]
    cmi: list[float]
    """CMI of the synthetic set under the held-out proxies, in nats, at those iterations; first and last included."""
    lam: float | None
    seconds: float
    """Of distilling, without measuring and judging."""


@dataclass
class Outcome:
    """All runs of a demo, and where its files are."""

    settings: Settings
    dataset: str
    runs: list[Run] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    def of(self, arm: str) -> list[Run]:
        """The runs of one arm, by seed."""
        return [run for run in self.runs if run.arm == arm]


def run_demo(
    data: ImageData,
    out: str | Path,
    settings: Settings = DIGITS,
    *,
    device: torch.device | str = "cpu",
    pool: ProxyPool | None = None,
    on_progress: Callable[[str, int, int], object] | None = None,
) -> Outcome:
    """Run the demo, or what is left of it, and write its files into `out`.

    Args:
        data: real images to distil.
        out: folder for the proxies, the synthetic sets, each run's numbers, and the two pictures.
        settings: see there; runs in `out` made with other settings are made again.
        device: to run on.
        pool: proxies to use instead of training some; the last `settings.held_out` of them only measure.
        on_progress: told (what is being done, steps done, steps in all).
    """
    out = user_path(out)
    tell = on_progress or (lambda what, done, total: None)
    pool = pool or _pool(data, out, settings, device)
    if len(pool) <= settings.held_out:
        raise InputError(
            f"the demo holds {settings.held_out} proxies out to measure with and needs at least one more, got a pool "
            f"of {len(pool)}."
        )
    used = ProxyPool(pool.proxies[: -settings.held_out], pool.info)
    judges = ProxyPool(pool.proxies[-settings.held_out :], pool.info)
    outcome = Outcome(settings, data.name)
    made_with = {**asdict(settings), "data": data.fingerprint(), "proxies": [proxy.digest() for proxy in pool]}
    for seed in range(settings.seeds):
        for arm in (WITHOUT, WITH):
            name = f"{'without' if arm == WITHOUT else 'with'}-seed{seed}"
            run = _finished(out / "runs" / f"{name}.json", made_with)
            if run is None:
                run, images = _one_run(data, settings, arm, seed, used, judges, device, tell)
                _keep(out / "runs", name, run, images, data, made_with)
            outcome.runs.append(run)
    _draw(data, out, outcome)
    return outcome


def _one_run(
    data: ImageData,
    settings: Settings,
    arm: str,
    seed: int,
    used: ProxyPool,
    judges: ProxyPool,
    device: torch.device | str,
    tell: Callable[[str, int, int], object],
) -> tuple[Run, SyntheticSet]:
    trainer = DistributionMatching(
        data, settings.ipc, strategy=settings.strategy, batch_real=settings.batch_real,
        options={"width": settings.width}, seed=seed, device=device,
    )  # fmt: skip
    iterations, cmis, spent = [], [], 0.0
    every = max(1, settings.iterations // 30)
    weight = settings.weight if arm == WITH else 0.0
    with attach(trainer, weight, proxies=used, seed=seed, announce=lambda line: None) as handle:
        while True:
            measured = measure(
                judges, trainer.images.detach(), trainer.labels, input_space=judges.derived_space(data.space)
            )
            iterations.append(trainer.iteration)
            cmis.append(measured.cmi)
            if trainer.iteration == settings.iterations:
                break
            began = time.perf_counter()
            trainer.run(min(every, settings.iterations - trainer.iteration))
            spent += time.perf_counter() - began
            tell(f"seed {seed}, {arm}: distilling", trainer.iteration, settings.iterations)
    accuracies = judge(
        trainer.images.detach(), trainer.labels, data, settings, seed,
        lambda done, _: tell(f"seed {seed}, {arm}: judging", done, settings.runs),
    )  # fmt: skip
    synthetic = SyntheticSet(trainer.images.detach().cpu(), trainer.labels.cpu(), data.space, data.name)
    return Run(arm, seed, accuracies, iterations, cmis, handle.lam, spent), synthetic


def judge(
    images: torch.Tensor,
    labels: torch.Tensor,
    data: ImageData,
    settings: Settings,
    seed: int,
    progress: Callable[[int, float], object] | None = None,
) -> list[float]:
    """Test accuracies of fresh networks trained on a set, under the augmentation it was distilled with."""
    channels, height, width = data.shape
    dsa = DSA(settings.strategy, seed=seed)
    return evaluate_set(
        images, labels, data, runs=settings.runs, epochs=settings.epochs, lr=settings.lr, seed=1000 + 100 * seed,
        augment=lambda batch, generator: dsa(batch), progress=progress,
        architecture=lambda: build(
            "convnet", num_classes=data.num_classes, channels=channels, size=(height, width), width=settings.width
        ),
    )  # fmt: skip


def table(outcome: Outcome) -> Table:
    """What came out, whichever way it fell: one row per arm, and the paired difference between them."""
    from rich.table import Table

    settings = outcome.settings
    result = Table(
        "", "test accuracy", "CMI before", "CMI after", "distilling",
        title=f"{outcome.dataset}, {settings.ipc} images per class, {settings.iterations} iterations",
        caption=(
            f"accuracy: mean ± std over {settings.seeds} seeds x {settings.runs} networks; CMI in nats, under "
            f"{settings.held_out} proxies the regulariser never used; weight {settings.weight:g}"
        ),
    )  # fmt: skip
    for arm in (WITHOUT, WITH):
        runs = outcome.of(arm)
        accuracies = [100 * value for run in runs for value in run.accuracies]
        before, after = fmean(run.cmi[0] for run in runs), fmean(run.cmi[-1] for run in runs)
        seconds = fmean(run.seconds for run in runs)
        result.add_row(arm, f"{_mean_std(accuracies)} %", f"{before:.3e}", f"{after:.3e}", f"{seconds:.1f} s")
    gains = differences(outcome)
    result.add_section()
    result.add_row("difference", f"{_mean_std(gains, sign=True)} points", "", f"x {_cmi_ratio(outcome):.2f}", "")
    return result


def differences(outcome: Outcome) -> list[float]:
    """Accuracy with minus without, in points, seed by seed."""
    pairs = zip(outcome.of(WITHOUT), outcome.of(WITH), strict=True)
    return [100 * (fmean(b.accuracies) - fmean(a.accuracies)) for a, b in pairs]


def _cmi_ratio(outcome: Outcome) -> float:
    with_, without = (fmean(run.cmi[-1] for run in outcome.of(arm)) for arm in (WITH, WITHOUT))
    return with_ / without if without > 0 else float("nan")


def _mean_std(values: list[float], sign: bool = False) -> str:
    mean = f"{fmean(values):+.2f}" if sign else f"{fmean(values):.2f}"
    return f"{mean} ± {stdev(values):.2f}" if len(values) > 1 else mean


def _pool(data: ImageData, out: Path, settings: Settings, device: torch.device | str) -> ProxyPool:
    return pretrain(
        data, out / "proxies", architecture=settings.proxy_arch, options={"width": settings.proxy_width},
        count=settings.proxies + settings.held_out, epochs=settings.proxy_epochs, lr=settings.proxy_lr,
        batch_size=64, device=device, precision="bf16" if fast_bf16(device) else "exact",
    )  # fmt: skip


def _finished(path: Path, made_with: dict[str, Any]) -> Run | None:
    if not path.is_file():
        return None
    try:
        record = read_json(path)
        return Run(**record["run"]) if record["made_with"] == json.loads(json.dumps(made_with)) else None
    except (DataError, KeyError, TypeError):  # damaged: it is simply made again
        return None


def _keep(
    folder: Path, name: str, run: Run, synthetic: SyntheticSet, data: ImageData, made_with: dict[str, Any]
) -> None:
    """The set first, then the numbers that say it is finished; each by renaming."""
    save_set(synthetic, folder / f"{name}.pt")
    write_json({"run": asdict(run), "made_with": made_with}, folder / f"{name}.json")


def _draw(data: ImageData, out: Path, outcome: Outcome) -> None:
    from ddplug.evaluation.report import curves, picture_grid

    shown = {arm: load_set(out / "runs" / f"{file}-seed0.pt").images for arm, file in
             ((WITHOUT, "without"), (WITH, "with"))}  # fmt: skip
    picture_grid(shown, data.space, out / "images.png", columns=outcome.settings.ipc)
    series = {f"{run.arm}, seed {run.seed}": (run.iterations, run.cmi) for run in outcome.runs}
    curves(
        series, out / "cmi.png", title=f"{outcome.dataset}: CMI under held-out proxies", x="iteration", y="CMI (nats)"
    )
    outcome.files += [out / "images.png", out / "cmi.png"]
