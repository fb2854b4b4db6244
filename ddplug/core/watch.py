"""Signs of a mistake around the layer, noticed while it runs and reported once: nothing may fail silently."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from ddplug.core.autograd import stepped_by
from ddplug.core.history import History
from ddplug.core.progress import Progress
from ddplug.errors import RAISED, DDPlugWarning

LOST = 40
"""Graphs dropped without a backward pass, before the first round, after which a warning is issued."""
UNTOUCHED = 200
"""Calls on views that need no gradient, with no other call before, after which a warning is issued."""
STEPS = 50
"""Steps of the images' optimizer without a round, after which a warning is issued."""
LOOKED_AT = 30
"""Rounds at the beginning that are checked for being parts of a larger batch, which waits for the device."""


class Watch:
    """Counts the calls and rounds of one layer, and warns about likely mistakes."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.where = "the layer"
        """The layer's name in messages."""
        self.expects_action = False
        """True if a program without a round is a mistake: after the first call, or once attached."""
        self._warned: set[str] = set()
        self._untouched = self._lost = self._cut = 0
        self.steps = 0
        """Steps of the host's images by optimizers of which ddplug knows that they hold these."""
        self.acted = 0
        """Those of them whose gradient had CMI."""
        self._single: set[int] | None = set()
        self._process = os.getpid()
        _WATCHES.add(self)

    def __getstate__(self) -> dict[str, Any]:
        """The state of a copy, which is not expected to act before it is called."""
        return {**self.__dict__, "expects_action": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _process=os.getpid())
        _WATCHES.add(self)

    def warn(self, about: str, text: str) -> None:
        """Warn, once per `about`."""
        if about not in self._warned:
            self._warned.add(about)
            warnings.warn(text, DDPlugWarning, stacklevel=2)

    def due(self, about: str) -> bool:
        """Return True if nothing was said `about` that yet."""
        return about not in self._warned

    def expect(self, about: str) -> None:
        """Do not warn `about` something that is intended."""
        self._warned.add(about)

    def untouched(self) -> None:
        """Count a call on views that need no gradient."""
        self._untouched += 1
        if self._untouched == UNTOUCHED and not self.expects_action and not self._progress.rounds:
            self.warn(
                "no gradient",
                f"{UNTOUCHED} batches of views came to {self.where}, and none needed a gradient, so CMI was added to "
                "none. If the host has not begun to distil, all is well; else look whether its synthetic images "
                "require a gradient where they pass the layer.",
            )

    def called(self, lost: int) -> None:
        """Count a call on views that need a gradient, and `lost` earlier calls that got no backward pass."""
        self.expects_action = True
        self._lost += lost
        if self._lost >= LOST and not self._progress.rounds:
            self.warn(
                "never acts",
                f"{self._lost} batches of views passed {self.where} and no backward pass ever came back to them, so "
                "CMI was never added. Does the host's loss depend on what the layer returned, or are the views "
                "detached or copied on the way?",
            )

    def stepped(self, *, acted: bool) -> None:
        """Count a step of the optimizer of the host's images, and whether CMI was added for it."""
        self.steps += 1
        self.acted += acted
        if self.steps == STEPS and not self._progress.rounds:
            self.warn(
                "never acts",
                f"the optimizer of the images took {STEPS} steps, and CMI was never added: no backward pass came "
                f"through {self.where}. Does the host call it on its synthetic images?",
            )

    def summary(self, history: History) -> str:
        """Describe in how many steps of the images CMI was added."""
        added = any(round_.lam for round_ in history)
        acted = f"{self.acted if added else 0} of {self.steps} steps of the images"
        if not self.steps:  # by an optimizer of which ddplug knows that it holds them
            acted = f"{len(history) if added else 0} rounds"
        shares = [round_.share for round_ in history if round_.share is not None]
        share = f", share {shares[-1]:.3g} at the last" if shares else ""
        return f"CMI acted in {acted} at {self.where}{share if added else ', lambda was 0 all the time'}"

    def began(self, single_class: int | None, *, absolute: bool, adds_up: bool) -> None:
        """Note a round that begins.

        Args:
            single_class: the class of all its images, if they are of one.
            absolute: True if lambda was given, so that it is not measured on these rounds.
            adds_up: True if the gradient of the round before still waits for a step.
        """
        if self._progress.rounds >= LOOKED_AT:
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
                    "(`with regularizer.round():`); if the host steps class by class, give the size of "
                    "the set, weighting=ddplug.Absolute(set_size=...), and each counts in proportion; or give a share "
                    "(weighting='relative'), which is measured on such passes.",
                )
        self._cut += adds_up
        if self._cut >= 2:
            self.warn(
                "several passes",
                f"several backward passes through {self.where} add up before a step. Each is a round of its own, "
                "with centroids of its own images, and a lambda given as it is acts once for each. Make them one "
                "round: `with regularizer.round():` around the passes.",
            )

    def scaled(self, grad: Tensor) -> None:
        """Warn about an active GradScaler if `grad` is as large as a scaled gradient."""
        if not bool(grad.abs().max() > 1):  # the gradient of an unscaled loss is far below 1
            return
        for found in gc.get_objects():
            if issubclass(type(found), torch.amp.GradScaler) and found.is_enabled() and found._scale is not None:
                factor = found.get_scale()
                if factor != 1 and found not in _KNOWN_SCALERS:
                    _KNOWN_SCALERS.add(found)
                    self.warn(
                        "scaled",
                        f"a GradScaler is at work, and its factor is {factor:g}. If it scales the loss of these views, "
                        "the layer sees gradients of the scaled loss: a lambda given as it is all but vanishes beside "
                        f"them, and a share comes out as a lambda {factor:g} times too large. Pass "
                        "scale=scaler.get_scale; or scale=lambda: 1.0, if it is another model's.",
                    )
                    return

    def close(self) -> None:
        """Issue no warning at the end of the program: the layer was switched off."""
        _WATCHES.discard(self)

    def report(self) -> None:
        """Warn if the layer never acted, except in a forked process."""
        if self.expects_action and not self._progress.rounds and self._process == os.getpid():
            self.warn(
                "never acts",
                f"the regulariser at {self.where} never came into action: no backward pass reached images that went "
                "through it. Check that the host calls it on its synthetic images and that they need a gradient."
                + (f" The host caught an error: {RAISED[0]}" if RAISED else ""),
            )


_WATCHES: weakref.WeakSet[Watch] = weakref.WeakSet()
_KNOWN_SCALERS: weakref.WeakSet[torch.amp.GradScaler] = weakref.WeakSet()
"""Scalers that a warning was issued about: each is named once, not by every layer."""


def count_steps(
    watch: Watch, images: Callable[[Optimizer, list[Tensor]], list[Tensor]], rounds: Callable[[], int]
) -> Callable[[], None]:
    """Count the steps of images until the function that is returned is called.

    One hook serves all watches. It keeps no layer alive.

    Args:
        watch: counts them.
        images: returns the images among the tensors that an optimizer steps and that have a gradient.
        rounds: returns the number of rounds in which CMI was added so far.
    """
    global _hook
    at_last_step: Any = WeakIdKeyDictionary()
    start = rounds()

    def stepped(optimizer: Optimizer, parameters: list[Tensor]) -> None:
        if held := images(optimizer, parameters):
            now = rounds()
            watch.stepped(acted=any(at_last_step.get(image, start) != now for image in held))
            at_last_step.update(dict.fromkeys(held, now))

    _COUNTED[watch] = stepped
    if _hook is None:
        _hook = register_optimizer_step_post_hook(_stepped)
    gone = weakref.ref(watch)

    def end() -> None:
        global _hook
        if (found := gone()) is not None:
            _COUNTED.pop(found, None)
        if not _COUNTED and _hook is not None:
            _hook.remove()
            _hook = None

    return end


_COUNTED: weakref.WeakKeyDictionary[Watch, Callable[[Optimizer, list[Tensor]], None]] = weakref.WeakKeyDictionary()
_hook: RemovableHandle | None = None


def _stepped(optimizer: Optimizer, *_: object) -> None:
    held = stepped_by(optimizer)
    if parameters := [parameter for parameter in held if parameter.grad is not None]:
        for stepped in list(_COUNTED.values()):
            stepped(optimizer, parameters)


@atexit.register
def _report() -> None:
    """Warn about layers that never acted, unless the program ends by an exception."""
    if getattr(sys, "last_value", None) is not None:
        return
    for watch in list(_WATCHES):
        watch.report()
