"""The weight: how lambda, the factor in L_host + lambda * CMI, comes about.

A *share* says what users mean (a fraction of the host's own gradient) and is the same number in every host. The lambda
that realises it is measured over the first rounds and then either frozen ("relative"), so that the objective is a fixed
function whose share decays as the term falls, or measured anew all the time ("sustained"), so that the share stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from statistics import median_low
from typing import Any, get_args

import torch
from torch import Tensor

from ddplug.choices import WeightingName as WeightingName
from ddplug.errors import WeightError

Schedule = Callable[[int], float]
"""Round number, from 0, to a factor on lambda."""

BOUND = 10.0
"""How many times the lambda of the first rounds a sustained one may become, as the term may all but vanish."""

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


class Absolute:
    """Lambda as given."""

    kind = "absolute"
    measuring = False
    """Whether the rounds to come are to be observed."""

    def __init__(self, lam: float) -> None:
        self.lam: float | None = check_weight(lam)
        self.so_far = self.lam
        self.share = math.inf
        """No share was asked for."""

    def observe(self, host: Tensor, own: Tensor, *, ends: bool, pooled: bool = False) -> str | None:
        """Do nothing: lambda is given."""

    def state_dict(self) -> dict[str, Any]:
        """The lambda."""
        return {"kind": self.kind, "lam": self.lam}

    def check(self, state: dict[str, Any]) -> None:
        """`WeightError` unless the state is of the same lambda."""
        _check_state(state, self.state_dict(), ("kind", "lam"))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing more than `check`: lambda is what it was made with."""
        self.check(state)


class Relative:
    """Lambda such that CMI's gradient on the views has `share` of the norm of the host's own.

    Squared norms are summed over a passage of the set, which a host that steps on parts of it makes in several rounds.
    Lambda is the share times the median, over the first `rounds` passages, of the host's norm over CMI's; then it is
    frozen. A single outlier, a spike of the host's loss say, does not move a median. Until lambda is frozen, a round
    uses the complete passages before it, so that all its calls have one lambda; the first passage is only measured.
    """

    kind = "relative"

    def __init__(self, share: float, rounds: int = 10) -> None:
        self.share = check_weight(share)
        if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
            raise WeightError(
                f"calibration needs a whole number of rounds >= 1, got {rounds!r}. Use weighting='absolute' for none."
            )
        self.rounds = rounds
        self.lam: float | None = None
        self.factor = 1.0
        """A factor on lambda besides the share, where views of part of a host's batch stand for all of it."""
        self._sums = torch.zeros(2, dtype=torch.float64)
        """The squared norms of the passage under way: the host's, CMI's."""
        self._passages: tuple[Tensor, ...] = ()
        """The sums of the complete passages; replaced, never written to."""
        self._complete = 0
        """Complete passages."""
        self._measured: float | None = None
        """The lambda of the complete passages, if it was computed."""

    @property
    def measuring(self) -> bool:
        """True if the rounds to come are to be observed."""
        return self.lam is None

    @property
    def so_far(self) -> float:
        """Lambda by the complete passages; 0 before there is one."""
        if self.lam is not None:
            return self.lam
        if self._measured is None:
            self._measured = self._median()
        return self._measured

    def observe(self, host: Tensor, own: Tensor, *, ends: bool, pooled: bool = False) -> str | None:
        """Note a complete round; return the announcement of a new lambda, or None.

        Gradients that are not finite, and rounds in which one of the two is zero, are left out of the sums. A passage
        without any other round does not count, so lambda waits.

        Args:
            host: squared norm of the host's gradient on all the round's views, a scalar.
            own: the same of CMI's gradient, as it would be at lambda 1.
            ends: True if the round is the last of a passage of the set.
            pooled: True if only the mean over many rounds is right, as for an estimate on drawn classes: their
                passages are summed before the ratio is taken.
        """
        norms = torch.stack([host, own])
        counts = (torch.isfinite(norms) & (norms > 0)).all()
        self._sums = self._sums.to(norms.device) + torch.where(counts, norms, 0.0)
        if not ends:
            return None
        # Before there is a lambda, a device is waited for once per passage; later only when lambda changes.
        if self.lam is not None or bool(self._sums[1] > 0):
            if pooled and self._passages:
                self._passages = (self._passages[0] + self._sums,)
            else:
                self._passages = (*self._passages, self._sums)
            self._complete += 1
            self._measured = None
        self._sums = torch.zeros_like(self._sums)
        return self._settle() if self._complete >= self.rounds else None

    def _settle(self) -> str | None:
        self.lam = self._median()
        self._passages, self._complete = (), 0
        return f"lambda = {self.lam:.6g} from now on"

    def _median(self) -> float:
        """The share times the lower median of the passages' ratios; 0 if there is none."""
        sums = [held.tolist() for held in self._passages]
        ratios = [math.sqrt(host / own) for host, own in sums if own > 0]
        return self.share * self.factor * median_low(ratios) if ratios else 0.0

    def state_dict(self) -> dict[str, Any]:
        """The share and what has been measured."""
        return {
            "kind": self.kind, "share": self.share, "rounds": self.rounds, "lam": self.lam, "factor": self.factor,
            "complete": self._complete, "sums": self._sums.tolist(),
            "passages": [held.tolist() for held in self._passages],
        }  # fmt: skip

    def check(self, state: dict[str, Any]) -> None:
        """`WeightError` unless the state is of the same share, measured over as many rounds."""
        _check_state(state, self.state_dict(), ("kind", "share", "rounds"))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the measurement, or keep the frozen lambda; `WeightError` if it is of another share."""
        self.check(state)
        self.lam, self._complete = state["lam"], state["complete"]
        self._measured = None
        self._sums = torch.tensor(state["sums"], dtype=torch.float64)
        self._passages = tuple(torch.tensor(held, dtype=torch.float64) for held in state["passages"])
        self.factor = state.get("factor", self.factor)


class Sustained(Relative):
    """Lambda measured anew over every `rounds` passages of the whole set, so that the share is kept up.

    Every lambda comes from the passages since the last one was set, as in `Relative`. It is at most `BOUND` times the
    first: where CMI all but vanishes, the rest of its gradient means nothing. After the first lambda, a device is
    waited for only when lambda changes.
    """

    kind = "sustained"

    def __init__(self, share: float, rounds: int = 10) -> None:
        super().__init__(share, rounds)
        self.first: float | None = None
        """The first lambda."""
        self._told = False
        """True if it was announced that lambda has reached its bound."""

    @property
    def measuring(self) -> bool:
        """Always."""
        return True

    def _settle(self) -> str | None:
        lam = self._median()
        self._passages, self._complete = (), 0
        if lam == 0:  # there was no gradient to measure
            return None
        if self.first is None:
            self.first = self.lam = lam
            return f"lambda = {lam:.6g} for now, measured anew every {self.rounds} rounds"
        limit = BOUND * self.first
        self.lam = min(lam, limit)
        if lam > limit and not self._told:
            self._told = True
            return f"lambda = {limit:.6g}, {BOUND:g} times the first, and grows no further"
        return None

    def state_dict(self) -> dict[str, Any]:
        """The share, lambda, and what has been measured since it was set."""
        return {**super().state_dict(), "first": self.first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the measurement; `WeightError` if it is of another share."""
        super().load_state_dict(state)
        self.first = state["first"]


Weighting = Absolute | Relative | Sustained
"""How lambda comes about: `lam` once it is settled, `so_far` at any time."""


def make_weighting(
    weight: float | str,
    weighting: WeightingName = "relative",
    *,
    calibrate: int = 10,
    setting: tuple[str, str, int] | None = None,
) -> Weighting:
    """The weighting that the user's `weight=` and `weighting=` mean.

    Args:
        weight: a share (relative) or a lambda (absolute), finite and >= 0; or "paper" for the paper's lambda.
        weighting: "relative", "sustained" or "absolute"; the paper's weights are absolute whatever is said here.
        calibrate: rounds over which a share is turned into a lambda.
        setting: (host, data set, images per class), which "paper" looks up.

    Raises:
        WeightError: negative, NaN or infinite weights, unknown names, a setting that the paper has no weight for.
    """
    if isinstance(weight, str):
        if weight != "paper":
            raise WeightError(f"unknown weight {weight!r}, expected a number >= 0 or 'paper'.")
        return Absolute(paper_weight(setting))
    kinds = {"relative": Relative, "sustained": Sustained}
    if weighting in kinds:
        return kinds[weighting](weight, calibrate)
    if weighting == "absolute":
        return Absolute(weight)
    raise WeightError(
        f"unknown weighting {weighting!r}, expected one of {', '.join(map(repr, get_args(WeightingName)))}."
    )


def paper_weight(setting: tuple[str, str, int] | None) -> float:
    """The lambda of the paper's public code for (host, data set, images per class); `WeightError` if it has none."""
    if setting is None:
        raise WeightError(
            "weight='paper' needs to know what to look up: pass setting=(host, data set, images per class), "
            "e.g. ('dm', 'cifar10', 10), or give the weight as a number."
        )
    if not (isinstance(setting, tuple | list) and [type(part) for part in setting] == [str, str, int]):
        raise WeightError(
            f"setting must be (host, data set, images per class), got {setting!r}; e.g. ('dm', 'cifar10', 10)."
        )
    host, dataset, ipc = setting
    key = (host.lower(), dataset.lower().replace("-", ""), ipc)
    if key not in PAPER_WEIGHTS:
        near = sorted(f"{d} ipc {i}" for h, d, i in PAPER_WEIGHTS if h == key[0])
        known = f"for {host} it has {', '.join(near)}" if near else "it has none at all for this host"
        raise WeightError(f"the paper gives no weight for {host}, {dataset}, {ipc} images per class ({known}).")
    return PAPER_WEIGHTS[key]


def warmup(rounds: int) -> Schedule:
    """A schedule that rises linearly to 1 over `rounds` rounds."""
    if rounds < 1:
        raise WeightError(f"a warm-up needs at least 1 round, got {rounds}.")
    return lambda round_: min(1.0, (round_ + 1) / rounds)


def cosine(rounds: int) -> Schedule:
    """A schedule that falls from 1 to 0 over `rounds` rounds along half a cosine, and stays at 0."""
    if rounds < 1:
        raise WeightError(f"a cosine schedule needs at least 1 round, got {rounds}.")
    return lambda round_: 0.5 * (1 + math.cos(math.pi * min(1.0, round_ / rounds)))


def scheduled(schedule: Schedule | None, number: int) -> float:
    """Return the value of `schedule` for round `number`; `WeightError` unless it is a finite number >= 0."""
    if schedule is None:
        return 1.0
    factor = schedule(number)
    if not (isinstance(factor, int | float) and math.isfinite(factor) and factor >= 0):
        raise WeightError(f"the schedule gave {factor!r} for round {number}, expected a finite number >= 0.")
    return float(factor)


def check_weight(weight: float) -> float:
    """`weight` as a float, or `WeightError` unless it is finite and >= 0."""
    if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight) or weight < 0:
        raise WeightError(
            f"weight must be a finite number >= 0, got {weight!r}. 0 switches the regulariser off; "
            "1 is as much as the host's own gradient."
        )
    return float(weight)


def _check_state(state: dict[str, Any], own: dict[str, Any], keys: tuple[str, ...]) -> None:
    given, expected = ({key: record.get(key) for key in keys} for record in (state, own))
    if given != expected:
        raise WeightError(f"this state is of another weighting: {given}, expected {expected}.")
