"""Rounds between their backward pass and the step of the images, which commits them.

A pass whose gradient is wiped before the step, that the host ends by an exception, or that only computes a gradient
for a log, leaves no trace: its round is undone. Only the newest rounds can be undone, as later ones build on them.
Until a round is committed, it is hidden in the history, and announcements made in it wait.
"""

from __future__ import annotations

import functools
import gc
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.weak import WeakIdKeyDictionary

from ddplug.core.autograd import Call, accumulators, compares_losses, executed, leaves, stepped_by
from ddplug.core.progress import Progress, Snapshot
from ddplug.core.watch import Watch

MANY = 64
"""Rounds without a step after which ddplug looks for an optimizer that holds the images."""


class ThreadLock:
    """A reentrant lock that a forked process replaces, because the thread that held it does not exist there."""

    def __init__(self) -> None:
        self._lock, self._process = threading.RLock(), os.getpid()

    def __enter__(self) -> None:
        if self._process != os.getpid():
            self._lock, self._process = threading.RLock(), os.getpid()
        self._lock.acquire()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._lock.release()


class _Leaf:
    """A leaf behind the views and its gradient, as they were when the pass ended."""

    def __init__(self, leaf: Tensor, *, accumulates: bool) -> None:
        self.leaf = weakref.ref(leaf)
        self.version = leaf._version
        self.accumulates = accumulates
        """True if the leaf's gradient may hold a part of the pass."""
        self.note()

    def note(self) -> None:
        """Remember the present gradient."""
        grad = None if (leaf := self.leaf()) is None else leaf.grad
        self._grad = (None, 0) if grad is None else (weakref.ref(grad), grad._version)

    def holds(self, leaf: Tensor) -> bool:
        """Return True if the gradient may still hold the pass's part. Reads values only if it was changed."""
        noted, version = self._grad
        grad = leaf.grad
        same = grad is None if noted is None else grad is not None and noted() is grad and grad._version == version
        if not same:
            self.accumulates = grad is not None and bool((grad._values() if grad.is_sparse else grad).any())
            self.note()
        return self.accumulates


class ProvisionalRound:
    """A round that can still be undone.

    Args:
        before: the state before the round.
        calls: the calls of the round.
        found: the leaves behind them, and True for each that the pass adds to.
        ended: True if the pass is over already.
    """

    def __init__(
        self, before: Snapshot, calls: list[Call], found: Iterable[tuple[Tensor, bool]], *, ended: bool
    ) -> None:
        self.before, self.ended = before, ended
        self.calls = [weakref.ref(call) for call in calls]
        self.marks = [_Leaf(leaf, accumulates=accumulates) for leaf, accumulates in found]
        self.by_hand = not any(mark.accumulates for mark in self.marks)
        """True if the pass returns gradients, as torch.autograd.grad does, which the host may put into `.grad`."""
        self.end: weakref.ref[Callable[[], None]] | None = None
        """The callback that the engine runs at the end of the pass, and drops if the pass raises."""

    def leaves(self) -> list[Tensor]:
        """The leaves that are still alive."""
        return [leaf for mark in self.marks if (leaf := mark.leaf()) is not None]

    @property
    def raised(self) -> bool:
        """True if the pass ended by an exception."""
        return not self.ended and (self.end is None or self.end() is None)

    def stepped(self) -> bool:
        """Return True if a leaf was changed in place since, or if no leaf is alive any more."""
        alive = [(mark, leaf) for mark in self.marks if (leaf := mark.leaf()) is not None]
        return not alive or any(leaf._version != mark.version for mark, leaf in alive)

    def wiped(self) -> bool:
        """Return True if nothing of the pass can be left in the gradients of leaves that are stepped."""
        if not self.ended or self.stepped():
            return self.raised
        found = [(leaf, mark.holds(leaf)) for mark in self.marks if (leaf := mark.leaf()) is not None]
        all_hold = all(holds for _, holds in found)
        return not any(holds and (all_hold or _has_optimizer(leaf)) for leaf, holds in found)


class ProvisionalRounds:
    """The rounds that are not committed yet, oldest first."""

    def __init__(self, lock: ThreadLock, progress: Progress, watch: Watch) -> None:
        self._lock, self._progress, self._watch = lock, progress, watch
        self._rounds: list[ProvisionalRound] = []
        self._by_hand = 0
        """Passes of torch.autograd.grad since the last step whose rounds were undone."""
        self.by_optimizer = False
        """True if an optimizer has stepped the images of a round."""
        _ALL.add(self)
        _watch_steps()

    def begin(self, before: Snapshot, calls: list[Call]) -> None:
        """Add the round that starts in the running backward pass."""
        found = [(node.variable, executed(node)) for node in _behind(calls)]
        round_ = ProvisionalRound(before, calls, found, ended=False)

        def end() -> None:
            round_.ended = True
            self.end()

        round_.end = weakref.ref(end)
        torch.autograd.Variable._execution_engine.queue_callback(end)
        self._add(round_, calls)

    def add(self, before: Snapshot, calls: list[Call], sources: list[Tensor]) -> None:
        """Add a round of several passes, which is over; `sources` are its views."""
        self._add(ProvisionalRound(before, calls, [(leaf, True) for leaf in leaves(sources)], ended=True), calls)
        self.end()

    def _add(self, round_: ProvisionalRound, calls: list[Call]) -> None:
        self._rounds.append(round_)
        self._watch.made_of(round_.leaves())
        for leaf in round_.leaves():
            # The first evaluation of a closure notes the images' version, and a later one compares it.
            if id(leaf) not in _SEARCHED:
                continue
            if _SEARCHED[id(leaf)] not in (None, leaf._version):
                self._watch.warn("closure", _SEARCH)
            _SEARCHED[id(leaf)] = leaf._version
        for call in calls:
            call.provisional = weakref.ref(round_)
        self.publish()

    def end(self) -> None:
        """Remember the leaves' present gradients, after a pass that added to them."""
        with self._lock:
            for round_ in self._rounds:
                for mark in round_.marks:
                    mark.note()
            if self._progress.announcements:
                self.commit_unheld()

    def adds_up(self, calls: list[Call]) -> bool:
        """Return True if the running pass adds to a leaf whose newest round has not been stepped."""
        if not self._rounds:
            return False
        waiting = {id(leaf) for leaf in self._rounds[-1].leaves()}
        return any(id(node.variable) in waiting and executed(node) for node in _behind(calls))

    def publish(self) -> None:
        """Show and announce the rounds that are committed."""
        self._progress.publish(self._rounds[0].before if self._rounds else None)

    @contextmanager
    def committed(self) -> Iterator[Progress]:
        """Yield the progress as it was before the rounds that wait for a step; restored after the `with` block."""
        with self._lock:
            self.commit_unheld()
            now = Snapshot(self._progress)
            if self._rounds:
                self._rounds[0].before.restore()
            try:
                yield self._progress
            finally:
                now.restore()

    def settle(self, held: set[int] | None = None) -> None:
        """Undo the newest rounds that left no gradient; commit those whose leaves were stepped.

        Args:
            held: ids of the leaves that an optimizer is about to step.
        """
        with self._lock:
            while self._rounds and self._gone(self._rounds[-1]):
                gone = self._rounds.pop()
                gone.before.undo()
                self._by_hand += gone.by_hand and not gone.raised
            if held is not None:
                if self._rounds and self._rounds[-1].by_hand and (passes := self._passes_by_hand()) > 1:
                    self._watch.by_hand(passes)
                self._by_hand = 0
                self._commit(lambda round_: self._takes(round_, held))
            # Without an optimizer that holds the images, a step leaves no trace: the pass counts as the step.
            self._commit(
                lambda round_: round_.stepped() or ((len(self._rounds) > MANY or round_.wiped()) and _unheld(round_))
            )

    def _passes_by_hand(self) -> int:
        """Return how many passes of torch.autograd.grad came to the newest round's images since the last step."""
        newest = set(map(id, self._rounds[-1].leaves()))
        same = [round_ for round_ in self._rounds if not newest.isdisjoint(map(id, round_.leaves()))]
        return self._by_hand + sum(round_.by_hand for round_ in same)

    def commit_unheld(self) -> None:
        """Commit the rounds whose images were changed in place, or are held by no optimizer."""
        with self._lock:
            self._commit(lambda round_: round_.stepped() or _unheld(round_))

    def _commit(self, chosen: Callable[[ProvisionalRound], bool]) -> None:
        """Commit the newest round that has ended and is `chosen`, and all before it."""
        for position in reversed(range(len(self._rounds))):
            if self._rounds[position].ended and chosen(self._rounds[position]):
                del self._rounds[: position + 1]
                break
        self.publish()

    def undo(self, round_: ProvisionalRound) -> None:
        """Undo `round_` if it is the newest."""
        if self._rounds and self._rounds[-1] is round_:
            self._rounds.pop().before.undo()
            self._by_hand += round_.by_hand
            self.publish()

    def clear(self) -> None:
        """Forget all rounds."""
        with self._lock:
            self._rounds.clear()

    @staticmethod
    def _gone(round_: ProvisionalRound) -> bool:
        return round_.raised or (round_.wiped() and not _unheld(round_))

    def _takes(self, round_: ProvisionalRound, held: set[int]) -> bool:
        """Return True if a step of the leaves `held` is one of the images of `round_`."""
        alive = round_.leaves()
        if not any(id(leaf) in held for leaf in alive):
            return False
        for leaf in alive:
            _WITH_OPTIMIZER[leaf] = _WITH_OPTIMIZER.get(leaf, False) or id(leaf) in held
        self.by_optimizer = True
        return True


def _unheld(round_: ProvisionalRound) -> bool:
    """Return True if no optimizer holds a leaf of the round."""
    return not any(map(_has_optimizer, round_.leaves()))


def _behind(calls: list[Call]) -> list[Any]:
    return accumulators(node for call in calls if call.node is not None and (node := call.node()) is not None)


_WITH_OPTIMIZER: Any = WeakIdKeyDictionary()
"""True for each leaf that an optimizer holds, False for each that none holds."""


def _has_optimizer(leaf: Tensor) -> bool:
    """Return True if an optimizer holds `leaf`; searched once for each leaf."""
    if leaf not in _WITH_OPTIMIZER:
        optimizers = [found for found in gc.get_objects() if issubclass(type(found), Optimizer)]
        held = any(leaf is each for o in optimizers for each in stepped_by(o))
        _WITH_OPTIMIZER[leaf] = held
    return bool(_WITH_OPTIMIZER[leaf])


_ALL: weakref.WeakSet[ProvisionalRounds] = weakref.WeakSet()


@functools.cache
def _watch_steps() -> None:
    """Register the hooks on the steps of all optimizers, once."""
    register_optimizer_step_pre_hook(_about_to_step)
    register_optimizer_step_post_hook(lambda *_: _SEARCHED.clear())


_SEARCHED: dict[int, int | None] = {}
"""By the id of each leaf in a step that may compare losses: its version when the closure was first evaluated."""
_SEARCH = (
    "an optimizer evaluates its closure at several images within one step. If it compares the losses there, as LBFGS "
    "does to search along a line, it minimises another loss, because the layer adds CMI to gradients only. Use the "
    "loss form there: loss = loss + lam * ddplug.CMI(proxies)(views, labels)."
)


def _about_to_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    _SEARCHED.clear()
    if any(map(callable, (*args[1:], kwargs.get("closure")))) and compares_losses(optimizer):
        _SEARCHED.update(dict.fromkeys(map(id, stepped_by(optimizer))))
    rounds = [found for found in list(_ALL) if found._rounds]
    if rounds:
        held = {id(parameter) for parameter in stepped_by(optimizer)}
        for found in rounds:
            if any(id(leaf) in held for round_ in found._rounds for leaf in round_.leaves()):
                found.settle(held)
