"""The autograd side of the layer: its calls, its node in the host's graph, and the leaves behind a graph.

In a round of one backward pass, the views of a call are kept by the host's graph alone. The layer has weak references
to its calls, so a graph that is dropped without a backward pass takes its call along.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from ddplug.errors import InputError
from ddplug.terms.base import transformed

_P = ParamSpec("_P")
_R = TypeVar("_R")


def uncompiled(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return `function` so that torch.compile leaves it and all that it calls as they are.

    Counters and weak references would break the graph anyway. This is `torch.compiler.disable`, except that torch's
    compiler is imported when the function is first called, not when ddplug is imported.
    """
    left: Any = _disable_dynamo(function)
    # As `torch.compiler.disable(reason=...)` does, which torch has from 2.7 on.
    left._torchdynamo_disable, left._torchdynamo_disable_msg = True, _REASON
    return cast(Callable[_P, _R], left)


_REASON = (
    "ddplug counts rounds and looks at values here, which cannot be compiled. The graph has to break here: leave "
    "fullgraph=True out of torch.compile"
)


def stepped_by(optimizer: Optimizer) -> list[Tensor]:
    """Return the tensors that an optimizer steps, those of all its groups."""
    return [tensor for group in optimizer.param_groups for tensor in group["params"]]


def compares_losses(optimizer: Optimizer) -> bool:
    """Return False for LBFGS without a line search: of its closure it follows the gradients alone."""
    return any(group.get("line_search_fn", "unknown") is not None for group in optimizer.param_groups)


class Call:
    """One batch of views that has passed through the layer and waits for its gradient."""

    def __init__(self, views: Tensor, labels: Tensor, real: Any = None) -> None:
        self.views = views
        self.labels = labels
        self.real = real
        """The real images of the call, a `RealBatch`, for a term that compares with real images."""
        self.version = views._version
        self.node: weakref.ref[Any] | None = None
        """The layer's node in the host's graph; None for views that an optimizer holds."""
        self.block: Any = None
        """The `RoundBlock` that the call belongs to, in a round of several backward passes."""
        self.cut = False
        """True if the host's graph ends at this call, so that its gradient must be passed on to `source`."""
        self.source: Tensor | None = None
        """The views with their graph, if `cut`."""
        self.host_grad: Tensor | None = None
        """The host's gradient on the views, once it has come, in a round of several backward passes."""
        self.round: Any = None
        """The `OpenRound` that the call is part of."""
        self.term_grad: Tensor | None = None
        """The term's gradient on the views, without lambda."""
        self.provisional: weakref.ref[Any] | None = None
        """The `ProvisionalRound` that the call was part of, until the images' step."""
        self.done = False
        """True if nothing is added to the call's gradient any more."""
        self.added = False
        """True if the term's gradient was added."""

    def reached(self) -> bool:
        """Return True if the running backward pass will reach this call.

        It will not reach calls of an earlier forward pass whose step the host has skipped.
        """
        node = self.node() if self.node is not None else None
        return node is not None and bool(torch._C._will_engine_execute_node(node))

    def release(self) -> None:
        """Add nothing from now on, and drop all tensors but the real images."""
        if self.host_grad is not None:  # else the host's gradient must still be passed on to the source
            self.source = None
        self.done = True
        self.round = self.term_grad = self.host_grad = self.block = None
        self.views = self.views.new_empty(0)

    def revive(self) -> None:
        """Wait for a gradient again, as if none had come."""
        node = None if self.node is None else self.node()
        if node is None:
            return
        self.views = node.saved_tensors[0].detach()
        self.done = self.added = False
        self.round = self.provisional = None


class Identity(torch.autograd.Function):
    """Forward: the views. Backward: the gradient plus the result of `on_backward(call, gradient)`."""

    @staticmethod
    def forward(ctx: Any, views: Tensor, call: Call, on_backward: Callable[[Call, Tensor], Tensor | None]) -> Tensor:
        """Return the views."""
        ctx.call, ctx.on_backward = call, on_backward
        ctx.save_for_backward(views)
        call.node = weakref.ref(ctx)
        # The same storage without a copy. Unlike a view, a detached tensor may be changed in place by the host.
        return views.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        """Return the host's gradient and the term's part."""
        if ctx.call.cut and torch.is_grad_enabled():
            raise InputError(
                "a backward pass with create_graph=True came within a round of several backward passes, whose gradient "
                "is complete only at its end. Use plain backward passes there, or the loss form, ddplug.CMI."
            )
        extra = ctx.on_backward(ctx.call, grad)
        if extra is None:
            return grad, None, None
        if torch.is_grad_enabled():
            # `extra` depends on the views. As an input of the sum, they lead a second derivative to the error below.
            return AddOnce.apply(grad, extra, *ctx.saved_tensors), None, None
        return grad + extra, None, None


class AddOnce(torch.autograd.Function):
    """The sum of two gradients; raises if it is differentiated, because the derivative of `extra` is unknown."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, extra: Tensor, views: Tensor) -> Tensor:
        """Return the sum."""
        return grad + extra

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Raise `InputError`."""
        raise InputError(
            "the gradient of the views was differentiated a second time, through ddplug.Regularizer, which has only a "
            "first derivative. Use the loss form there, which has both: "
            "loss = loss + lam * ddplug.CMI(proxies)(views, labels)."
        )


def gather(calls: list[Call]) -> tuple[Tensor, Tensor]:
    """Return the views (n, c, h, w) and int64 labels (n,) of all calls of a round, in the order of the calls.

    Labels stay on their device, unless they are on several.
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


def leaves(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return the leaf tensors that `tensors` depend on, each once."""
    tensors = list(tensors)
    found = {id(tensor): tensor for tensor in tensors if tensor.grad_fn is None and tensor.requires_grad}
    behind = accumulators(tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None)
    return list({**found, **{id(node.variable): node.variable for node in behind}}.values())


def accumulators(nodes: Iterable[Any]) -> list[Any]:
    """Return the nodes behind `nodes` that add to the gradient of a leaf, each once."""
    return [node for node in nodes_behind(nodes) if isinstance(getattr(node, "variable", None), Tensor)]


def nodes_behind(nodes: Iterable[Any]) -> dict[Any, None]:
    """Return `nodes` and all nodes behind them, each once."""
    seen: dict[Any, None] = {}
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen[node] = None
        waiting += [following for following, _ in node.next_functions if following is not None]
    return seen


def executed(node: Any) -> bool:
    """Return True if the running pass adds to the leaf of the accumulator `node`; torch.autograd.grad does not."""
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:
        return False


def check_plain(tensor: Tensor) -> None:
    """Raise `InputError` for views, or their gradient, that the identity layer cannot see for what they are."""
    batched = torch._C._functorch.is_legacy_batchedtensor(tensor)  # of is_grads_batched
    if batched or (transformed() and _followed(tensor)):
        raise InputError(
            "the layer was used within torch.func (grad, vmap, jvp), forward-mode differentiation or "
            "is_grads_batched=True, in which no backward pass of its own reaches it, so CMI would be left out. Use the "
            "loss form there: loss = loss + lam * ddplug.CMI(proxies)(views, labels)."
        )


def _followed(tensor: Tensor) -> bool:
    """Return True if some way of differentiating follows `tensor`."""
    if torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None:  # type: ignore[no-untyped-call]
        return True
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor) and not tensor.requires_grad:
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.requires_grad
