"""Rows that views depend on, found by gradients: for operations whose nodes in the graph do not say it.

A gradient is taken of the views whose number has a given bit, and of the others: about 2 * log2(n) backward passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddplug.attaching.rows import rows_in
from ddplug.core.autograd import Identity


def shows(views: Tensor, leaves: Sequence[Tensor], rows: Tensor) -> bool:
    """Return True if each view depends on no row of the leaves but the one that `rows` (n,) names."""
    probe = _Probe(views, leaves)
    numbers = torch.arange(probe.count, device=rows.device)
    wrong = torch.zeros((), dtype=torch.bool, device=rows.device)
    for bit in range(max(0, probe.count - 1).bit_length()):
        for wanted in (0, 1):
            touched = probe.touched((rows >= 0) & ((rows >> bit) & 1 == wanted))
            wrong |= (touched & ((numbers >> bit) & 1 != wanted)).any()
    return not wrong


def labels_by_probes(views: Tensor, leaves: Sequence[Tensor], labels: Tensor) -> Tensor | None:
    """Return the labels (n,) of views, each of which is made of rows of one label; None if that is not so.

    Args:
        views: (n, c, h, w).
        leaves: the synthetic images, each row of which is in one view at most.
        labels: of all rows.
    """
    probe = _Probe(views, leaves)
    numbers = torch.arange(len(views), device=labels.device)
    view = torch.zeros_like(labels, dtype=torch.int64)
    used, several = torch.zeros_like(labels, dtype=torch.bool), torch.zeros_like(labels, dtype=torch.bool)
    for bit in range(max(1, (len(views) - 1).bit_length())):
        without, having = (probe.touched((numbers >> bit) & 1 == wanted) for wanted in (0, 1))
        view |= having.long() << bit
        used |= without | having
        several |= without & having
    if several.any():
        return None
    least, most = (
        torch.full((len(views),), -1, dtype=labels.dtype, device=labels.device).scatter_reduce(
            0, view[used], labels[used], reduce, include_self=False
        )
        for reduce in ("amin", "amax")
    )
    return least if bool((least == most).all() & (least >= 0).all()) else None


def hooked(views: Tensor, leaves: Sequence[Tensor]) -> bool:
    """Return True if a gradient of `views` would run more than their own operations.

    That is so where hooks compute saved tensors again, as checkpointing does, and behind a layer of ours.
    """
    ends = {id(leaf) for leaf in leaves}
    seen, waiting = set(), [views.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen or id(getattr(node, "variable", None)) in ends:
            continue
        seen.add(node)
        if isinstance(node, Identity._backward_cls) or _saved_by_hooks(node):
            return True
        waiting += [before for before, _ in node.next_functions]
    return False


def _saved_by_hooks(node: Any) -> bool:
    for name in dir(node):
        if name.startswith("_raw_saved_"):
            raw = getattr(node, name)
            each = raw if isinstance(raw, tuple) else (raw,)
            if any(getattr(saved, "unpack_hook", None) is not None for saved in each):
                return True
    return False


class _Probe:
    """Backward passes from some of the views to the leaves; the graph is kept."""

    def __init__(self, views: Tensor, leaves: Sequence[Tensor]) -> None:
        self._views, self._leaves = views, leaves
        self._sizes = [rows_in(leaf) for leaf in leaves]
        self.count = sum(self._sizes)
        # Of both signs, and no two alike, so that nothing cancels.
        noise = (
            torch.rand(views.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")
            - 0.5
        )
        self._noise = noise.to(views.device, views.dtype)

    def touched(self, chosen: Tensor) -> Tensor:
        """The rows of the leaves (count,) that the chosen views (n,) depend on."""
        weights = chosen.to(self._views.device).view(-1, *[1] * (self._views.ndim - 1)) * self._noise
        grads = torch.autograd.grad(self._views, self._leaves, weights, retain_graph=True, allow_unused=True)
        parts = []
        for leaf, grad, size in zip(self._leaves, grads, self._sizes, strict=True):
            if grad is None:
                parts.append(torch.zeros(size, dtype=torch.bool, device=leaf.device))
            else:
                dense = grad.to_dense() if grad.is_sparse else grad
                parts.append(dense.reshape(size, -1).ne(0).any(1))
        return torch.cat(parts)
