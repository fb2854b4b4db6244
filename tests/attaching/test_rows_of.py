"""Row numbers read from autograd's graph, against images whose pixels are their row numbers."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ddplug.attaching.rows import REAL, read_rows

SHAPE = (3, 2, 2)


def numbered(*rows: int) -> list[Tensor]:
    """Leaves of so many rows each, whose pixels are the row's number through all of them."""
    numbers = torch.arange(float(sum(rows))).view(-1, 1, 1, 1).expand(-1, *SHAPE)
    return [part.clone().requires_grad_() for part in numbers.split(list(rows))]


def real(count: int) -> Tensor:
    return torch.full((count, *SHAPE), float(REAL))


def rows_of(images: Tensor, leaves: list[Tensor]) -> Tensor | None:
    """Row numbers that the graph says for sure."""
    read = read_rows(images, leaves)
    return None if read.assumed else read.numbers


def check(images: Tensor, leaves: list[Tensor]) -> None:
    rows = rows_of(images, leaves)
    assert rows is not None
    assert rows.dtype == torch.int64
    assert rows.tolist() == images.detach().flatten(1)[:, 0].tolist()


def drawn(draw: st.DrawFn, images: Tensor) -> Tensor:
    """One operation on rows, as hosts write them."""
    n = len(images)
    row = st.integers(-n, n - 1)
    some = st.lists(row, min_size=1, max_size=8)
    kind = draw(st.sampled_from([
        "slice", "index", "mask", "index_select", "select", "split", "split_sizes", "unbind", "clone", "view", "to",
        "roll", "flip", "cat", "real", "stack", "expand", "repeat", "interleave", "channels", "grid", "loop",
    ]))  # fmt: skip
    match kind:
        case "slice":
            start, step = draw(row), draw(st.integers(1, 3))
            end = draw(st.one_of(st.none(), st.integers(-n, n + 3)))
            taken = images[start:end:step]
            return taken if len(taken) else images
        case "index":
            return images[torch.tensor(draw(some))]
        case "mask":
            mask = torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
            return images[mask] if mask.any() else images
        case "index_select":
            return images.index_select(0, torch.tensor(draw(some)) % n)
        case "select":
            return images[draw(row)].unsqueeze(0)
        case "split":
            parts = images.split(draw(st.integers(1, n)))
            return parts[draw(st.integers(0, len(parts) - 1))]
        case "split_sizes":
            cut = draw(st.integers(0, n - 1))
            return images.split([cut, n - cut])[1]
        case "unbind":
            return images.unbind()[draw(row)][None]
        case "clone":
            return images.clone()
        case "view":
            return images.reshape(n, -1).view(n, *SHAPE)
        case "to":
            return images.to(torch.float64 if images.dtype == torch.float32 else torch.float32)
        case "roll":
            return images.roll((draw(st.integers(-n, n)), 1), (0, 3))
        case "flip":
            return images.flip(0, 2)
        case "cat":
            return torch.cat([images[: draw(st.integers(1, n))], images[draw(row) :]], draw(st.sampled_from([0, -4])))
        case "real":
            batch = real(draw(st.integers(1, 3))).to(images)
            return torch.cat([batch, images] if draw(st.booleans()) else [images, batch, batch])
        case "stack":
            return torch.stack([images[i] for i in draw(some)])
        case "expand":
            return images[draw(row)].expand(draw(st.integers(1, 3)), *SHAPE)
        case "repeat":
            return images.repeat(draw(st.integers(1, 2)), 1, 1, 1)
        case "interleave":
            return images.repeat_interleave(2, 0)
        case "channels":
            return images[:, [2, 0, 1]].permute(0, 2, 3, 1).permute(0, 3, 1, 2)
        case "grid":
            pairs = torch.stack([images, images.flip(0)], 1)
            return pairs[:, draw(st.integers(0, 1))]
        case _:
            return torch.cat([images[i : i + 1] for i in reversed(range(n))])


@st.composite
def compositions(draw: st.DrawFn) -> tuple[Tensor, list[Tensor]]:
    """Images made of leaves by a few operations, and the leaves."""
    leaves = numbered(*draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    images = leaves[draw(st.integers(0, len(leaves) - 1))]
    if draw(st.booleans()):
        images = torch.cat(draw(st.permutations(leaves)))
    for _ in range(draw(st.integers(0, 6))):
        images = drawn(draw, images[:12])
    return images, leaves


@given(compositions())
@settings(max_examples=150, deadline=None)
def test_operations_on_rows_in_any_order(made: tuple[Tensor, list[Tensor]]) -> None:
    check(*made)


def test_an_embedding_and_leaves_of_other_shapes() -> None:
    flat = numbered(6)[0].detach().flatten(1)
    embedding = torch.nn.Embedding.from_pretrained(flat, freeze=False)
    indices = torch.tensor([[4, 1], [1, 5]])
    check(embedding(indices).view(-1, *SHAPE), [embedding.weight])
    grid = numbered(6)[0].detach().view(3, 2, *SHAPE).requires_grad_()
    check(grid[2], [grid])
    check(grid[torch.tensor([2, 0]), torch.tensor([1, 1])], [grid])
    check(grid.flatten(0, 1)[1:], [grid])
    check(grid.transpose(0, 1)[1], [grid])
    singles = [leaf.detach()[0].requires_grad_() for leaf in numbered(1, 1, 1)]
    check(torch.stack(singles[::-1]), singles)
    parameter = torch.nn.Parameter(numbered(6)[0].detach())
    check(parameter, [parameter])


def test_images_of_learned_networks_are_no_rows_of_the_leaves() -> None:
    (leaf,) = numbered(4)
    weight = torch.ones(3, requires_grad=True)
    learned = real(2) * weight.view(1, 3, 1, 1)
    assert rows_of(learned, [leaf]) is None
    check(torch.cat([learned, leaf[1:], real(1)]), [leaf])


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x * 2,
        lambda x: x.gather(0, torch.zeros(2, *SHAPE, dtype=torch.long)),
        lambda x: torch.cat([real(1), x, real(1), x]),
        lambda x: x.transpose(0, 1),
        lambda x: x.flatten().roll(1).view_as(x),
        lambda x: torch.cat([x[torch.tensor([0])], x[torch.tensor([1])]], 1),
        lambda x: real(3),
        lambda x: checkpoint(lambda y: y[torch.tensor([1, 0])], x, use_reentrant=True),
    ],
)  # fmt: skip
def test_none_where_the_graph_does_not_say(make: Callable[[Tensor], Tensor]) -> None:
    (leaf,) = numbered(4)
    assert rows_of(make(leaf), [leaf]) is None


def test_a_checkpointed_function_is_not_run_again() -> None:
    """Reading what it saved would run it."""
    (leaf,) = numbered(4)
    calls = []

    def chosen(images: Tensor) -> Tensor:
        calls.append(1)
        return images[torch.tensor([2, 1])]

    assert rows_of(checkpoint(chosen, leaf, use_reentrant=False), [leaf]) is None
    assert len(calls) == 1


def test_no_node_is_kept() -> None:
    """The leaf lives as long as a node that adds to its gradient."""
    (leaf,) = numbered(4)
    images = leaf[torch.tensor([2, 1])].flip(0)
    rows = rows_of(images, [leaf])
    held = weakref.ref(leaf)
    gc.disable()
    try:
        del images, leaf
        assert held() is None
    finally:
        gc.enable()
    assert rows is not None
