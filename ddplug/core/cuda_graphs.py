"""CUDA graphs for the regulariser's step: at shapes that keep coming, its hundreds of kernels start as one.

A step is captured for a slot, so that one graph serves every proxy of a kind. Capturing happens between rounds, on the
host's own thread and never within its backward pass. Whatever cannot be captured runs as it would without.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ddplug.core.slots import Slot
from ddplug.core.step import Step
from ddplug.errors import DDPlugWarning
from ddplug.proxies.pool import Proxy
from ddplug.terms.base import Groups

AFTER = 3
"""Rounds of a shape before it is captured."""
AT_MOST = 8
"""Graphs alive at a time; each holds on to the memory of a step."""

Result = tuple[Tensor, Tensor]
Capture = Callable[[Callable[[], Result]], tuple[Callable[[], object], Result]]
"""Takes a function of no arguments, and returns what repeats it and the tensors that it leaves its results in."""


class OnCuda:
    """Captures functions as CUDA graphs that share one pool of memory, as they are never replayed at the same time."""

    def __init__(self) -> None:
        self._memory: Any = None

    def __call__(self, function: Callable[[], Result]) -> tuple[Callable[[], object], Result]:
        """Capture `function`, after two runs to warm up; raises whatever stands in the way of it."""
        before, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        strict = torch.cuda.get_sync_debug_mode()
        self._memory = self._memory or torch.cuda.graph_pool_handle()
        try:
            side.wait_stream(before)
            with torch.cuda.stream(side):
                function()
                # What waits for the device cannot be captured, and had better fail before the capture than within.
                torch.cuda.set_sync_debug_mode("error")
                function()
            torch.cuda.set_sync_debug_mode(strict)
            before.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Other threads, such as the host's data loaders, may do on the device what they like meanwhile.
            with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
                result = function()
        finally:
            torch.cuda.set_sync_debug_mode(strict)
            torch.cuda.set_stream(before)  # where a failed capture leaves older versions of torch on its own stream
        return graph.replay, result


class Graphs:
    """A step that is replayed from a graph where it can be.

    Args:
        step: the plain one.
        capture: what makes a graph of it.
    """

    def __init__(self, step: Step, capture: Capture | None = None) -> None:
        self.step, self.capture = step, capture or OnCuda()
        self._seen: Counter[Hashable] = Counter()
        self._wanted: dict[Hashable, tuple[Proxy, Tensor, Groups]] = {}
        self._made: dict[Hashable, _Captured | None] = {}

    def __call__(self, proxy: Proxy, views: Tensor, groups: Groups) -> Result:
        """CMI of `views` and its gradient, as the plain step has them."""
        if not self.possible(views):
            return self.step(proxy, views, groups)
        key = (proxy.kind, views.shape, views.dtype, views.device, len(groups.counts))
        made = self._made.get(key)
        if made is not None:
            if made.serves(proxy) is None:
                return self._tried(made, proxy, views, groups)
            return made.replay(proxy, views, groups) if made.serves(proxy) else self.step(proxy, views, groups)
        self._seen[key] += 1
        if self._seen[key] >= AFTER and key not in self._made and len(self._made | self._wanted) < AT_MOST:
            self._wanted[key] = (proxy, torch.empty_like(views), groups)
        return self.step(proxy, views, groups)

    def _tried(self, made: _Captured, proxy: Proxy, views: Tensor, groups: Groups) -> Result:
        """The plain step, at a proxy's first turn, and a look whether the graph says the same."""
        value, grad = self.step(proxy, views, groups)
        _, replayed = made.replay(proxy, views, groups)
        # A broken round says nothing; the next one will.
        if torch.isfinite(grad).all():
            same = bool((replayed - grad).norm() <= 0.05 * grad.norm())
            made.note(proxy, same)
            if not same:
                self._warn(f"a graph of proxies like '{proxy.name}' gives something else for it than the network does")
        return value, grad

    def possible(self, views: Tensor) -> bool:
        """Whether there are graphs where `views` are."""
        return views.is_cuda

    def make_wanted(self) -> None:
        """Capture what rounds have asked for; to be called outside of any backward pass."""
        if not self._wanted or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
            return
        wanted, self._wanted = self._wanted, {}
        for key, (proxy, views, groups) in wanted.items():
            try:
                self._made[key] = _Captured(self.step, self.capture, proxy, views, groups)
            except Exception as error:  # a network may do anything; without a graph all is as it was
                self._made[key] = None
                self._warn(f"it could not be captured: {type(error).__name__}: {str(error).partition(chr(10))[0]}")

    def forget(self) -> None:
        """Let go of all graphs and their memory."""
        self._made.clear()
        self._wanted.clear()

    @staticmethod
    def _warn(why: str) -> None:
        warnings.warn(
            f"the regulariser's step goes on without a CUDA graph, with the same numbers ({why}). graphs=False does "
            "not try.",
            DDPlugWarning,
            stacklevel=3,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy captures for itself."""
        return type(self), (self.step,)


class _Captured:
    """A graph and the tensors that it reads and writes."""

    def __init__(self, step: Step, capture: Capture, proxy: Proxy, views: Tensor, groups: Groups) -> None:
        self._tried: dict[int, bool] = {}
        self._slot = Slot(proxy)
        self._slot.costs.update(proxy.costs)  # measuring would wait for the device, which a graph cannot
        self._views = torch.zeros_like(views)
        self._groups = Groups(groups.classes.clone(), groups.index.clone(), groups.counts.clone())
        here: AbstractContextManager[object] = torch.cuda.device(views.device) if views.is_cuda else nullcontext()
        with here, torch.enable_grad(), torch.autocast(views.device.type, enabled=False):
            self._repeat, self._result = capture(lambda: step(self._slot, self._views, self._groups))

    def serves(self, proxy: Proxy) -> bool | None:
        """Whether it gives what `proxy` does; None if that was not tried yet."""
        return self._tried.get(id(proxy))

    def note(self, proxy: Proxy, serves: bool) -> None:
        """Remember that."""
        self._tried[id(proxy)] = serves

    def replay(self, proxy: Proxy, views: Tensor, groups: Groups) -> Result:
        self._slot.take(proxy)
        self._views.copy_(views)
        self._groups.index.copy_(groups.index)
        self._groups.counts.copy_(groups.counts)
        self._repeat()
        value, grad = self._result
        return value.clone(), grad.clone()  # the next replay writes over them
