"""Rounds between their backward pass and the step of the images, which commits them.

A pass whose gradient is wiped before the step, that the host ends by an exception, or that only computes a gradient
for a log, leaves no trace: its round is undone. Only the newest rounds can be undone, as later ones build on them.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils.weak import WeakIdKeyDictionary

from ddplug.core.autograd import Call
from ddplug.core.before import Before
from ddplug.core.leaves import accumulators, leaves
from ddplug.utils.thread_lock import ThreadLock

LONG = 64
"""Rounds without a step after which it is looked up if an optimizer holds the images at all."""


class _Leaf:
    """A leaf behind the views and its gradient, as they were when the pass ended."""

    def __init__(self, leaf: Tensor, *, accumulates: bool) -> None:
        self.leaf = weakref.ref(leaf)
        self.version = leaf._version
        self.accumulates = accumulates
        self.note()

    def note(self) -> None:
        """Take the gradient as it is now."""
        grad = None if (leaf := self.leaf()) is None else leaf.grad
        self._grad = (None, 0) if grad is None else (weakref.ref(grad), grad._version)

    def holds(self, leaf: Tensor) -> bool:
        """Return True if the gradient may still hold the pass's part. Reads values only if it was changed."""
        seen, version = self._grad
        grad = leaf.grad
        same = grad is None if seen is None else grad is not None and seen() is grad and grad._version == version
        if not same:
            self.accumulates = grad is not None and bool((grad._values() if grad.is_sparse else grad).any())
            self.note()
        return self.accumulates


class _End:
    """The callback that the engine runs at a pass's successful end, and drops if the pass raises."""

    def __init__(self, rounds: Provisional, round_: ProvisionalRound) -> None:
        self._rounds, self._round = rounds, round_

    def __call__(self) -> None:
        self._round.ended = True
        self._rounds.note()


class ProvisionalRound:
    """Data that undo one round.

    Args:
        before: the state before it.
        calls: those that it consists of.
        found: the leaves behind them, and True for each that the pass adds to.
        ended: True if the pass is over already.
    """

    def __init__(self, before: Before, calls: list[Call], found: Iterable[tuple[Tensor, bool]], *, ended: bool) -> None:
        self.before, self.ended = before, ended
        self.calls = [weakref.ref(call) for call in calls]
        self.marks = [_Leaf(leaf, accumulates=accumulates) for leaf, accumulates in found]
        self.end: weakref.ref[_End] | None = None

    def leaves(self) -> list[Tensor]:
        """The leaves that are still alive."""
        return [leaf for mark in self.marks if (leaf := mark.leaf()) is not None]

    @property
    def raised(self) -> bool:
        """True if the pass ended by an exception."""
        return not self.ended and (self.end is None or self.end() is None)

    def stepped(self) -> bool:
        """Return True if a leaf was changed in place since, or if no leaf is left to look at."""
        alive = [(mark, leaf) for mark in self.marks if (leaf := mark.leaf()) is not None]
        return not alive or any(leaf._version != mark.version for mark, leaf in alive)

    def wiped(self) -> bool:
        """Return True if nothing of the pass can be left in the gradients of leaves that are stepped."""
        if not self.ended or self.stepped():
            return self.raised
        found = [(leaf, mark.holds(leaf)) for mark in self.marks if (leaf := mark.leaf()) is not None]
        all_hold = all(holds for _, holds in found)
        return not any(holds and (all_hold or _held(leaf)) for leaf, holds in found)


class Provisional:
    """The rounds that are not committed yet, oldest first."""

    def __init__(self, lock: ThreadLock) -> None:
        self._lock = lock
        self._rounds: list[ProvisionalRound] = []
        _ALL.add(self)

    def begin(self, before: Before, calls: list[Call]) -> None:
        """Add the round that starts in the running backward pass."""
        found = [(node.variable, _runs(node)) for node in _behind(calls)]
        round_ = ProvisionalRound(before, calls, found, ended=False)
        end = _End(self, round_)
        round_.end = weakref.ref(end)
        torch.autograd.Variable._execution_engine.queue_callback(end)
        self._add(round_, calls)

    def add(self, before: Before, calls: list[Call], sources: list[Tensor]) -> None:
        """Add a round of several passes, which is over; `sources` are its views."""
        self._add(ProvisionalRound(before, calls, [(leaf, True) for leaf in leaves(sources)], ended=True), calls)

    def _add(self, round_: ProvisionalRound, calls: list[Call]) -> None:
        _watch_steps()
        self._rounds.append(round_)
        for call in calls:
            call.provisional = weakref.ref(round_)

    def note(self) -> None:
        """Take the leaves' gradients as they are now, after a pass that added to them."""
        with self._lock:
            for round_ in self._rounds:
                for mark in round_.marks:
                    mark.note()

    def adds_up(self, calls: list[Call]) -> bool:
        """Return True if the running pass adds to a leaf that the newest round waits for a step of."""
        if not self._rounds:
            return False
        waiting = {id(leaf) for leaf in self._rounds[-1].leaves()}
        return any(id(node.variable) in waiting and _runs(node) for node in _behind(calls))

    def settle(self, held: set[int] | None = None) -> None:
        """Undo the newest rounds that left no gradient; commit those whose leaves were stepped.

        Args:
            held: ids of the leaves that an optimizer is about to step.
        """
        with self._lock:
            while self._rounds and self._gone(self._rounds[-1]):
                self._rounds.pop().before.restore()
            for position in reversed(range(len(self._rounds))):
                if self._committed(self._rounds[position], held):
                    del self._rounds[: position + 1]
                    break

    def undo(self, round_: ProvisionalRound) -> None:
        """Undo `round_` if it is the newest."""
        if self._rounds and self._rounds[-1] is round_:
            self._rounds.pop().before.restore()

    def clear(self) -> None:
        """Commit all rounds."""
        with self._lock:
            self._rounds.clear()

    @staticmethod
    def _gone(round_: ProvisionalRound) -> bool:
        return round_.raised or (round_.wiped() and any(_held(leaf) for leaf in round_.leaves()))

    def _committed(self, round_: ProvisionalRound, held: set[int] | None) -> bool:
        if held is not None and any(id(leaf) in held for leaf in round_.leaves()):
            for leaf in round_.leaves():
                _HELD[leaf] = _HELD.get(leaf, False) or id(leaf) in held
            return True
        if not round_.ended:
            return False
        # No optimizer holds the images: the pass was the step, for all that can be seen.
        unheld = (len(self._rounds) > LONG or round_.wiped()) and not any(map(_held, round_.leaves()))
        return round_.stepped() or unheld


def _behind(calls: list[Call]) -> list[Any]:
    return accumulators(node for call in calls if call.node is not None and (node := call.node()) is not None)


def _runs(node: Any) -> bool:
    """Return True if the running pass adds to the leaf of `node`; torch.autograd.grad does not."""
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:
        return False


_HELD: Any = WeakIdKeyDictionary()


def _held(leaf: Tensor) -> bool:
    """Return True if an optimizer holds `leaf`; looked up once for each leaf."""
    if leaf not in _HELD:
        optimizers = [found for found in gc.get_objects() if issubclass(type(found), Optimizer)]
        _HELD[leaf] = any(leaf is each for o in optimizers for group in o.param_groups for each in group["params"])
    return bool(_HELD[leaf])


_ALL: weakref.WeakSet[Provisional] = weakref.WeakSet()
_watching = False


def _watch_steps() -> None:
    """Register the hook on the steps of all optimizers, once."""
    global _watching
    if not _watching:
        _watching = True
        register_optimizer_step_pre_hook(_about_to_step)


def _about_to_step(optimizer: Optimizer, *_: object) -> None:
    rounds = [found for found in list(_ALL) if found._rounds]
    if rounds:
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for found in rounds:
            if any(id(leaf) in held for round_ in found._rounds for leaf in round_.leaves()):
                found.settle(held)
