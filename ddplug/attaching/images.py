"""Synthetic images of a host: the leaf tensors that they are, and the labels of the views that are made of them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ddplug.attaching.held import Holder, all_items
from ddplug.attaching.probes import hooked, shows
from ddplug.attaching.rows import Rows, read_rows, rows_in
from ddplug.core.autograd import leaves as leaves_behind
from ddplug.core.autograd import stepped_by


@dataclass(frozen=True)
class Shown:
    """The synthetic images that a call's views show."""

    leaves: list[Tensor]
    count: int
    """Rows of all leaves."""
    rows: Tensor | None
    """Row of each view (n,), if every view shows one row; negative for real images."""
    mixed: bool
    """True if some of the views may be real images."""
    why: str
    """The reason if `rows` is None: what is between the images and the views."""
    by_probes: bool = False
    """True if labels can be found by gradients, though rows cannot."""

    @property
    def of_rows(self) -> bool:
        """True if labels of the images' rows can be given to the views."""
        return self.rows is not None or self.by_probes

    @cached_property
    def synthetic(self) -> Tensor | None:
        """Numbers of the views that are no real images; None if all are or if it is unknown."""
        return (self.rows >= 0).nonzero().flatten() if self.mixed and self.rows is not None else None


class Images:
    """The synthetic images of a host.

    Args:
        host: what the host holds, by name.
        given: the images, if the user named them: a function that returns their tensors now.
    """

    def __init__(self, host: Holder, given: Callable[[], list[Tensor]] | None = None) -> None:
        self._host, self._given = host, given
        self._leaves: list[weakref.ref[Tensor]] = []
        self._ordered = True
        self._kinds: dict[Any, str] = {}

    def shown(self, argument: Tensor | None, views: Tensor) -> Shown | None:
        """Return the images that `views` show; None if these are real images.

        Args:
            argument: the images that the views were made of, None if unknown.
            views: (n, c, h, w).
        """
        source = views if argument is None else argument
        leaves = [leaf for ref in self._leaves if (leaf := ref()) is not None] if self._given is None else self._given()
        read = read_rows(source, leaves)
        if read.numbers is None:
            found = self._find(source)
            if not found:
                return None
            if torch._C._current_graph_task_id() != -1:
                return _unknown("a checkpointed function, which torch runs again on copies of the images")
            if len(found) > 1 and not self._ordered:
                return _unknown(f"{len(found)} tensors, whose order is unknown; name them by images=")
            leaves, read = found, read_rows(source, found)
        self._leaves = [weakref.ref(leaf) for leaf in leaves]
        if read.numbers is None:
            return _unknown(read.unknown or "an operation that changes the number of images")
        count = rows_in(*leaves)
        return self._followed(Shown(leaves, count, read.numbers, read.mixed, ""), read, views)

    def _followed(self, shown: Shown, read: Rows, views: Tensor) -> Shown:
        """`shown` with the rows of the views in the place of those of the argument."""
        rows, leaves = read.numbers, shown.leaves
        assert rows is not None
        key = (tuple(leaf.shape for leaf in leaves), rows.shape, views.shape, views.grad_fn and views.grad_fn.name())
        if key not in self._kinds:
            self._kinds[key] = self._kind(rows, read, views, leaves)
        kind = self._kinds[key]
        if kind == "same":
            return shown
        if kind in _LAYOUTS:
            return Shown(leaves, shown.count, _LAYOUTS[kind](rows, len(views)), shown.mixed, "")
        return Shown(leaves, shown.count, None, shown.mixed, f"between them is {kind}", by_probes=kind == MIXING)

    @staticmethod
    def _kind(rows: Tensor, read: Rows, views: Tensor, leaves: list[Tensor]) -> str:
        """Find out how the rows of views follow from those of the images they are made of, by gradients."""
        certain = not read.assumed
        if views.grad_fn is None or hooked(views, leaves):
            # Gradients would run the host's function again, as under checkpointing.
            same = len(views) == len(rows) and certain
            return "same" if same else "an operation that gradients cannot be taken through"
        layouts = ["same"] if len(views) == len(rows) else [*_LAYOUTS] if len(views) % len(rows) == 0 else []
        for layout in layouts:
            try:
                if shows(views, leaves, rows if layout == "same" else _LAYOUTS[layout](rows, len(views))):
                    return layout
            except RuntimeError:  # of compiled code, say
                return layout if layout == "same" and certain else "an operation that gradients cannot be taken through"
        return MIXING

    def _find(self, tensor: Tensor) -> list[Tensor] | None:
        """The synthetic images behind `tensor`, all leaves in order; None if it shows other images."""
        behind = leaves_behind([tensor])
        ids = {id(leaf) for leaf in behind}
        if self._given is not None:
            given = self._given()
            return given if any(id(leaf) in ids for leaf in given) else None
        # Leaves of the shape of images are no weights of an augmentation that is learned.
        like_images = [leaf for leaf in behind if leaf.shape[1:] == tensor.shape[1:]] or behind
        best: list[Tensor] = []
        for _, value in all_items(self._host):
            held = leaves_in(value)
            shapes = {leaf.shape[1:] for leaf in held if any(leaf is other for other in like_images)}
            alike = [leaf for leaf in held if leaf.shape[1:] in shapes]
            best = alike if len(shapes) == 1 and len(alike) > len(best) else best
        self._ordered = bool(best)
        if best:
            return best
        if self._leaves and not any(leaf.shape[1:] == tensor.shape[1:] for leaf in behind):
            return None
        return like_images


def leaves_in(value: Any) -> list[Tensor]:
    """Leaf tensors that need a gradient in one value that a host holds: a tensor, several, or an optimizer's."""
    if isinstance(value, Tensor):
        held: list[Any] = [value]
    elif isinstance(value, Optimizer):
        held = stepped_by(value)
    elif isinstance(value, nn.Embedding | nn.ParameterList | nn.ParameterDict):
        held = list(value.parameters())
    elif isinstance(value, list | tuple | dict):
        held = list(value.values()) if isinstance(value, dict) else list(value)
    else:
        held = []
    return [each for each in held if isinstance(each, Tensor) and each.is_leaf and each.requires_grad]


def leaves_of(host: Holder) -> list[Tensor]:
    """Leaf tensors that need a gradient and that a host holds, except the weights of modules."""
    return [
        leaf
        for name, value in all_items(host)
        if not isinstance(value, Optimizer) and not name.endswith((".weight", ".bias"))
        for leaf in leaves_in(value)
    ]


def _unknown(why: str) -> Shown:
    return Shown([], 0, None, False, f"between them is {why}")


MIXING = "an augmentation in which rows are not kept in their place"
_LAYOUTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "all rows after each other, several times": lambda rows, count: rows.repeat(count // len(rows)),
    "each row several times": lambda rows, count: rows.repeat_interleave(count // len(rows), output_size=count),
}
