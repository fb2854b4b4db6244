"""The leaves of autograd's graph: the images that a gradient is on its way to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor


def leaves(tensors: Iterable[Tensor] = (), nodes: Iterable[Any] = ()) -> list[Tensor]:
    """The leaf tensors behind `tensors`, or behind `nodes` of autograd's graph, each once."""
    tensors = list(tensors)
    found = {id(tensor): tensor for tensor in tensors if tensor.grad_fn is None and tensor.requires_grad}
    behind = accumulators([*nodes, *(tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None)])
    return list({**found, **{id(node.variable): node.variable for node in behind}}.values())


def accumulators(nodes: Iterable[Any]) -> list[Any]:
    """The nodes behind `nodes` of autograd's graph that add to a leaf's gradient, each once."""
    found, seen, waiting = [], set(), list(nodes)
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if isinstance(getattr(node, "variable", None), Tensor):
            found.append(node)
        waiting += [following for following, _ in node.next_functions if following is not None]
    return found
