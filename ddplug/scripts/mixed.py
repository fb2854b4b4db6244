"""Synthetic rows of a batch that holds real and synthetic images."""

from __future__ import annotations

import torch
from torch import Tensor

from ddplug.errors import HostError

ROW_BY_ROW = {"AddBackward0", "SubBackward0", "MulBackward0", "DivBackward0", "CloneBackward0", "ToCopyBackward0"}
"""What leaves the rows of a batch where they are."""
DEPTH = 64


def synthetic_rows(images: Tensor) -> tuple[int, int]:
    """From which row, and up to which, `images` (n, c, h, w) need a gradient: all of them, or a part of `torch.cat`.

    Autograd's graph says it: real images have no edge in it. Nothing is computed but the sizes of the parts.

    Raises:
        HostError: some rows need none, and which they are cannot be told.
    """
    node, in_place = images.grad_fn, True
    for _ in range(DEPTH):
        if node is None:
            break
        edges = [edge for edge, _ in node.next_functions]
        needed = [edge for edge in edges if edge is not None]
        if node.name() == "CatBackward0" and len(needed) < len(edges) and _of_rows(node):
            return _part(node, images) if in_place else _unknown(images)
        if len(needed) != 1:
            break
        in_place = in_place and node.name() in ROW_BY_ROW
        node = needed[0]
    return 0, len(images)


def _of_rows(node: torch.autograd.graph.Node) -> bool:
    dimension = getattr(node, "_saved_dim", 0)
    return dimension in (0, 2**64 - 4, -4)  # a negative one is stored as an unsigned number


def _part(node: torch.autograd.graph.Node, images: Tensor) -> tuple[int, int]:
    with torch.no_grad():
        parts = node(torch.zeros_like(images, requires_grad=False))  # type: ignore[operator]
    first = last = None
    row = 0
    for part, (edge, _) in zip(parts, node.next_functions, strict=True):
        if part is None or (edge is not None and last not in (None, row)):
            return _unknown(images)  # synthetic rows in several places
        if edge is not None:
            first = row if first is None else first
            last = row + len(part)
        row += len(part)
    assert first is not None
    assert last is not None
    return first, last


def _unknown(images: Tensor) -> tuple[int, int]:
    raise HostError(
        f"of the {len(images)} images some need a gradient and others, real ones, need none, and which are which "
        "cannot be told here. Say which rows are the synthetic ones: --rows 'n:', say, an expression "
        "where the function is called; --rows : for all of them."
    )
