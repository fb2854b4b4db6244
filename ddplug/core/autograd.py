"""The autograd side of the identity layer: calls, the rounds they form, and who keeps what alive.

In a round of one backward pass, a call's views are kept by the host's own graph and by nothing else: the layer only has
weak references to its calls, so a graph that is dropped without a backward pass takes its call along, and nothing
outlives a round. A round of several passes keeps the views of all of them, and their augmentation's graphs, until its
end, because no centroid is known before the last pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddplug.core.round import Round
from ddplug.errors import InputError, SecondDerivativeError


class Call:
    """One passage of views through the layer, waiting for its backward pass."""

    def __init__(self, views: Tensor, labels: Tensor, real: Any = None) -> None:
        self.views = views
        self.labels = labels
        self.real = self.given = real
        """The real images that they are compared with, a `RealBatch`, if the term compares."""
        self.version = views._version
        self.node: weakref.ref[Any] | None = None
        self.collected: Any = None
        """The round of several passes that it belongs to, a `Collected`."""
        self.source: Tensor | None = None
        """There, the views with their graph: the host's gradient is passed on to them by hand."""
        self.cut = False
        """Whether the host's graph ends at this call, so that its gradient must be passed on."""
        self.arrived: Tensor | None = None
        """The host's gradient, in a round of several passes, once it has come."""
        self.round: Round | None = None
        self.grad: Tensor | None = None
        self.provisional: weakref.ref[Any] | None = None
        """Its round until the images' step, a `ProvisionalRound`."""
        self.done = False
        self.acted = False

    def reached(self) -> bool:
        """True if the running backward pass will reach this call.

        Calls of an earlier forward pass whose graph is still alive, say because the host skipped its step, will not be.
        """
        node = self.node() if self.node is not None else None
        return node is not None and bool(torch._C._will_engine_execute_node(node))

    def release(self) -> None:
        """Done: let go of all tensors. A call adds its gradient once, however often the host walks its graph."""
        if self.arrived is not None:  # else its graph is still to be walked, and the host's gradient to be passed on
            self.source = None
        self.done = True
        self.round = self.grad = self.arrived = self.collected = self.real = None
        self.views = self.views.new_empty(0)

    def revive(self) -> None:
        """Wait for a backward pass again, as if there had been none."""
        node = None if self.node is None else self.node()
        if node is None:
            return
        try:
            (self.views,) = node.saved_tensors
        except RuntimeError as error:
            raise InputError(
                "a graph whose first gradient was wiped or only looked at is walked again, and its views are gone. "
                "Pass retain_graph=True to its first walk, or call the layer anew."
            ) from error
        self.views, self.real = self.views.detach(), self.given
        self.done = self.acted = False
        self.round = self.provisional = None


class Identity(torch.autograd.Function):
    """Forward the views as they are; backward, add what `on_backward(call, grad)` returns."""

    @staticmethod
    def forward(ctx: Any, views: Tensor, call: Call, on_backward: Callable[[Call, Tensor], Tensor | None]) -> Tensor:
        """The views themselves."""
        ctx.call, ctx.on_backward = call, on_backward
        ctx.save_for_backward(views)
        call.node = weakref.ref(ctx)
        # The same storage, without a copy; unlike a view it may be changed in place, as the host's own tensor may.
        return views.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        """The host's gradient and what there is to add."""
        if ctx.call.cut and torch.is_grad_enabled():
            raise InputError(
                "a backward pass with create_graph=True came within a round of several backward passes, whose gradient "
                "is complete only at its end. Use plain backward passes there, or the loss form, ddplug.CMI."
            )
        extra = ctx.on_backward(ctx.call, grad)
        if extra is None:
            return grad, None, None
        if torch.is_grad_enabled():
            # What is added depends on the views; with them as an input, whoever differentiates it again is told.
            return AddOnce.apply(grad, extra, *ctx.saved_tensors), None, None
        return grad + extra, None, None


class AddOnce(torch.autograd.Function):
    """grad + extra, for a gradient that may not be differentiated again: extra's own derivative is not there."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, extra: Tensor, views: Tensor) -> Tensor:
        """The sum."""
        return grad + extra

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """An error that names the way out."""
        raise SecondDerivativeError(
            "the gradient of the views was differentiated a second time, through ddplug.Regularizer, which has only a "
            "first derivative. Use the loss form there, which has both: "
            "loss = loss + lam * ddplug.CMI(proxies)(views, labels)."
        )


def gather(calls: list[Call]) -> tuple[Tensor, Tensor]:
    """The views (n, c, h, w) and int64 labels (n,) of all calls of a round, in the order of the calls.

    Labels stay on their device, unless they come from several.
    """
    shapes = {tuple(call.views.shape[1:]) for call in calls}
    if len(shapes) > 1:
        raise InputError(f"one backward pass reached views of different sizes, {sorted(shapes)}; expected one size.")
    if any(call.views._version != call.version for call in calls):
        raise InputError(
            "the views were changed in place after they passed the regulariser, so CMI would be estimated on other "
            "images than the host's. Put the layer after the change, or make the change on a copy."
        )
    devices = {call.labels.device for call in calls}
    home = devices.pop() if len(devices) == 1 else calls[0].views.device
    labels = [call.labels.to(home, torch.int64) for call in calls]
    if len(calls) == 1:
        return calls[0].views, labels[0]
    return torch.cat([call.views.to(calls[0].views.device) for call in calls]), torch.cat(labels)
