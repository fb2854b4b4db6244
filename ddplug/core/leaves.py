"""The leaves of autograd's graph: the images that a gradient is on its way to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor


def leaves(tensors: Iterable[Tensor] = (), nodes: Iterable[Any] = ()) -> list[Tensor]:
    """The leaf tensors behind `tensors`, or behind `nodes` of autograd's graph, each once."""
    found: dict[int, Tensor] = {}
    waiting = list(nodes)
    for tensor in tensors:
        if tensor.grad_fn is not None:
            waiting.append(tensor.grad_fn)
        elif tensor.requires_grad:
            found[id(tensor)] = tensor
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor):
            found[id(leaf)] = leaf
        waiting += [following for following, _ in node.next_functions if following is not None]
    return list(found.values())
