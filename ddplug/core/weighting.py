"""Lambda, the factor in L_host + lambda * CMI, as given or as measured.

A *share* is a fraction of the host's own gradient, and the same number in every host. Its lambda is measured over the
first rounds. "relative" then freezes it: the objective is a fixed function, and the share decays as the term falls.
"sustained" measures lambda anew all the time, so that the share stays.
"""

from __future__ import annotations

import math
from statistics import median_low
from typing import Any

import torch
from torch import Tensor

from ddplug.core.options import Absolute, Schedule, Weighting, check_count, check_factor

BOUND = 10.0
"""Largest sustained lambda, in multiples of the first: where the term vanishes, lambda would grow without end."""


class Lambda:
    """Lambda by the weight and the weighting.

    A share's lambda is such that CMI's gradient on the views has that share of the norm of the host's own. Squared
    norms are summed over a passage of the set, which a host that steps on parts of it makes in several rounds. Lambda
    is the share times the median, over `rounds` passages, of the host's norm over CMI's. A single outlier, a spike of
    the host's loss say, does not move a median. Until the first lambda is settled, a round uses the complete passages
    before it, so that all its calls have one lambda; the first passage is only measured.

    A sustained lambda comes from the passages since the last one was set. It is at most `BOUND` times the first: where
    CMI all but vanishes, the rest of its gradient means nothing.

    Raises:
        InputError: `weight` is not finite or below 0.
    """

    def __init__(self, weight: float, how: Weighting) -> None:
        self.weight, self.how = check_factor("weight", weight), how
        self.lam = self.weight * how.unit if isinstance(how, Absolute) else None
        """Lambda, once it is settled."""
        self.factor = 1.0
        """Inner steps of a host's unrolled loop for each that the layer sees. A measured lambda is multiplied by it,
        the recorded share is divided by it."""
        self.first: float | None = None
        """The first measured lambda."""
        self._sums = torch.zeros(2, dtype=torch.float64, device="cpu")
        """The squared norms of the passage under way: the host's, CMI's."""
        self._passages: tuple[Tensor, ...] = ()
        """The sums of the complete passages; replaced, never written to."""
        self._complete = 0
        """Complete passages."""
        self._measured: float | None = None
        """The lambda of the complete passages, if it was computed."""
        self._bound_announced = False

    @property
    def measuring(self) -> bool:
        """True if the rounds to come are to be observed."""
        return self.lam is None or self.how.kind == "sustained"

    @property
    def so_far(self) -> float:
        """Lambda, before it is settled by the complete passages; 0 before there is one."""
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
        assert not isinstance(self.how, Absolute)
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
        return self._settle(self.how.rounds) if self._complete >= self.how.rounds else None

    def _settle(self, rounds: int) -> str | None:
        lam = self._median()
        self._passages, self._complete = (), 0
        if lam == 0:  # there was no gradient to measure
            return None
        if self.first is None:
            self.first = self.lam = lam
            until = "from now on" if self.how.kind == "relative" else f"for now, measured anew every {rounds} rounds"
            return f"lambda = {lam:.6g} {until}"
        limit = BOUND * self.first
        self.lam = min(lam, limit)
        if lam > limit and not self._bound_announced:
            self._bound_announced = True
            return f"lambda = {limit:.6g}, {BOUND:g} times the first, and grows no further"
        return None

    def _median(self) -> float:
        """The share times the lower median of the passages' ratios; 0 without a passage."""
        sums = [held.tolist() for held in self._passages]
        ratios = [math.sqrt(host / own) for host, own in sums if own > 0]
        return self.weight * self.factor * median_low(ratios) if ratios else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Lambda and what has been measured."""
        return {
            "lam": self.lam, "first": self.first, "factor": self.factor, "complete": self._complete,
            "sums": self._sums.tolist(), "passages": [held.tolist() for held in self._passages],
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the measurement, or keep the settled lambda."""
        self.lam, self.first, self.factor = state["lam"], state["first"], state["factor"]
        self._complete, self._measured = state["complete"], None
        self._sums = torch.tensor(state["sums"], dtype=torch.float64, device="cpu")
        self._passages = tuple(torch.tensor(held, dtype=torch.float64, device="cpu") for held in state["passages"])


def warmup(rounds: int) -> Schedule:
    """A schedule that rises linearly to 1 over `rounds` rounds."""
    check_count("rounds", rounds)
    return lambda round_: min(1.0, (round_ + 1) / rounds)


def cosine(rounds: int) -> Schedule:
    """A schedule that falls from 1 to 0 over `rounds` rounds along half a cosine, and stays at 0."""
    check_count("rounds", rounds)
    return lambda round_: 0.5 * (1 + math.cos(math.pi * min(1.0, round_ / rounds)))
