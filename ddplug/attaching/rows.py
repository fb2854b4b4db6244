"""Rows of the synthetic images that a tensor consists of, read from autograd's graph.

`synthetic[indices]`, a slice, a split, `torch.cat` and the like leave nodes in the graph that say which rows they took.
The same operations are applied to row numbers. Nothing is computed on images, and no node is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DEPTH = 150
"""Longest path through the graph that is followed."""
REAL = -1
"""Row number of an image that comes from none of the leaves."""


@dataclass
class Rows:
    """The rows that a tensor consists of."""

    numbers: Tensor | None
    """Row numbers (n,), int64, on the device of the leaves: `REAL` for rows that no leaf leads to; None if unknown."""
    mixed: bool = False
    """True if there may be such rows."""
    assumed: bool = False
    """True if operations that this module does not know were taken to keep rows in their place."""
    unknown: str = ""
    """Name of the operation at which reading ended."""


def read_rows(tensor: Tensor, leaves: Sequence[Tensor]) -> Rows:
    """Read the row of the leaves that each row of `tensor` was taken from.

    Args:
        tensor: (n, ...), made of rows of the leaves by operations that select, join or rearrange rows, and by others
            with as many rows as their input, which are taken to keep them in their place.
        leaves: the synthetic images; rows are counted through all of them. A leaf (n, c, h, w) or (n, d) has n rows, a
            leaf (k, m, c, h, w) has k * m, and a leaf (c, h, w) has one.
    """
    starts, first = {}, 0
    for leaf in leaves:
        shape = lead(leaf)
        starts[id(leaf)] = torch.arange(first, first + math.prod(shape), device=leaf.device).view(shape)
        first += math.prod(shape)
    graph = _Graph(starts)
    found = starts.get(id(tensor))
    if found is None and tensor.grad_fn is not None:
        found = graph.rows(tensor.grad_fn, tensor.output_nr)
    if found is not None:
        found = found.expand(len(tensor)) if found.ndim == 0 else found
        found = found.reshape(-1) if found.numel() == len(tensor) else None
    return Rows(found, graph.mixed, graph.assumed, graph.unknown)


def lead(leaf: Tensor) -> tuple[int, ...]:
    """The dimensions of a leaf that count images."""
    return tuple(leaf.shape[: 1 if leaf.ndim < 3 else leaf.ndim - 3])


def rows_in(*leaves: Tensor) -> int:
    """The number of images that leaves hold."""
    return sum(math.prod(lead(leaf)) for leaf in leaves)


class _Graph:
    """Row numbers of the nodes of one graph.

    The numbers of a node have the shape of the first dimensions of its output: those that count images.
    """

    def __init__(self, starts: dict[int, Tensor]) -> None:
        self._starts = starts
        self._known: dict[tuple[Any, int], Tensor | None] = {}
        self._depth = 0
        self.mixed = self.assumed = False
        self.unknown = ""

    def rows(self, node: Any, output: int) -> Tensor | None:
        """Row numbers of one output of `node`."""
        if node is None:
            return None
        if (node, output) not in self._known:
            self._depth += 1
            found = self._read(node, output) if self._depth <= DEPTH else None
            if found is None and not self.unknown:
                self.unknown = node.name()
            self._known[node, output] = found
            self._depth -= 1
        return self._known[node, output]

    def _read(self, node: Any, output: int) -> Tensor | None:
        name = node.name().rstrip("0123456789")
        if name == "torch::autograd::AccumulateGrad":
            return self._starts.get(id(node.variable))
        if name in ("CatBackward", "StackBackward"):
            return self._joined(node, output)
        if name not in _READERS:
            return self._kept(node, output)
        rows = self.rows(*node.next_functions[0])
        return None if rows is None else _READERS[name](self, node, output, rows)

    def _kept(self, node: Any, output: int) -> Tensor | None:
        """An operation that is taken to keep the rows of its inputs."""
        inputs = [(self.rows(before, k), before) for before, k in node.next_functions]
        known = [rows for rows, _ in inputs if rows is not None]
        if not known or any(rows is None and self._reaches(before) for rows, before in inputs):
            return None
        rows = known[0]
        if any(other is not rows for other in known) or _shape(node, output)[: rows.ndim] != tuple(rows.shape):
            return None
        self.assumed = True
        return rows

    def _joined(self, node: Any, output: int) -> Tensor | None:
        """A `cat` or a `stack`, with real images among its inputs or not."""
        stacks, shape = node.name().startswith("Stack"), _shape(node, output)
        dim = _dim(node, shape)
        inputs = [(self.rows(before, k), before and _shape(before, k)) for before, k in node.next_functions]
        known = [rows for rows, _ in inputs if rows is not None]
        reaching = [self._reaches(before) for before, _ in node.next_functions]
        if not known or any(rows is None for (rows, _), reaches in zip(inputs, reaching, strict=True) if reaches):
            return None
        if 0 < max(rows.ndim for rows in known) < dim + (not stacks):  # along the channels, say
            return known[0] if all(rows is known[0] for rows in known) else None
        # The size of an input that needs no gradient was not recorded.
        sizes: list[Any] = [1 if stacks else before and before[dim] for _, before in inputs]
        unsized = [place for place, size in enumerate(sizes) if size is None]
        if unsized and unsized[-1] - unsized[0] >= len(unsized):
            return None  # real images in several places, of which only the sum is known
        for place in unsized:
            sizes[place] = shape[dim] - sum(size or 0 for size in sizes)
        wide = [None if rows is None else _wide(rows, before, dim + (not stacks)) for rows, before in inputs]
        size = list(next(each.shape for each in wide if each is not None))
        parts = []
        for each, length in zip(wide, sizes, strict=True):
            if each is None:
                self.mixed = True
                each = known[0].new_full(size if stacks else [*size[:dim], length, *size[dim + 1 :]], REAL)
            parts.append(each)
        if len({part.ndim for part in parts}) > 1:
            return None
        return torch.stack(parts, dim) if stacks else torch.cat(parts, dim)

    def _reaches(self, node: Any) -> bool:
        """Return True if a path leads from `node` to one of the leaves."""
        seen, waiting = set(), [node]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if id(getattr(node, "variable", None)) in self._starts:
                return True
            waiting += [following for following, _ in node.next_functions]
        return False


def _shape(node: Any, output: int) -> tuple[int, ...]:
    """Shape of an output of `node`."""
    return tuple(node._input_metadata[output].shape)


def _signed(number: int) -> int:
    """`number` as an int64; autograd gives negative ones as unsigned."""
    return number - 2**64 if number >= 2**63 else number


def _saved(node: Any, name: str) -> list[Tensor | None] | None:
    """The tensors that `node` saved as `name`, or None if reading them would run a hook, as checkpointing sets."""
    raw = getattr(node, f"_raw_saved_{name}")
    for each in raw if isinstance(raw, tuple) else (raw,):
        if each is not None and each.unpack_hook is not None:
            return None
    saved = getattr(node, f"_saved_{name}")
    return list(saved) if isinstance(saved, tuple) else [saved]


def _dim(node: Any, shape: Sequence[int]) -> int:
    return _signed(node._saved_dim) % max(1, len(shape))


def _wide(rows: Tensor, shape: Sequence[int], ndim: int) -> Tensor:
    """`rows` spread over the first `ndim` dimensions of an output of this shape."""
    while rows.ndim < ndim:
        rows = rows.unsqueeze(-1).expand(*rows.shape, shape[rows.ndim])
    return rows


Reader = Callable[[_Graph, Any, int, Tensor], Tensor | None]
"""Function from a node, the number of an output and the row numbers of its first input to those of the output."""


def _viewed(graph: _Graph, node: Any, output: int, rows: Tensor) -> Tensor | None:
    before, after = _shape(*node.next_functions[0]), _shape(node, output)
    for ndim in range(rows.ndim, len(before) + 1):
        rows = _wide(rows, before, ndim)
        for count in range(len(after) + 1):
            if math.prod(after[:count]) == rows.numel():
                return rows.reshape(after[:count])
    return None


def _along(take: Callable[[Any, int, Tensor, int], Tensor | None]) -> Reader:
    """Reader of a node that does something along one dimension, which need not count images."""

    def read(graph: _Graph, node: Any, output: int, rows: Tensor) -> Tensor | None:
        dim = _dim(node, _shape(*node.next_functions[0]))
        return take(node, output, rows, dim) if dim < rows.ndim else rows

    return read


def _sliced(node: Any, output: int, rows: Tensor, dim: int) -> Tensor:
    cut = slice(_signed(node._saved_start), _signed(node._saved_end), node._saved_step)
    return rows[(slice(None),) * dim + (cut,)]


def _index_selected(node: Any, output: int, rows: Tensor, dim: int) -> Tensor | None:
    saved = _saved(node, "index")
    return None if saved is None or saved[0] is None else rows.index_select(dim, saved[0].to(rows.device))


def _indexed(graph: _Graph, node: Any, output: int, rows: Tensor) -> Tensor | None:
    if (indices := _saved(node, "indices")) is None:
        return None
    places = [place for place, index in enumerate(indices) if index is not None]
    if places[0] >= rows.ndim and places == [places[0]]:
        return rows
    if places[-1] >= rows.ndim:
        return _picked(graph, node, output, rows, indices)
    taken: list[Tensor | None] = []
    for place, index in enumerate(indices):
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            if index.ndim > 1 or len(places) > 1:
                return None
            # The number of rows is known already, so that a device need not be waited for.
            index = torch.nonzero_static(index, size=_shape(node, output)[place]).flatten()
        taken.append(None if index is None else index.to(rows.device))
    found: Tensor = torch.ops.aten.index(rows, taken)
    return found


def _picked(graph: _Graph, node: Any, output: int, rows: Tensor, indices: Sequence[Tensor | None]) -> Tensor | None:
    """Pixels picked by index tensors, as a crop at random does, of which the first is taken to number images."""
    first = indices[0]
    if rows.ndim != 1 or any(index is None for index in indices):
        return None
    if first is None or not first.ndim or first.dtype in (torch.bool, torch.uint8):
        return None
    graph.assumed = True
    numbers = first.flatten(1)[:, 0] if first.ndim > 1 else first
    return rows[numbers.to(rows.device)] if len(numbers) == _shape(node, output)[0] else None


def _embedded(graph: _Graph, node: Any, output: int, rows: Tensor) -> Tensor | None:
    indices = _saved(node, "indices")
    return None if indices is None or indices[0] is None else rows[indices[0].to(rows.device)]


def _expanded(graph: _Graph, node: Any, output: int, rows: Tensor) -> Tensor:
    after = _shape(node, output)
    more = len(after) - len(_shape(*node.next_functions[0]))
    return rows.expand(after[: more + rows.ndim])


def _repeated(graph: _Graph, node: Any, output: int, rows: Tensor) -> Tensor:
    more = len(node._saved_repeats) - len(_shape(*node.next_functions[0]))
    return rows.repeat(node._saved_repeats[: more + rows.ndim]) if more + rows.ndim else rows


def _permuted(graph: _Graph, node: Any, output: int, rows: Tensor) -> Tensor | None:
    """A permutation or a transposition of dimensions."""
    dims = list(range(len(_shape(node, output))))
    if node.name().startswith("Permute"):
        dims = [_signed(dim) % len(dims) for dim in node._saved_dims]
    else:
        first, second = (_signed(dim) % len(dims) for dim in (node._saved_dim0, node._saved_dim1))
        dims[first], dims[second] = second, first
    dims = dims[: rows.ndim]
    return rows.permute(dims) if all(dim < rows.ndim for dim in dims) else None


def _turned(graph: _Graph, node: Any, output: int, rows: Tensor) -> Tensor | None:
    """A roll or a flip."""
    if not node._saved_dims:
        return None
    for place, dim in enumerate(_signed(dim) % len(_shape(node, output)) for dim in node._saved_dims):
        if dim < rows.ndim:
            rolls = node.name().startswith("Roll")
            rows = rows.roll(node._saved_shifts[place], dim) if rolls else rows.flip(dim)
    return rows


_READERS: dict[str, Reader] = {
    **dict.fromkeys(
        ("CloneBackward", "ToCopyBackward", "AliasBackward", "CopyBackwards"), lambda graph, node, output, rows: rows
    ),
    **dict.fromkeys(("ViewBackward", "UnsafeViewBackward", "ReshapeAliasBackward"), _viewed),
    **dict.fromkeys(("UnsqueezeBackward", "SqueezeBackward"), _viewed),
    "SliceBackward": _along(_sliced),
    "SelectBackward": _along(lambda node, output, rows, dim: rows.select(dim, _signed(node._saved_index))),
    "SplitBackward": _along(lambda node, output, rows, dim: torch.split(rows, node._saved_split_size, dim)[output]),
    "SplitWithSizesBackward": _along(
        lambda node, output, rows, dim: torch.split(rows, list(node._saved_split_sizes), dim)[output]
    ),
    "UnbindBackward": _along(lambda node, output, rows, dim: rows.unbind(dim)[output]),
    "IndexSelectBackward": _along(_index_selected),
    "IndexBackward": _indexed,
    "EmbeddingBackward": _embedded,
    "ExpandBackward": _expanded,
    "RepeatBackward": _repeated,
    **dict.fromkeys(("PermuteBackward", "TransposeBackward"), _permuted),
    **dict.fromkeys(("RollBackward", "FlipBackward"), _turned),
}
