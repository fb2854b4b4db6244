"""The term of a batch of views and its gradient, which the regulariser computes once per round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ddplug.core import chunking
from ddplug.core.chunking import Plan
from ddplug.core.compiled import Compiled
from ddplug.core.options import Compute
from ddplug.errors import ProxyError, caution
from ddplug.proxies.pool import Proxy
from ddplug.proxies.representations import PLURAL, Representation
from ddplug.terms.base import Groups, Term
from ddplug.terms.cmi_real import RealCentroids
from ddplug.terms.real import Real
from ddplug.utils.memory import out_of_memory
from ddplug.utils.processes import SEPARATE, Processes

FAITHFUL = 0.99
"""Cosine between the gradients of a bf16 and of an exact pass below which a warning is issued."""

Result = TypeVar("Result")
Reals = tuple[Tensor, Groups]
"""Real images (m, c, h, w) that a term compares with, and their classes; of all processes, where there are several."""


class PieceByPiece:
    """The plain step: one or, where memory is short, two forward passes and one backward pass through a proxy.

    Args:
        representation: "feature" or "logit".
        term: the term.
        prepare: converts images to the proxies' input space.
        compute: precision of the network's layers, images per piece, and whether the network is compiled.
        processes: the processes that share the batch; `groups` are then those of all their images.
    """

    def __init__(
        self,
        representation: Representation,
        term: Term,
        prepare: Callable[[Tensor], Tensor],
        compute: Compute,
        processes: Processes = SEPARATE,
    ) -> None:
        self.representation, self.term, self.prepare = representation, term, prepare
        self.compute, self.processes = compute, processes
        self._fits: int | None = None
        """The largest number of images that fits into memory, once more did not fit."""
        self._compiled_kinds: dict[object, Compiled] = {}
        self._compared = set[str]()
        """The names of the proxies whose bf16 gradient was compared with the exact one."""
        self._bound: dict[tuple[str, torch.device], Term] = {}
        """The term bound to a fixed sample of real images, by the proxy's weights and device."""

    def __call__(
        self, proxy: Proxy, views: Tensor, groups: Groups, real: Reals | None = None, *, measured: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The term of `views` (n, c, h, w), a scalar, and its gradient, (n, c, h, w).

        A gradient that lambda is measured from is zero where it is made of rounding errors alone.
        """
        term = self._against(proxy, real, views.device)
        value, grad = self._computed(proxy, views, groups, term, measured=measured)
        if self.compute.precision == "bf16" and proxy.name not in self._compared:
            self._compared.add(proxy.name)
            self._compare(proxy, views, groups, grad, term)
        return value, grad

    def _compare(self, proxy: Proxy, views: Tensor, groups: Groups, grad: Tensor, term: Term) -> None:
        """Warn if a bf16 forward pass changes the direction of the gradient under `proxy`."""
        plain = replace(self.compute, precision="exact", compile=False)
        exact = PieceByPiece(self.representation, self.term, self.prepare, plain, self.processes)
        _, expected = exact._computed(proxy, views, groups, term)
        cosine = float(torch.nn.functional.cosine_similarity(grad.double().flatten(), expected.double().flatten(), 0))
        if cosine < FAITHFUL:
            caution(
                f"under proxy '{proxy.name}' ({type(proxy.network).__name__}) the gradient of {self.term.label} "
                f"in bf16 has a cosine of {cosine:.3f} with the exact one, expected {FAITHFUL} or more: a bf16 forward "
                "pass moves its activations across the kinks of the ReLUs. Leave precision out, which keeps the "
                "forward pass exact.",
            )

    def _computed(
        self, proxy: Proxy, views: Tensor, groups: Groups, term: Term, *, measured: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The term and its gradient on the views."""
        if not len(views):  # in one of several processes: the term is that of the other processes' images
            every = self.processes.gather(self._seen(proxy, views))[0]
            value, _ = term.value_and_grad(every.double(), groups)
            return value.to(views.dtype), torch.zeros_like(views)
        plan = self.plan(proxy, views)
        if self.compute.compile:
            proxy = self._compiled(proxy, views)
        (features, graphs), plan = self._fitting(lambda now: self._forward(proxy, views, now), plan)
        gathered, own = self.processes.gather(features)
        # In float64, because log(P / Q) nearly cancels for tight classes. The table of features is small.
        every = gathered.double()
        value, derivative = term.value_and_grad(every, groups)
        if measured:
            derivative = _beyond_rounding(term, every, groups, derivative, self._rounding(features))

        def backward(now: Plan) -> Tensor:
            if now != plan:
                graphs.clear()
            return self._backward(proxy, views, derivative[own], now, graphs)

        return value.to(views.dtype), self._fitting(backward, plan)[0]

    def _rounding(self, features: Tensor) -> float:
        """The relative error of one rounding of `features`."""
        return torch.finfo(torch.bfloat16 if self.compute.precision == "bf16" else features.dtype).eps

    def _fitting(self, work: Callable[[Plan], Result], plan: Plan) -> tuple[Result, Plan]:
        """Return `work(plan)` and the plan, which has smaller pieces if memory runs out."""
        while True:
            try:
                return work(plan), plan
            except Exception as error:
                smaller = plan.smaller() if out_of_memory(error) else None
                if smaller is None:
                    raise
            # Outside the except clause, the error no longer keeps the tensors of the attempt alive.
            if self._fits is None:
                caution(
                    f"memory ran out with {plan.piece} images at a time in a proxy, so {smaller.piece} are taken from "
                    "now on (fewer, if need be), which changes nothing but the time. To begin so, pass "
                    f"compute=ddplug.Compute(chunk={smaller.piece}), or --chunk {smaller.piece}.",
                )
            plan, self._fits = smaller, smaller.piece

    def _forward(self, proxy: Proxy, views: Tensor, plan: Plan) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The features of `views`, (n, d), and the last pieces with their graphs."""
        parts = torch.split(views, plan.piece)
        features: list[Tensor] = []
        graphs: list[tuple[Tensor, Tensor]] = []
        for number, part in enumerate(parts):
            if number < len(parts) - plan.kept:
                with torch.no_grad():
                    features.append(self.features(proxy, part))
            else:
                graphs.append(self._with_graph(proxy, part))
                features.append(graphs[-1][1].detach())
        return torch.cat(features), graphs

    def _backward(
        self, proxy: Proxy, views: Tensor, derivative: Tensor, plan: Plan, graphs: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Return the gradient on `views` for the `derivative` on their features; consumes `graphs`."""
        parts, directions = torch.split(views, plan.piece), torch.split(derivative, plan.piece)
        gradients: list[Tensor] = []
        # From the last, so that the kept graphs are freed before other graphs are made.
        for part, direction in zip(reversed(parts), reversed(directions), strict=True):
            leaf, seen = graphs.pop() if graphs else self._with_graph(proxy, part)
            gradients += torch.autograd.grad(seen, leaf, direction.to(seen.dtype))
            del leaf, seen
        return torch.cat(gradients[::-1])

    def value(self, proxy: Proxy, views: Tensor, groups: Groups, real: Reals | None = None) -> Tensor:
        """The term of `views` (n, c, h, w) alone, a scalar."""
        every, _ = self.processes.gather(self._seen(proxy, views))
        return self._against(proxy, real, views.device)(every.double(), groups).to(views.dtype)

    def _against(self, proxy: Proxy, real: Reals | None, device: torch.device) -> Term:
        """The term, bound to the features of the real images that it compares with, or to the proxy's centroids."""
        if not isinstance(self.term, RealCentroids):
            if real is None:
                return self.term
            features = self.processes.gather(self._seen(proxy, real[0]))[0]
            return self.term.against(Real(features.double(), real[1]))
        key = proxy.digest(), device
        if key not in self._bound:  # the same in all processes
            if (stored := proxy.centroids.get((self.representation, self.term.temperature))) is not None:
                self._bound[key] = self.term.around(stored.to(device))
            elif real is None:
                return self.term
            else:
                features = self._seen(proxy, real[0].to(device))
                self._bound[key] = self.term.against(Real(features.double(), real[1]))
        return self._bound[key]

    def _seen(self, proxy: Proxy, images: Tensor) -> Tensor:
        """The features of `images`, (n, d), without a graph."""

        def pieces(plan: Plan) -> Tensor:
            return torch.cat([self.features(proxy, part) for part in torch.split(images, plan.piece)])

        with torch.no_grad():
            if len(images):
                return self._fitting(pieces, self.plan(proxy, images))[0]
            # Not every network takes an empty batch.
            return self.features(proxy, images.new_zeros(1, *images.shape[1:]))[:0]

    def plan(self, proxy: Proxy, views: Tensor) -> Plan:
        """Return the plan by which `views` are split for `proxy`."""
        if len(views) == 1:
            return Plan(1, 1)
        key = (views.shape[1:], views.dtype, views.device, self.representation, self.compute.precision)
        if key not in proxy.costs:
            proxy.costs[key] = chunking.measure(lambda images: self.features(proxy, images), views)
        return chunking.plan(len(views), proxy.costs[key], self.compute.chunk, views.device).at_most(self._fits)

    def features(self, proxy: Proxy, images: Tensor) -> Tensor:
        """Features of `images`, (n, d), in the proxy's own dtype."""
        return proxy(self.prepare(images), self.representation, self.compute.precision)

    def _compiled(self, proxy: Proxy, views: Tensor) -> Compiled:
        if proxy.kind not in self._compiled_kinds:
            self._compiled_kinds[proxy.kind] = Compiled(proxy, self.representation)
        found = self._compiled_kinds[proxy.kind]
        found.take(proxy)
        found.check(proxy, self.prepare(views[:2]))
        return found

    def forget(self) -> None:
        """Drop the compiled networks."""
        self._compiled_kinds.clear()

    def __getstate__(self) -> dict[str, Any]:
        """The state without compiled networks."""
        return {**self.__dict__, "_compiled_kinds": {}}

    def _with_graph(self, proxy: Proxy, part: Tensor) -> tuple[Tensor, Tensor]:
        leaf = part.detach().requires_grad_()
        seen = self.features(proxy, leaf)
        if not seen.requires_grad:
            raise ProxyError(
                f"the {PLURAL[self.representation]} of proxy '{proxy.name}' ({type(proxy.network).__name__}) do not "
                "depend differentiably on the images: something in its forward pass is detached or under no_grad. No "
                "gradient goes through it; use another network or head."
            )
        return leaf, seen


ROUNDINGS = 8
"""The error of a feature in roundings of the largest feature: that of a network's last sums in any order."""


def _beyond_rounding(term: Term, features: Tensor, groups: Groups, derivative: Tensor, eps: float) -> Tensor:
    """Return `derivative` (n, d) of the term, or zeros where it is made of rounding errors alone.

    Where the images of each class are all but equal, log(P / Q) cancels and the rest is noise, to which a share would
    give any lambda. The derivative is computed a second time, of features off by `ROUNDINGS` roundings in alternating
    directions. If it moves by more than half of its norm, it is noise. No number is read from the device.
    """
    if not len(features):
        return derivative
    signs = torch.ones_like(features).flatten()
    signs[::2] = -1
    signs = signs.view_as(features) * (1 - 2 * (torch.arange(len(features), device=features.device) % 2))[:, None]
    _, moved = term.value_and_grad(features + signs * (ROUNDINGS * eps * features.abs().amax()), groups)
    known = (moved - derivative).norm() <= 0.5 * derivative.norm()
    # A derivative that is not finite is returned as it is, so that the round is left out and counted.
    return torch.where(known | ~torch.isfinite(derivative).all(), derivative, 0.0)
