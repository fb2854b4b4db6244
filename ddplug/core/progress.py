"""The progress of a run: everything that a round modifies, its snapshots, and its saved state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

from torch import Tensor

from ddplug.core.estimator import Estimator
from ddplug.core.history import History, Round
from ddplug.core.weighting import Lambda
from ddplug.errors import InputError
from ddplug.utils.records import Count, Finite, check_record


class Progress:
    """Lambda, the draws, the history and the counts of one layer.

    Args:
        estimator: draws the proxies, the classes and the real images.
        lam: lambda.
        announce: called with the report of a new lambda once its round is committed.
    """

    def __init__(self, estimator: Estimator, lam: Lambda, announce: Callable[[str], object]) -> None:
        self.estimator, self.lam, self.announce = estimator, lam, announce
        self.history = History()
        self.rounds = 0
        """Rounds so far, left-out ones included."""
        self.seen = 0
        """Images so far, or rounds where no `set_size` is given: `set_size` images, or one round, are a passage."""
        self.announcements: dict[int, str] = {}
        """Announcements to make once their round, by its number, is committed."""

    def __getstate__(self) -> dict[str, Any]:
        """The state without announcements: a copy makes its own."""
        return {**self.__dict__, "announcements": {}}

    def publish(self, pending: Snapshot | None) -> None:
        """Show and announce the rounds before `pending`, the state before the oldest provisional round."""
        self.history.hide(None if pending is None else pending.history)
        for number in sorted(self.announcements):
            if pending is None or number < pending.rounds:
                self.announce(self.announcements.pop(number))

    def state_dict(self) -> dict[str, Any]:
        """Everything that a continued run needs."""
        return {
            "weighting": self.lam.state_dict(), **self.estimator.state_dict(), "rounds": self.rounds,
            "seen": self.seen, "history": self.history.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.lam.load_state_dict(state["weighting"])
        self.estimator.load_state_dict(state)
        self.history.load_state_dict(state["history"])
        self.rounds, self.seen = state["rounds"], state["seen"]


class Snapshot:
    """The progress as it is now; the round is undone if an exception leaves the `with` block.

    The generators of a user's own `view` are not included.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.rounds, self._seen, self.history = progress.rounds, progress.seen, progress.history.total
        # Lambda replaces its tensors and never writes to them.
        self._lam = dict(vars(progress.lam))
        self._generators = progress.estimator.generators()

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            self.undo()

    def undo(self) -> None:
        """Restore the state, and drop the rounds and announcements since."""
        self.restore()
        progress = self._progress
        progress.history.truncate(self.history)
        progress.announcements = {key: line for key, line in progress.announcements.items() if key < self.rounds}

    def restore(self) -> None:
        """Restore all but the history and the announcements."""
        self._progress.rounds, self._progress.seen = self.rounds, self._seen
        vars(self._progress.lam).update(self._lam)
        self._progress.estimator.set_generators(self._generators)


class LambdaState(TypedDict):
    """The state of a `Lambda`."""

    lam: Finite | None
    first: Finite | None
    factor: Finite
    complete: Count
    sums: list[float]
    passages: list[list[float]]


class State(TypedDict):
    """The state of a `Regularizer`."""

    weighting: LambdaState
    generators: dict[str, Tensor]
    view: dict[str, Any] | None
    rounds: Count
    seen: Count
    history: list[Round]
    settings: dict[str, Any]
    pool: str | None


def check_state(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise `InputError` unless `state` is a complete state, made with the settings `own`: lambda depends on them."""
    check_record(state, State, "this state of a Regularizer", "So nothing was taken from it.", error=InputError)
    given = state["settings"]
    if differing := [f"{key} {given.get(key)!r} (here {own[key]!r})" for key in own if given.get(key) != own[key]]:
        raise InputError(
            f"this state was made with {', '.join(differing)}; the lambda in it would mean something else here. "
            "Give the same options, or start without the state."
        )


def check_pool(expected: str | None, digest: str) -> None:
    """Raise `InputError` unless a pool's `digest` is the `expected` one; None accepts any pool."""
    if expected is not None and expected != digest:
        raise InputError(
            "this state was made with other proxies; the lambda in it would mean something else here. Give the same "
            "proxies, in the same order, or start without the state."
        )
