"""Signs of a mistake around the layer, noticed while it runs and reported once: nothing may fail silently."""

from __future__ import annotations

import atexit
import functools
import gc
import os
import sys
import weakref
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.utils.weak import WeakIdKeyDictionary

from ddplug.core.autograd import stepped_by
from ddplug.core.history import History
from ddplug.core.progress import Progress
from ddplug.errors import caught, caution
from ddplug.proxies.doubts import Likeness

LOST = 40
"""Graphs dropped without a backward pass, before the first round, after which a warning is issued."""
UNTOUCHED = 200
"""Calls on views that need no gradient, with no other call before, after which a warning is issued."""
STEPS = 50
"""Steps of the images' optimizer without a round, after which a warning is issued."""
AT_AN_END = 5
"""Most rounds at the beginning and at the end whose medians the summary compares."""
LOOKED_AT = 30
"""Rounds at the beginning that are checked for being parts of a larger batch, which waits for the device."""


Images = Callable[[Optimizer, list[Tensor]], list[Tensor]]
"""A function that returns the synthetic images among the tensors that an optimizer steps and that have a gradient."""


class Watch:
    """Counts the calls and rounds of one layer, and warns about likely mistakes."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.where = "the layer"
        """The layer's name in messages."""
        self._warned: set[str] = set()
        self._untouched = self._lost = self._cut = 0
        self.steps = 0
        """Steps of the host's images by optimizers of which ddplug knows that they hold these."""
        self.acted = 0
        """Those of them whose gradient had CMI."""
        self._before = 0
        """Rounds before the steps were counted."""
        self._single: set[int] | None = set()
        self.likeness: Likeness | None = None
        """Compares the first views with real images, where their space is not sure."""
        self._start()

    def _start(self) -> None:
        self.expects_action = False
        """True if a program without a round is a mistake: after the first call, or once attached."""
        self._images: Images | None = None
        self._behind: Any = WeakIdKeyDictionary()
        """Leaves behind the views, which stand for the images where these are made of others, by a generator say."""
        self._direct = False
        """True if images themselves were stepped."""
        self._at_last_step: Any = WeakIdKeyDictionary()
        """Rounds so far at the last step of each image."""
        self._process = os.getpid()
        _WATCHES.add(self)
        _watch_steps()

    def __getstate__(self) -> dict[str, Any]:
        """The state of a copy, which is not expected to act before it is called."""
        return {**self.__dict__, "_images": None, "_behind": None, "_at_last_step": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def warn(self, about: str, text: str) -> None:
        """Warn, once per `about`."""
        if about not in self._warned:
            self._warned.add(about)
            caution(text)

    def due(self, about: str) -> bool:
        """Return True if no warning `about` that was issued yet."""
        return about not in self._warned

    def expect(self, about: str) -> None:
        """Do not warn `about` something that is intended."""
        self._warned.add(about)

    def look(self, views: Tensor) -> None:
        """Warn if the views of the first calls are unlike real images."""
        if self.likeness is not None and (text := self.likeness.add(views)):
            self.warn(text, text)

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
            self._never_acts(f"{self._lost} batches of views passed and no backward pass came back to them")

    def count_steps(self, images: Images) -> None:
        """Count the steps of the images from now on."""
        self._images, self._before = images, self._progress.history.total

    def made_of(self, leaves: list[Tensor]) -> None:
        """Note the leaves behind the views of a round."""
        if not self._direct:
            self._behind.update(dict.fromkeys(leaves))

    def stepped(self, optimizer: Optimizer, parameters: list[Tensor]) -> None:
        """Count a step of the host's images, and whether CMI was added for it."""
        if self._images is None:
            return
        if held := self._images(optimizer, parameters):
            self._direct = True
        elif not self._direct:
            held = [parameter for parameter in parameters if parameter in self._behind]
        if not held:
            return
        history = self._progress.history
        self.steps += 1
        self.acted += history.acted_since(min(self._at_last_step.get(image, self._before) for image in held))
        self._at_last_step.update(dict.fromkeys(held, history.total))
        if self.steps == STEPS and not self._progress.rounds:
            self._never_acts(f"the optimizer of the images took {STEPS} steps and no backward pass came through it")

    def summary(self, history: History) -> str:
        """Describe in how many steps of the images the term was added, and its value at the beginning and the end."""
        term = self._progress.estimator.term
        values = [round_.value for round_ in history if round_.lam and not round_.skipped]
        acted = f"{self.acted} of {self.steps} steps of the images"
        if not self.steps:  # by an optimizer of which ddplug knows that it holds them
            acted = f"{len(values)} of {len(history)} rounds"
        if not values:
            return f"{term.label} acted in {acted} at {self.where}, lambda was 0 all the time"
        measured = "" if history[0].lam else " (lambda was measured first)"
        said = f"{term.label} acted in {acted}{measured} at {self.where}"
        some = max(1, min(AT_AN_END, len(values) // 2))
        first, last = median(values[:some]), median(values[-some:])
        shares = [round_.share for round_ in history if round_.share is not None]
        share = f", share {shares[-1]:.3g} at the last" if shares else ""
        return f"{said}, {term.label} from {first:.3g} to {last:.3g} {term.unit}{share}"

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
                    "(weighting='relative'), which is measured on these passes.",
                )
        self._cut += adds_up
        if self._cut >= 2:
            self.warn(
                "several passes",
                f"several backward passes through {self.where} add up before a step. Each is a round of its own, "
                "with centroids of its own images, and a lambda given as it is acts once for each. Make them one "
                "round: `with regularizer.round():` around the passes.",
            )

    def by_hand(self, passes: int) -> None:
        """Warn about a step whose gradient may be the sum of what several passes returned."""
        self.warn(
            "several passes",
            f"the host set the images' gradient by hand, after {passes} torch.autograd.grad passes through "
            f"{self.where}. Each added CMI of its own views: if the host adds up what they returned, a lambda given as "
            "it is acts once for each. In an unrolled loop give the number of its steps (--steps), so that one of them "
            "is regularised; or attach to the optimizer of the images, where CMI is added once per step.",
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
            self._never_acts("no backward pass reached images that went through it")

    def _never_acts(self, seen: str) -> None:
        self.warn(
            "never acts",
            f"the regulariser at {self.where} never came into action: {seen}. Check that the host calls it on its "
            "synthetic images, that they need a gradient there, and that the loss depends on what it returns, not on a "
            "copy or detached." + caught(),
        )


_WATCHES: weakref.WeakSet[Watch] = weakref.WeakSet()
_KNOWN_SCALERS: weakref.WeakSet[torch.amp.GradScaler] = weakref.WeakSet()
"""Scalers that a warning was issued about: each is named once, not by every layer."""


@functools.cache
def _watch_steps() -> None:
    """Register one hook on the steps of all optimizers, once."""
    register_optimizer_step_post_hook(_stepped)


def _stepped(optimizer: Optimizer, *_: object) -> None:
    if parameters := [parameter for parameter in stepped_by(optimizer) if parameter.grad is not None]:
        for watch in list(_WATCHES):
            watch.stepped(optimizer, parameters)


@atexit.register
def _report() -> None:
    """Warn about layers that never acted, unless the program ends by an exception."""
    if getattr(sys, "last_value", None) is not None:
        return
    for watch in list(_WATCHES):
        watch.report()
