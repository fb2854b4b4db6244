"""Rounds: which calls belong together, one estimate of CMI for all of them, and to each its slice of the gradient."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from ddplug.cmi import ONE_IMAGE_PER_CLASS
from ddplug.errors import InputError, WeightError
from ddplug.estimator import Estimator
from ddplug.history import History
from ddplug.rounds import Call, Collected, Identity, Round, gather, leaves
from ddplug.uncompiled import uncompiled
from ddplug.watch import Watch
from ddplug.weighting import Absolute, Relative, Schedule, Weighting


@dataclass
class RoundKeeper:
    """What happens between a call of the layer and the gradient that comes back to it.

    Safe in several threads: whatever changes is changed under one lock, and what a backward pass reaches is asked of
    autograd, which knows its own thread's passes only.
    """

    estimator: Estimator
    weighting: Weighting
    watch: Watch
    weight: float | str
    every: int
    passes: int
    set_size: int | None
    schedule: Schedule | None
    scale: Callable[[], float] | None
    announce: Callable[[str], object]
    history: History = field(default_factory=History)
    rounds: int = 0
    """Backward passes that came through so far, or as many rounds of several."""
    enabled: bool = True
    reported: int = 0
    """Rounds left out that were said to be."""

    def __post_init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._pending: list[weakref.ref[Call]] = []
        self._collected: Collected | None = Collected(self.passes) if self.passes > 1 else None
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        """With no call under way: a copy has its own."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_pending", "_collected", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def passed(self, views: Tensor, call: Call) -> Tensor:
        """`views`, behind a node that will ask for CMI's part of their gradient."""
        with self._lock:
            self.estimator.prepare_graphs()
            if self._collected is not None:
                # The host's graph ends here, at a leaf of ours, and is continued by hand: CMI's part comes later.
                call.source, views = views, views.detach().requires_grad_()
                self._collected.calls.append(call)
                self.watch.called(0)
            else:
                alive = [ref for ref in self._pending if ref() is not None]
                self.watch.called(len(self._pending) - len(alive))
                self._pending = [*alive, weakref.ref(call)]
        identity: Tensor = Identity.apply(views, call, self._on_backward)
        return identity

    def at_once(self, call: Call, grad: Tensor) -> Tensor | None:
        """A round of one call whose gradient is there already; what to add to it, or None for nothing."""
        with self._lock:
            self.estimator.prepare_graphs()
            self._start_round([call])
            return self._hand_out(call, grad)

    @contextmanager
    def together(self) -> Iterator[None]:
        """All backward passes within are one round, which ends with the block."""
        if self._collected is not None:
            raise InputError(
                "this is within a round already: rounds do not nest, and with passes= the layer counts by itself."
            )
        collected = self._collected = Collected()
        hook = register_optimizer_step_pre_hook(lambda optimizer, *_: _check_no_step(optimizer, collected))
        try:
            yield
        except BaseException:
            collected.drop()
            raise
        finally:
            hook.remove()
            self._collected = None
        self._finish(collected)

    def skip(self) -> None:
        """Leave out the calls whose backward pass is still to come."""
        with self._lock:
            waiting = [call for ref in self._pending if (call := ref()) is not None]
            if self._collected is not None:
                waiting += self._collected.waiting()
            for call in waiting:
                call.release()
            self._pending.clear()

    def stop(self) -> None:
        """Add nothing from now on, also not to calls whose backward pass is still to come."""
        self.enabled = False
        self._pending.clear()
        if self._collected is not None:
            self._collected.drop()
        self.watch.close()
        self.estimator.step.forget()

    @uncompiled
    def _on_backward(self, call: Call, grad: Tensor) -> Tensor | None:
        """What to add to the host's gradient `grad` on this call's views; None for nothing."""
        if call.source is not None:
            # Not under the lock: this walks the host's graph, on whatever threads autograd takes for it. The host's own
            # part reaches the images in its own time; the graph stays for CMI's, at the end of the round.
            torch.autograd.backward(call.source, grad, retain_graph=True)
            collected = self._collected
            if collected is not None and not call.done and collected.arrived(call, grad):
                self._finish(collected)
            return None
        with self._lock:
            return self._to_add(call, grad)

    def _to_add(self, call: Call, grad: Tensor) -> Tensor | None:
        if not self.enabled:
            return None
        if call.done:
            if call.acted:
                self.watch.warn(
                    "walked again",
                    "a graph whose gradient already had CMI's in it was walked a second time; CMI counts once per call "
                    "of the layer, so this time it was not added. If the first walk was for a log only, or the host "
                    "steps repeatedly on one graph, call the layer anew for each gradient that images are to follow.",
                )
            return None
        if call.round is None:
            live = [found for ref in self._pending if (found := ref()) is not None]
            reached = [found for found in live if found is call or found.reached()]
            self._start_round(reached)
            self._pending = [weakref.ref(found) for found in live if found not in reached]
        return self._hand_out(call, grad)

    @uncompiled
    def _finish(self, collected: Collected) -> None:
        """The end of a round of several backward passes: CMI's gradient goes the way that the host's has gone."""
        with self._lock:
            calls = collected.take()
            if not calls or not self.enabled:
                return
            self._start_round(calls)
            sources, arrived = [call.source for call in calls], [call.arrived for call in calls]
            extras = [self._hand_out(call, grad) for call, grad in zip(calls, arrived, strict=True) if grad is not None]
        reached = [(source, extra) for source, extra in zip(sources, extras, strict=True) if extra is not None]
        if reached:
            torch.autograd.backward([source for source, _ in reached], [extra for _, extra in reached])

    def _start_round(self, calls: list[Call]) -> None:
        """Estimate CMI on the views of all `calls` together and give each its slice of the gradient."""
        number = self.rounds
        factor = self.every * self._scheduled(number)
        if number % self.every or factor == 0:
            for call in calls:
                call.release()
            self.rounds += 1
            return
        views, labels = gather(calls)
        part = 1.0 if self.set_size is None else len(views) / self.set_size
        if self.weight == 0:
            found = self.estimator.value(views, labels)
        else:
            found = self.estimator(views, labels, all_classes=self.weighting.lam is None)
        self._look(calls, found.groups.one_image_per_class, found.groups.classes)
        finite = torch.isfinite(found.cmi)
        if found.grad is not None:
            finite = torch.isfinite(found.grad).all() & finite
        calibrating = self.weighting.lam is None
        round_ = Round(number, factor * part, part, len(calls), found.images, found.cmi, finite, calibrating)
        slices = torch.split(found.grad, [len(call.views) for call in calls]) if found.grad is not None else ()
        for position, call in enumerate(calls):
            call.round, call.grad = round_, slices[position] if slices else None
        self.rounds += 1

    def _look(self, calls: list[Call], one_image_per_class: bool, classes: Tensor) -> None:
        """Whether the round looks like a mistake."""
        if one_image_per_class:
            self.watch.warn("one image per class", ONE_IMAGE_PER_CLASS)
        if self.rounds == 0 and self.scale is None and self.weight != 0:
            self.watch.scaled()
        whole = self._collected is not None or any(call.source is not None for call in calls)
        expected = whole or self.set_size is not None or self.estimator.classes is not None
        single = int(classes[0]) if len(classes) == 1 and not expected else None
        absolute = isinstance(self.weighting, Absolute) and self.weight != 0
        self.watch.began([] if whole else calls, single, absolute=absolute)

    def _scheduled(self, number: int) -> float:
        if self.schedule is None:
            return 1.0
        factor = self.schedule(number)
        if not (isinstance(factor, int | float) and math.isfinite(factor) and factor >= 0):
            raise WeightError(f"the schedule gave {factor!r} for round {number}, expected a finite number >= 0.")
        return float(factor)

    def _hand_out(self, call: Call, grad: Tensor) -> Tensor | None:
        """This call's share of its round, lambda included; closes the round at its last call."""
        round_, delta = call.round, call.grad
        call.release()
        if round_ is None:
            return None
        extra = None
        lam = self.weighting.so_far
        if delta is not None:
            call.acted = True
            scale = 1.0 if self.scale is None else float(self.scale())
            round_.host = round_.host + _squared_norm(grad) / scale**2
            round_.own = round_.own + _squared_norm(delta)
            extra = (delta * (lam * round_.factor * scale)).to(grad.dtype)
            # Looked at last, when nothing more can overflow, and chosen on the device: no GPU need be waited for.
            round_.finite = round_.finite & torch.isfinite(extra).all()
            extra = torch.where(round_.finite, extra, 0.0)
        round_.open_calls -= 1
        if round_.open_calls == 0:
            self._close(round_, lam)
        return extra

    def _close(self, round_: Round, lam: float) -> None:
        if round_.calibrating and isinstance(self.weighting, Relative) and isinstance(round_.own, Tensor):
            self.weighting.observe(float(round_.host), float(round_.own) * round_.part**2)
            if self.weighting.lam is not None:
                self.announce(
                    f"ddplug: lambda = {self.weighting.lam:.6g} from now on (weight {self.weight}, measured over "
                    f"the first {round_.number + 1} rounds; CMI {round_.cmi.item():.4g} nats)"
                )
        applied = lam * round_.factor
        share = (round_.own / round_.host).sqrt() * applied if isinstance(round_.own, Tensor) else None
        read = self.history.append(round_.number, applied, round_.images, round_.cmi, round_.finite, share)
        if read and self.history.skipped > self.reported:
            self.reported = self.history.skipped
            self.watch.warn(
                "not finite",
                f"CMI's gradient was not finite in round {round_.number}; such rounds are left out and counted "
                "(history.skipped). If they keep coming, look at the images' range and input space, at lambda, and at "
                "the proxies.",
            )


def _check_no_step(optimizer: Optimizer, collected: Collected) -> None:
    """`InputError` if the images whose gradient is still incomplete are about to be stepped."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    waiting = [call.source for call in collected.calls if call.arrived is not None and call.source is not None]
    if any(id(leaf) in held for leaf in leaves(waiting)):
        raise InputError(
            "the optimizer of the images was stepped within a round, before CMI's gradient was added, which happens "
            "when the round ends. Put the step after the `with regularizer.round():` block."
        )


def _squared_norm(gradient: Tensor) -> Tensor:
    return gradient.detach().double().square().sum()
