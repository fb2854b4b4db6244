"""The options of `ddplug.Regularizer` that belong together: immutable, and checked where they are made."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, ClassVar, get_args

from ddplug.choices import Chunk, Precision, WeightingName
from ddplug.errors import InputError

if TYPE_CHECKING:  # command lines read this module, and import torch only when they need it
    from torch import Tensor

Schedule = Callable[[int], float]
"""Round number, from 0, to a factor on lambda."""


@dataclass(frozen=True, kw_only=True)
class Absolute:
    """The weight is lambda itself.

    Args:
        set_size: views of the whole set, for hosts that step on a part of it at a time, class by class say: a round
            then counts in proportion to its views. None: every round stands for the whole set.
        schedule: a factor on lambda by round number, from 0; e.g. `ddplug.weighting.warmup(100)`.
        unit: lambda at weight 1; see `paper`.

    Raises:
        InputError: `set_size` is no whole number >= 1, `schedule` cannot be called, `unit` is not finite and >= 0.
    """

    set_size: int | None = None
    schedule: Schedule | None = None
    unit: float = 1.0
    kind: ClassVar[WeightingName] = "absolute"
    default_weight: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        _check_weighting(self)
        check_factor("unit", self.unit)


@dataclass(frozen=True)
class Relative:
    """The weight is a share of the norm of the host's own gradient on the views. Lambda is measured, then frozen.

    Lambda is the weight times the median of the host's norm over CMI's. The first passage of the set is measured only,
    nothing is added in it.

    Args:
        rounds: passages of the set that lambda is measured over. Without `set_size` every round is a passage.
        set_size, schedule: as of `Absolute`.

    Raises:
        InputError: `rounds` or `set_size` is no whole number >= 1, or `schedule` cannot be called.
    """

    rounds: int = 10
    set_size: int | None = None
    schedule: Schedule | None = None
    kind: ClassVar[WeightingName] = "relative"
    default_weight: ClassVar[float] = 3.0
    """The largest frozen share that lost accuracy in no host it was measured in."""

    def __post_init__(self) -> None:
        check_count("rounds", self.rounds)
        _check_weighting(self)


@dataclass(frozen=True)
class Sustained(Relative):
    """As `Relative`, but lambda is measured anew over every `rounds` passages, so that the share stays."""

    kind: ClassVar[WeightingName] = "sustained"
    default_weight: ClassVar[float] = 1.0


Weighting = Absolute | Relative | Sustained
_WEIGHTINGS: dict[str, type[Weighting]] = {each.kind: each for each in (Relative, Sustained, Absolute)}


def weighting_of(given: Weighting | WeightingName) -> Weighting:
    """Return a weighting by its name with the defaults, or as given; `InputError` for anything else."""
    if isinstance(given, Weighting):
        return given
    if given not in _WEIGHTINGS:
        raise InputError(
            f"unknown weighting {given!r}, expected {', '.join(map(repr, _WEIGHTINGS))}, or a ddplug.Relative, "
            "ddplug.Sustained or ddplug.Absolute."
        )
    return _WEIGHTINGS[given]()


def weight_of(given: float | None, weighting: Weighting | WeightingName) -> float:
    """Return a weight as given; None is the default of its weighting."""
    return weighting_of(weighting).default_weight if given is None else given


# Lambda in the paper's public code (arXiv 2412.09945), by host, data set and images per class.
PAPER_WEIGHTS: dict[tuple[str, str, int], float] = {
    ("dm", "svhn", 10): 18000, ("dm", "svhn", 50): 500,
    ("dm", "cifar10", 10): 8000, ("dm", "cifar10", 50): 2000,
    ("dm", "cifar100", 10): 2000, ("dm", "cifar100", 50): 500,
    ("dc", "cifar10", 10): 50000, ("dc", "cifar10", 50): 10000,
    ("dsa", "svhn", 10): 80000, ("dsa", "svhn", 50): 10000,
    ("dsa", "cifar10", 10): 50000, ("dsa", "cifar10", 50): 10000,
    ("dsa", "cifar100", 10): 80000, ("dsa", "cifar100", 50): 20000,
    ("idc", "svhn", 10): 50, ("idc", "svhn", 50): 50,
    ("idc", "cifar10", 10): 100, ("idc", "cifar10", 50): 50,
    ("idc", "cifar100", 10): 100, ("idc", "cifar100", 50): 50,
}  # fmt: skip


def paper(host: str, dataset: str, ipc: int) -> Absolute:
    """Return the weighting at which weight 1 is the lambda of the paper's public code, for CMI on features.

    Args:
        host: "dm", "dc", "dsa" or "idc".
        dataset: "svhn", "cifar10" or "cifar100".
        ipc: images per class.

    Raises:
        InputError: the paper gives no weight for these.
    """
    key = (host.lower(), dataset.lower().replace("-", ""), ipc)
    if key not in PAPER_WEIGHTS:
        near = sorted(f"{d} ipc {i}" for h, d, i in PAPER_WEIGHTS if h == key[0])
        known = f"for {host} it has {', '.join(near)}" if near else "it has none at all for this host"
        raise InputError(f"the paper gives no weight for {host}, {dataset}, {ipc} images per class ({known}).")
    return Absolute(unit=PAPER_WEIGHTS[key])


@dataclass(frozen=True)
class Views:
    """Views of every image that passes, newly made in each round, which CMI is estimated on.

    With several, CMI means something at one image per class, and is less noisy elsewhere.

    Args:
        count: views of each image. 1 without `make` is the image as it passes.
        make: function that makes a view, (n, c, h, w) to (n, c, h, w), differentiable; by default
            `ddplug.augment.DSA` for several views.

    Raises:
        InputError: `count` is no whole number >= 1.
    """

    count: int = 1
    make: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        check_count("views", self.count)


@dataclass(frozen=True)
class Compute:
    """The parts of the pool, the classes and the rounds that an estimate takes, its precision and its pieces.

    Args:
        precision: "auto" takes the gradient back through a proxy's layers in bf16 where the device is fast at it,
            "exact" never, "bf16" has the forward pass in bf16 too; see `ddplug.networks.precision`. The term itself is
            never reduced.
        chunk: images that go through a proxy together. A number bounds memory by that many images' graph, whatever the
            number of views; "auto" keeps graphs of up to 2 GiB. The gradient is the whole batch's in any case.
        every: act in every k-th passage of the set only, k times as strongly.
        draw: proxies drawn, and averaged over, per round.
        classes: estimate CMI on this many classes only, drawn anew each round, scaled so that the mean over all draws
            is CMI of all of them; None for all. Rounds that measure lambda take all.
        compile: pass images through torch.compile's version of the proxies. Compiling takes a minute, once.

    Raises:
        InputError: an unknown precision, or a number that is no whole number >= 1.
    """

    precision: Precision = "auto"
    chunk: Chunk = "auto"
    every: int = 1
    draw: int = 1
    classes: int | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise InputError(f"unknown precision {self.precision!r}, expected {', '.join(get_args(Precision))}.")
        if self.chunk != "auto" and (isinstance(self.chunk, bool) or not isinstance(self.chunk, int) or self.chunk < 1):
            raise InputError(f"chunk must be 'auto' or a number of images >= 1, got {self.chunk!r}.")
        check_count("every", self.every)
        check_count("draw", self.draw)
        if self.classes is not None:
            check_count("classes", self.classes)


def _check_weighting(given: Absolute | Relative) -> None:
    if given.set_size is not None:
        check_count("set_size", given.set_size)
    if given.schedule is not None and not callable(given.schedule):
        raise InputError(f"schedule must be a function of the round's number, got {given.schedule!r}.")


def check_factor(name: str, value: float) -> float:
    """Return `value` as a float; raise `InputError` unless it is a finite number >= 0."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value < math.inf:
        raise InputError(f"{name} must be a finite number >= 0, got {value!r}.")
    return float(value)


def check_count(name: str, value: int) -> None:
    """Raise `InputError` unless `value` is a whole number >= 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a whole number >= 1, got {value!r}.")
