"""What looks like a mistake around the layer, noticed while it runs and said once: nothing may fail silently."""

from __future__ import annotations

import atexit
import gc
import sys
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddplug.core.autograd import Call, leaves
from ddplug.errors import DDPlugWarning

LOST = 10
"""Graphs dropped without a backward pass, before the first round, after which that is said."""
UNTOUCHED = 200
"""Calls on views that need no gradient, with no other call before, after which that is said."""
STEPS = 50
"""Steps of the images' optimizer without a round, after which that is said."""
LOOKED_AT = 30
"""Rounds that are looked at for being parts of a larger batch; looking costs a wait for the device."""


class Watch:
    """Counts and compares what passes through one layer."""

    def __init__(self, where: str = "the layer") -> None:
        self.where = where
        """Where it is, for the messages."""
        self.rounds = 0
        self.expects_action = False
        """Whether it is a mistake if no round ever comes: after the first call, or once attached."""
        self._warned: set[str] = set()
        self._untouched = self._lost = self._steps = self._cut = 0
        self._single: set[int] | None = set()
        self._before: list[tuple[weakref.ref[Tensor], int]] = []
        _WATCHES.add(self)

    def __getstate__(self) -> dict[str, Any]:
        """A copy has seen nothing of the graphs yet."""
        return {**self.__dict__, "_before": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _WATCHES.add(self)

    def warn(self, about: str, text: str) -> None:
        """Warn, once per `about`."""
        if about not in self._warned:
            self._warned.add(about)
            warnings.warn(text, DDPlugWarning, stacklevel=2)

    def expect(self, about: str) -> None:
        """Do not warn `about` something: it is meant."""
        self._warned.add(about)

    def untouched(self) -> None:
        """Views came that need no gradient."""
        self._untouched += 1
        if self._untouched == UNTOUCHED and not self.expects_action and not self.rounds:
            self.warn(
                "no gradient",
                f"{UNTOUCHED} batches of views came to {self.where}, and none needed a gradient, so CMI was added to "
                "none. If the host has not begun to distil, all is well; else look whether its synthetic images "
                "require a gradient where they pass the layer.",
            )

    def called(self, lost: int) -> None:
        """Views came that need a gradient; `lost` earlier calls were dropped without a backward pass meanwhile."""
        self.expects_action = True
        self._lost += lost
        if self._lost >= LOST and not self.rounds:
            self.warn(
                "never acts",
                f"{self._lost} batches of views passed {self.where} and no backward pass ever came back to them, so "
                "CMI was never added. Does the host's loss depend on what the layer returned, or are the views "
                "detached or copied on the way?",
            )

    def stepped(self) -> None:
        """The optimizer of the host's images has taken a step."""
        self._steps += 1
        if self._steps == STEPS and not self.rounds:
            self.warn(
                "never acts",
                f"the optimizer of the images took {STEPS} steps, and CMI was never added: no backward pass came "
                f"through {self.where}. Does the host call it on its synthetic images?",
            )

    def began(self, calls: Sequence[Call], single_class: int | None, *, absolute: bool) -> None:
        """A round of one backward pass begins.

        Args:
            calls: those it consists of.
            single_class: the class of all its images, if they are of one.
            absolute: whether lambda was given, and so is not measured on such rounds.
        """
        self.rounds += 1
        if self.rounds > LOOKED_AT:
            return
        if single_class is None:
            self._single = None
        elif self._single is not None:
            self._single.add(single_class)
            if len(self._single) > 1 and absolute:
                self.warn(
                    "one class per round",
                    f"every backward pass through {self.where} has images of one class only. CMI of each is the mean "
                    "over that class's images, so over all classes a lambda given as it is acts as many times as "
                    "strongly as there are classes. If the passes add up before a step, make them one round "
                    "(`with regularizer.round():`, or passes=); if the host steps class by class, say of how many "
                    "images its set is, set_size=, and each counts in proportion; or ask for a share "
                    "(weighting='relative'), which is measured on such passes.",
                )
        self._accumulates(calls)

    def _accumulates(self, calls: Sequence[Call]) -> None:
        """Whether the gradient of the round before still waits for a step, so that this one adds to it."""
        for ref, version in self._before:
            leaf = ref()
            if leaf is not None and leaf._version == version and leaf.grad is not None and bool(leaf.grad.any()):
                self._cut += 1
                break
        if self._cut >= 2:
            self.warn(
                "several passes",
                f"several backward passes through {self.where} add up before a step. Each is a round of its own, "
                "with centroids of its own images, and a lambda given as it is acts once for each. Make them one "
                "round: `with regularizer.round():` around the passes, or passes=N.",
            )
        nodes = [node for call in calls if call.node is not None and (node := call.node()) is not None]
        self._before = [(weakref.ref(leaf), leaf._version) for leaf in leaves(nodes=nodes)]

    def scaled(self) -> None:
        """Look for a GradScaler at work, of whose factor nothing was said."""
        for found in gc.get_objects():
            if issubclass(type(found), torch.amp.GradScaler) and found.is_enabled() and found._scale is not None:
                factor = found.get_scale()
                if factor != 1:
                    self.warn(
                        "scaled",
                        f"a GradScaler is at work, and its factor is {factor:g}. The layer sees gradients of the "
                        "scaled loss: a lambda given as it is would all but vanish beside them, and a share would come "
                        f"out as a lambda {factor:g} times too large. Pass scale=scaler.get_scale.",
                    )
                    return

    def close(self) -> None:
        """The layer was switched off: nothing more is to be said at the end of the program."""
        _WATCHES.discard(self)

    def report(self) -> None:
        """At the end: say so if the layer never came into action."""
        if self.expects_action and not self.rounds:
            self.warn(
                "never acts",
                f"the regulariser at {self.where} never came into action: no backward pass reached images that went "
                "through it. Check that the host calls it on its synthetic images and that they need a gradient.",
            )


_WATCHES: weakref.WeakSet[Watch] = weakref.WeakSet()


@atexit.register
def _report() -> None:
    """What was alive to the end of the program and never acted; a program that failed has said why."""
    if getattr(sys, "last_value", None) is not None:
        return
    for watch in list(_WATCHES):
        watch.report()
