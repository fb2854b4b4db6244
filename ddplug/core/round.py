"""Data shared by the calls of one round."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor


@dataclass
class Round:
    """A round from its estimate to its last call, which closes it."""

    before: AbstractContextManager[object]
    """Within it an exception makes the numbers what they were before the round."""
    number: int
    lam: float
    factor: float
    """On lambda: schedule, laziness, and `part`."""
    part: float
    """Of the whole set that the round's images are; 1 if nothing is known of a whole."""
    ends_passage: bool
    """True if the round is the last of a passage of the set."""
    drawn: float
    """Of the classes that the term was estimated on; 1 for all."""
    open_calls: int
    """Calls whose gradient has not arrived yet."""
    images: int
    value: Tensor
    """Of the term."""
    finite: Tensor
    """Whether the term and its gradient are, as a tensor on the device."""
    host: Tensor | float = 0.0
    """Squared norm of the host's gradient on the views, summed over the calls so far, in float64, unscaled."""
    own: Tensor | float = 0.0
    """The same of the term's gradient, without lambda."""
