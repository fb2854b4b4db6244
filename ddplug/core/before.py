"""Snapshot of everything a round modifies, restored if the round raises."""

from __future__ import annotations

from typing import Protocol

from ddplug.core.estimator import Estimator
from ddplug.core.history import History
from ddplug.core.watch import Watch
from ddplug.core.weighting import Weighting


class Keeper(Protocol):
    """Whoever keeps count of rounds."""

    rounds: int
    seen: int
    history: History
    watch: Watch
    weighting: Weighting
    estimator: Estimator


class Before:
    """The numbers, the weighting and the generators of `keeper` as they are now.

    What a user's own `view` draws from is not among them.
    """

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._rounds, self._watched, self._history = keeper.rounds, keeper.watch.rounds, len(keeper.history)
        self._seen = keeper.seen
        # Its tensors are replaced, never written to.
        self._weighting = dict(vars(keeper.weighting))
        self._generators = keeper.estimator.generators()

    def __enter__(self) -> Before:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            self.restore()

    def restore(self) -> None:
        """Make them what they were."""
        keeper = self._keeper
        keeper.rounds, keeper.watch.rounds = self._rounds, self._watched
        keeper.seen = self._seen
        keeper.history.truncate(self._history)
        vars(keeper.weighting).update(self._weighting)
        keeper.estimator.set_generators(self._generators)
