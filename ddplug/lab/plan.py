"""Plan of a comparison: the arms, the runs, and the settings that all of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from ddplug.core.flags import COMPARED, FLAGS, read_weight
from ddplug.core.options import check_factor
from ddplug.errors import InputError
from ddplug.hosting.options import Views
from ddplug.lab.dm_trainer import Init, check_init
from ddplug.proxies.representations import chosen
from ddplug.terms import make


@dataclass(frozen=True)
class Arm:
    """One way to distil: a weight, and the views that it acts on. Weight 0 is the baseline, whatever the views."""

    weight: float | str
    """A number, or "paper"."""
    views: Views = "host"
    term: str = ""
    """The term, where a comparison has arms of several terms; else that of its settings."""

    @property
    def baseline(self) -> bool:
        """True if the arm is the host alone."""
        return self.weight == 0

    @property
    def name(self) -> str:
        """Name in files and tables, e.g. "weight-0.1-host"."""
        if self.baseline:
            return "weight-0"
        shown = self.weight if isinstance(self.weight, str) else f"{self.weight:.12g}"
        of = f"{self.term.replace('*', 'x').replace(' ', '')}-" if self.term else "weight-"
        return f"{of}{shown}-{self.views}"


OF_OUR_TRAINER = ("ipc", "iterations", "batch_real", "lr", "init", "checkpoints", "judge_last")
"""Settings that do not apply to an upstream host, or that it has itself."""

BASELINE = Arm(0.0)


@dataclass(frozen=True)
class Run:
    """An arm and a seed. Runs of one seed differ only in the term that is added to the loss."""

    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """Name in files, e.g. "weight-0.1-host-seed0"."""
        return f"{self.arm.name}-seed{self.seed}"

    def described(self) -> dict[str, Any]:
        """Return the entry of `compare.json`, without the sets."""
        return {
            "name": self.name, "arm": self.arm.name, "weight": self.arm.weight,
            "views": None if self.arm.baseline else self.arm.views, "seed": self.seed,
            **({"term": self.arm.term} if self.arm.term else {}),
        }  # fmt: skip


def arms(weights: Sequence[float | str], views: Sequence[str] = ("host",), terms: Sequence[str] = ("",)) -> list[Arm]:
    """The baseline, then every other weight of every term on every kind of views; each once, in the order given.

    Raises `InputError` for an invalid weight, and for views that are neither "host" nor "clean".
    """
    unknown = [name for name in views if name not in get_args(Views)]
    if unknown or not views:
        raise InputError(f"views must be host, clean or both, got {', '.join(unknown) or 'none'}.")
    checked = [weight if weight == "paper" else check_factor("weight", weight) for weight in weights]  # type: ignore[arg-type]
    for term in filter(None, terms):
        make(term)  # raises for an unknown term
    others = [
        Arm(weight, kind, term)  # type: ignore[arg-type]
        for kind in views
        for term in terms
        for weight in checked
        if weight != 0
    ]
    by_name: dict[str, Arm] = {}
    for arm in others:
        by_name.setdefault(arm.name, arm)  # weights that differ in the 13th digit would share their files
    return [BASELINE, *by_name.values()]


def read_weights(text: str) -> list[float | str]:
    """The weights of a command line, "0,0.1,paper"; `InputError` for anything else."""
    return [read_weight(part.strip()) for part in text.split(",")]


@dataclass(frozen=True)
class Settings:
    """Settings that all runs of a comparison share, besides arm, seed and data."""

    ipc: int = 10
    iterations: int = 300
    batch_real: int = 64
    lr: float = 1.0
    """Learning rate of the synthetic images."""
    init: Init = "real"
    """Their initial values."""
    strategy: str = "color_crop_cutout_flip_scale_rotate"
    """DSA's operations, in distilling and in judging."""
    arch: str = "convnet"
    """Of the matching networks and of the judges."""
    width: int | None = None
    """Its channels; None for the architecture's own."""
    checkpoints: int = 5
    """Number of times that the set is kept, measured and judged along the iterations, the end included."""
    judge_last: bool = False
    """Judge the last set only; those before it are measured."""
    runs: int = 3
    """Fresh networks per judgement."""
    epochs: int = 300
    judge_lr: float = 0.03
    term: str = "cmi"
    """The term that is added to the host's loss, unless an arm has another, and that is measured of all sets."""
    regularizer: Mapping[str, Any] = field(default_factory=dict)
    """Of `ddplug.core.flags.FLAGS`, as far as they are not the defaults."""
    arguments: tuple[str, ...] | None = None
    """Arguments of an upstream host, in the place of the settings of our trainer."""

    def __post_init__(self) -> None:
        for name in ("ipc", "iterations", "batch_real", "checkpoints", "runs", "epochs"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("lr", "judge_lr"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} must be more than 0 and finite, got {getattr(self, name)}.")
        check_init(self.init)
        if self.checkpoints > self.iterations:
            raise InputError(
                f"{self.checkpoints} checkpoints do not fit into {self.iterations} iterations; lower --checkpoints."
            )
        make(self.term)  # raises for an unknown term
        if unknown := sorted(set(self.regularizer) - set(COMPARED)):
            raise InputError(f"unknown options of the regulariser, {', '.join(unknown)}; known: {sorted(COMPARED)}.")

    def term_of(self, arm: Arm) -> str:
        """Return the term that an arm adds to the loss."""
        return arm.term or self.term

    def option(self, name: str) -> Any:
        """An option of the regulariser: as given, else its default."""
        return self.regularizer.get(name, FLAGS[name].default)

    def judged_at(self, iteration: int, last: int) -> int:
        """Return the number of networks that judge the set of `iteration`; that of `last` is the last set."""
        return 0 if self.judge_last and iteration != last else self.runs

    def check_arms(self, arms: Sequence[Arm], ipc: int, rounds: int | None = None) -> None:
        """Raise `InputError` for weights that would compare nothing: the term is 0, or lambda is never measured.

        `rounds` are those in which a run's layer acts, None if that is not known.
        """
        weighted = [arm for arm in arms if not arm.baseline]
        if weighted and ipc == 1 and self.option("views_per_image") == 1:
            raise InputError(
                f"with one image per class and one view of it, CMI is 0 and {weighted[0].name} would be the baseline "
                "again; take a larger --ipc, or --views-per-image 2 with `ddplug compare`."
            )
        shares = [arm for arm in weighted if arm.weight != "paper" and self.option("weighting") != "absolute"]
        if shares and rounds is not None and rounds <= self.option("calibrate"):
            raise InputError(
                f"{shares[0].name} is a share of the host's gradient, which becomes a lambda in the first "
                f"{self.option('calibrate')} rounds, and these runs have {rounds}; take more --iterations, or "
                "with `ddplug compare` a smaller --calibrate or --weighting absolute."
            )

    @property
    def points(self) -> list[int]:
        """The iterations after which the set is kept and judged, rising; the last one is the end."""
        return [self.iterations * part // self.checkpoints for part in range(1, self.checkpoints + 1)]

    @property
    def measuring(self) -> dict[str, Any]:
        """Options by which the term is measured: the regulariser's."""
        required = make(self.term).representation
        representation = chosen(self.option("representation"), self.option("weighting"), required)
        return {"representation": representation, "temperature": self.option("temperature")}

    @property
    def network(self) -> dict[str, Any]:
        """Options of the architecture."""
        return {} if self.width is None else {"width": self.width}

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary of the settings that have an effect, with all options of the regulariser."""
        unused = ("arguments",) if self.arguments is None else OF_OUR_TRAINER
        written = {**asdict(self), "regularizer": {name: self.option(name) for name in COMPARED}}
        return {name: value for name, value in written.items() if name not in unused}
