"""Rounds: the calls that belong together, one estimate of the term for all of them, and the slice of each."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ddplug.core.autograd import Call, Identity, check_plain, gather, leaves, uncompiled
from ddplug.core.estimator import Estimate
from ddplug.core.options import check_factor
from ddplug.core.progress import Progress, Snapshot
from ddplug.core.provisional import ProvisionalRounds, ThreadLock
from ddplug.core.watch import LOOKED_AT, Watch
from ddplug.errors import HostError, InputError, noted
from ddplug.terms.base import Groups


@dataclass
class OpenRound:
    """A round from its estimate until the gradient of its last call has come."""

    before: Snapshot
    """The state before the round."""
    applied: float
    """The factor on the term's gradient: lambda, `every`, the schedule, and `part`."""
    part: float
    """The round's images as a part of the whole set; 1 without `set_size`."""
    ends_passage: bool
    """True if the round is the last of a passage of the set."""
    open_calls: int
    """Calls whose gradient has not come yet."""
    found: Estimate
    finite: Tensor
    """True if the term and its gradient are finite, as a tensor on the device."""
    norms: Tensor
    """Squared norms of the host's gradient on the views, unscaled, and of the term's, without lambda: sums over the
    calls so far, (2,), in float64."""


@dataclass
class RoundBlock:
    """The calls within one `with regularizer.round():`.

    The host's graph owns a call until its gradient has come; then the block owns it.
    """

    entered: int = 0
    """Calls so far."""
    arrived: list[Call] = field(default_factory=list)
    """Calls whose gradient has come."""
    leaves: dict[int, tuple[Tensor, int]] = field(default_factory=dict)
    """The leaves behind these calls, and their versions at that time."""

    def arrive(self, call: Call, grad: Tensor) -> None:
        """Note that the host's gradient has come to `call`."""
        if call.host_grad is None:
            for leaf in leaves([call.source] if call.source is not None else []):
                self.leaves.setdefault(id(leaf), (leaf, leaf._version))
            self.arrived.append(call)
        call.host_grad = grad if call.host_grad is None else call.host_grad + grad

    def take(self) -> list[Call]:
        """Return the calls that a gradient came to, and forget them.

        Raises `InputError` if the images were changed after it came.
        """
        taken, self.arrived = [call for call in self.arrived if not call.done], []
        if any(leaf._version != version for leaf, version in self.leaves.values()):
            for call in taken:
                call.release()
            raise InputError(
                "the images were stepped, or changed in place, within a round, before CMI's gradient was added, which "
                "happens when the round ends. Put the step after the `with regularizer.round():` block."
            )
        return taken


class RoundKeeper:
    """The work between a call of the layer and the gradient that comes back to it.

    Several threads may use one layer: changes are made under one lock, and autograd knows which calls the backward pass
    of the present thread reaches.

    Args:
        progress: what the rounds modify.
        watch: warns about likely mistakes.
        scale: returns the factor on the host's loss, for mixed precision.
    """

    def __init__(self, progress: Progress, watch: Watch, scale: Callable[[], float] | None) -> None:
        self.progress, self.watch, self.scale = progress, watch, scale
        self.lam, self.estimator, self.processes = progress.lam, progress.estimator, progress.estimator.processes
        self.common: Mapping[str, Any] = {}
        """Settings that all processes of a run must share; set at the first call."""
        self.calls = 1
        """Least number of calls that a backward pass reaches."""
        self.enabled = True
        self._start()

    def _start(self) -> None:
        self._pending: list[weakref.ref[Call]] = []
        self._lock = ThreadLock()
        self.provisional = ProvisionalRounds(self._lock, self.progress, self.watch)
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        """The state without calls: a copy has its own."""
        without = ("_pending", "_lock", "provisional", "_local")
        return {key: value for key, value in self.__dict__.items() if key not in without}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    @property
    def _block(self) -> RoundBlock | None:
        """The round of several passes that this thread is in."""
        return getattr(self._local, "block", None)

    def passed(self, views: Tensor, call: Call) -> Tensor:
        """Return `views`, behind a node that adds the term's part to their gradient."""
        block = self._block
        with self._lock:
            alive = [ref for ref in self._pending if ref() is not None]
            self.watch.called(len(self._pending) - len(alive))
            self._pending = [*alive, weakref.ref(call)]
            if block is not None:
                call.block = block
                block.entered += 1
                if self.lam.weight != 0:
                    # The host's graph is cut here, and its gradient passed on by hand: the term's part comes later.
                    call.cut, call.source, views = True, views, views.detach().requires_grad_()
        identity: Tensor = Identity.apply(views, call, self._on_backward)
        return identity

    def at_once(self, call: Call, grad: Tensor) -> Tensor | None:
        """Return the addition to the gradient `grad` of a round of one call; None for no addition."""
        if self._block is not None:
            raise InputError(
                "the gradient is added at the optimizer's step here, so the step is the round, whatever passes it "
                "took: leave out round()."
            )
        if self.processes.together and self.processes.sharing == "averaged":
            raise InputError(
                "the gradient is added at the optimizer's step here, where it is averaged over the processes already "
                "and each has the whole set: pass processes='replicated'."
            )
        with self._lock:
            self.provisional.by_optimizer = True
            self._start_round([call])
            extra = self._hand_out(call, grad)
            self.provisional.publish()
            return extra

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make all backward passes within the `with` block one round, which ends with the block."""
        if self._block is not None:
            raise InputError("this is within a round already: rounds do not nest.")
        block = self._local.block = RoundBlock()
        try:
            yield
        except BaseException:
            for call in block.arrived:
                call.release()
            raise
        finally:
            del self._local.block
        if block.entered and not block.arrived and self.enabled:
            self.watch.warn(
                "nothing came",
                f"a round with {block.entered} batches of views ended, and no gradient had come to them. The "
                "backward passes belong within the `with regularizer.round():` block, as plain backward() calls: "
                "torch.autograd.grad and backward(inputs=...) do not reach the images there.",
            )
        self._release(block)
        self._finish(block)

    def skip(self) -> None:
        """Leave out the calls whose backward pass is still to come."""
        self._release(None)
        if self._block is not None:
            self._release(self._block)

    def _release(self, block: RoundBlock | None) -> None:
        """Leave out the calls of `block` whose backward pass is still to come; None for those outside of blocks."""
        with self._lock:
            waiting = self._waiting(block)
            for call in waiting:
                call.release()
            self._forget(waiting)

    def _waiting(self, block: RoundBlock | None) -> list[Call]:
        """Return the calls of `block` that no gradient has come to yet."""
        return [call for ref in self._pending if (call := ref()) is not None and call.block is block]

    def _forget(self, calls: list[Call]) -> None:
        """Wait for no gradient of `calls`."""
        gone = {id(call) for call in calls}
        self._pending = [ref for ref in self._pending if id(ref()) not in gone]

    def stop(self) -> None:
        """Add nothing from now on, also not to calls whose backward pass is still to come."""
        with self.provisional.committed() as progress:
            rounds = progress.rounds
        if self.enabled and rounds and not self.provisional.by_optimizer:
            self.progress.announce(
                f"ddplug: no optimizer was seen to step the images; each of {rounds} rounds counted as a step"
            )
        self.enabled = False
        self._pending.clear()
        self.watch.close()
        self.estimator.step.forget()

    @uncompiled
    @noted
    def _on_backward(self, call: Call, grad: Tensor) -> Tensor | None:
        """Return the addition to the host's gradient `grad` on this call's views; None for no addition."""
        check_plain(grad)
        block: RoundBlock | None = call.block
        if block is not None and not block.arrived and not _walking.rest:
            self.provisional.settle()  # now: this pass adds to gradients that may have been wiped before
        if call.cut:
            if call.source is None:
                raise InputError(
                    "a graph was walked again after the round of several backward passes that it belonged to was over. "
                    "Walk it within the round, or call the layer anew."
                )
            # Without the lock, as autograd may walk the host's graph on other threads. The graph is kept for the
            # term's part, which follows at the end of the round.
            torch.autograd.backward(call.source, grad, retain_graph=True)
        if _walking.rest:
            return None  # this pass carries the term's part of a round of some layer
        if block is not None:
            if self.enabled:
                block.arrive(call, grad)
                with self._lock:
                    self._forget([call])
            return None
        if call.cut:
            return None
        with self._lock:
            return self._to_add(call, grad)

    def _to_add(self, call: Call, grad: Tensor) -> Tensor | None:
        if not self.enabled:
            return None
        if call.done and not self._again(call):
            return None
        if call.round is None:
            self.provisional.settle()
            reached = [found for found in self._waiting(None) if found is call or found.reached()]
            if len(reached) < self.calls:
                raise HostError(
                    f"a backward pass reached {len(reached)} of the {self.calls} inner steps, as in a host that takes "
                    "one gradient per step. CMI of all steps around common centroids needs one pass through all; give "
                    "inner='one' or 'last' (--inner) instead."
                )
            before = self._start_round(reached)
            self.provisional.begin(before, reached)
            self._forget(reached)
        return self._hand_out(call, grad)

    def _again(self, call: Call) -> bool:
        """Return True if the first gradient of `call` was wiped, so that this pass counts in its place."""
        round_ = None if call.provisional is None else call.provisional()
        if round_ is None:
            if call.added:
                raise InputError(
                    "a graph was walked again after the step of the images that its first backward pass was for; CMI "
                    "counts once per call of the layer. Call the layer anew for each gradient that images follow."
                )
            return False
        if not round_.wiped():
            if call.added:
                self.watch.warn(
                    "walked again",
                    "a graph was walked a second time while the gradient of the first walk still waits for the step; "
                    "CMI counts once per call of the layer, so this time it was not added.",
                )
            return False
        self.provisional.undo(round_)
        for ref in round_.calls:
            if (found := ref()) is not None:
                found.revive()
                self._pending.append(weakref.ref(found))
        return True

    @uncompiled
    def _finish(self, block: RoundBlock) -> None:
        """End a round of several backward passes: backpropagate the term's gradient from the views to the images."""
        with self._lock:
            if not self.enabled or not (calls := block.take()):
                return
            if any(leaf._backward_hooks for leaf, _ in block.leaves.values()):
                self.watch.warn(
                    "hooks",
                    "a hook on the images' gradient sees it in two parts in a round of several backward passes: the "
                    "host's, and at the end the regulariser's. A norm that it computes is that of one part.",
                )
            sources, arrived = [call.source for call in calls], [call.host_grad for call in calls]
            before = self._start_round(calls)
            extras = [self._hand_out(call, grad) for call, grad in zip(calls, arrived, strict=True) if grad is not None]
        found = zip(sources, extras, strict=True)
        rest = [(source, extra) for source, extra in found if source is not None and extra is not None]
        if rest:
            _walking.rest = True
            try:
                with before:
                    # The graph is kept, as the host may still use parts of it; it is freed with the calls. Where it is
                    # shared with something that was walked beside the layer, torch asks for retain_graph=True there.
                    torch.autograd.backward([s for s, _ in rest], [extra for _, extra in rest], retain_graph=True)
            finally:
                _walking.rest = False
        self.provisional.add(before, calls, [source for source in sources if source is not None])

    def _start_round(self, calls: list[Call]) -> Snapshot:
        """Estimate the term on the views of all `calls` together and give each its slice; return the state before."""
        with Snapshot(self.progress) as before:
            self._estimate(calls, before)
        return before

    def _estimate(self, calls: list[Call], before: Snapshot) -> None:
        progress, set_size = self.progress, self.lam.how.set_size
        number, every = progress.rounds, self.estimator.compute.every
        schedule = self.lam.how.schedule
        factor = float(every)
        if schedule is not None:
            factor *= check_factor(f"the schedule's factor for round {number}", schedule(number))
        images = self._agreed(factor, sum(len(call.views) for call in calls))
        counted, whole = (1, 1) if set_size is None else (images, set_size)
        passage = progress.seen // whole
        progress.seen += counted
        # Whole passages are skipped: of a set that comes class by class, not always the same classes.
        if passage % every or factor == 0 or not images:
            for call in calls:
                call.release()
            progress.rounds += 1
            return
        views, labels = gather(calls)
        part = counted / whole
        if part > 1:
            self.watch.warn(
                "set size",
                f"a round has {images} views, more than set_size={set_size} for the whole set, so "
                "it counts more than once. Count every view of an image: set_size is in views.",
            )
        found = self.estimator(
            views, labels, [call.real for call in calls], gradient=self.lam.weight != 0,
            all_classes=self.lam.lam is None, measured=self.lam.measuring,
        )  # fmt: skip
        self._look(calls, found.groups)
        finite = torch.isfinite(found.value)
        if found.grad is not None:
            finite = torch.isfinite(found.grad).all() & finite
        if self.processes.together:
            finite = self.processes.total((~finite).double()) == 0
        ends = progress.seen // whole > passage
        norms, applied = torch.zeros_like(finite, dtype=torch.float64), self.lam.so_far * (factor * part)
        round_ = OpenRound(before, applied, part, ends, len(calls), found, finite, norms)
        slices: Sequence[Tensor] = ()
        if found.grad is not None:
            grad = found.grad if self.processes.factor == 1 else found.grad * self.processes.factor
            slices = torch.split(grad, [len(call.views) for call in calls])
        for position, call in enumerate(calls):
            call.round, call.term_grad = round_, slices[position].to(call.views.device) if slices else None
        progress.rounds += 1

    def _agreed(self, factor: float, images: int) -> int:
        """Return the number of views of the round in all processes; raise `HostError` if these differ otherwise."""
        if not self.processes.together:
            return images
        round_ = {"the number of rounds": self.progress.rounds, "lambda": self.lam.so_far, "the schedule": factor}
        return self.processes.agree({**round_, **self.common, **self.estimator.draws()}, images)

    def _look(self, calls: list[Call], groups: Groups) -> None:
        """Warn if the round looks like a mistake."""
        term, classes = self.estimator.term, groups.classes
        if groups.fewer_than(term.min_per_class):
            self.watch.warn("too few images per class", term.too_few)
        whole = any(call.block is not None for call in calls)
        expected = whole or self.lam.how.set_size is not None or self.estimator.compute.classes is not None
        single = int(classes[0]) if len(classes) == 1 and not expected else None
        absolute = self.lam.how.kind == "absolute" and self.lam.weight != 0
        adds_up = not whole and self.progress.rounds < LOOKED_AT and self.provisional.adds_up(calls)
        self.watch.began(single, absolute=absolute, adds_up=adds_up)

    def _hand_out(self, call: Call, grad: Tensor) -> Tensor | None:
        """Return the part of `call` in its round, lambda included; closes the round at its last call."""
        round_, delta = call.round, call.term_grad
        call.release()
        if round_ is None:
            return None
        with round_.before:
            return self._part(round_, call, grad, delta)

    def _part(self, round_: OpenRound, call: Call, grad: Tensor, delta: Tensor | None) -> Tensor | None:
        extra = None
        if delta is not None:
            call.added = True
            scale = 1.0 if self.scale is None else float(self.scale())
            # A call without a node is an optimizer's, whose gradients are not scaled.
            if self.scale is None and round_.before.rounds == 0 and call.node is not None and len(grad):
                self.watch.scaled(grad)
            home = round_.finite.device  # a host's calls may be on several devices
            norms = [_squared_norm(grad).to(home) / scale**2, _squared_norm(delta).to(home)]
            round_.norms = round_.norms + torch.stack(norms)
            extra = (delta * (round_.applied * scale)).to(grad.dtype)
            # Checked after the last product, which may overflow, and selected on the device, without waiting for it.
            round_.finite = round_.finite & torch.isfinite(extra).all().to(home)
            extra = torch.where(round_.finite.to(extra.device), extra, 0.0)
        round_.open_calls -= 1
        if round_.open_calls == 0:
            self._close(round_)
        return extra

    def _close(self, round_: OpenRound) -> None:
        term, how, found, share = self.estimator.term, self.lam.how, round_.found, None
        number = round_.before.rounds
        if found.grad is not None:
            if self.processes.together:
                sums = self.processes.total(torch.cat([round_.norms, (~round_.finite).to(round_.norms)[None]]))
                round_.norms, round_.finite = sums[:2] * self.processes.norms, sums[2] == 0
            host, own = round_.norms.unbind()
            # Of a loop that is unrolled, the host's gradient on the images has a part of each inner step.
            share = (own / host).sqrt() * (round_.applied / self.lam.factor)
            if self.lam.measuring:
                # Of m of k classes, the estimate's squared norm is k/m times the term's own in the mean over all draws.
                own = own * (found.drawn * round_.part**2)
                news = self.lam.observe(host, own, ends=round_.ends_passage, pooled=found.drawn < 1)
                if news is not None:
                    self.progress.announcements[number] = (
                        f"ddplug: {news} (weight {self.lam.weight:g}, {how.kind}, after {number + 1} rounds; "
                        f"{term.describe(found.value.item())})"
                    )
        read = self.progress.history.append(number, round_.applied, found.images, found.value, round_.finite, share)
        limit = EXCESS * self.lam.weight
        if how.kind != "absolute" and any(past.share is not None and past.share > limit for past in read):
            self.watch.warn(
                "excess",
                f"the gradient of {term.label} had more than {EXCESS} times the share of the host's own that "
                f"weight={self.lam.weight:g} asks for, in round {number} or shortly before. Since lambda was "
                "measured, the term's gradient has grown or the host's has fallen; nothing was clipped. "
                "Measure it over more rounds, ddplug.Relative(rounds=...), or all the time, weighting='sustained'.",
            )
        if any(past.skipped for past in read):
            self.watch.warn(
                "not finite",
                f"the gradient of {term.label} was not finite in round {number}. These rounds are left out and "
                "counted (history.skipped). If they keep coming, look at the images' range and input space, at lambda, "
                "and at the proxies.",
            )


EXCESS = 100
"""Times the weight that a round's share may have before a warning is issued."""


class _Walking(threading.local):
    """State of one thread."""

    rest = False
    """True while the thread backpropagates the term's part of a round, which other layers on the way leave as it is."""


_walking = _Walking()


def _squared_norm(gradient: Tensor) -> Tensor:
    return gradient.detach().double().square().sum()
