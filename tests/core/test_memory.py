"""Memory that runs out within a round: smaller pieces, the same gradient, said once."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddplug
from ddplug.core import chunking
from ddplug.utils.memory import out_of_memory

pytestmark = pytest.mark.numerical

Batch = tuple[Tensor, Tensor]
LAM = 0.7


class Greedy(torch.autograd.Function):
    """The identity, which asks the allocator for more than any machine has, for batches larger than some."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, fits: int, fits_backward: int) -> Tensor:
        ctx.fits = fits_backward
        allocate(images, fits)
        return images.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        allocate(grad, ctx.fits)
        return grad, None, None


attempts: list[int] = []
"""Sizes of the batches that were too large."""


def allocate(images: Tensor, fits: int) -> None:
    if len(images) > fits:
        attempts.append(len(images))
        torch.empty(2**60, dtype=torch.uint8)


class Hungry(nn.Module):
    def __init__(self, network: nn.Module, fits: int, fits_backward: int) -> None:
        super().__init__()
        self.network, self.fits = network, (fits, fits_backward)

    def forward(self, images: Tensor) -> Any:
        return self.network(Greedy.apply(images, *self.fits))


def gradient(regularizer: ddplug.Regularizer, batch: Batch) -> Tensor:
    leaf = batch[0].clone().requires_grad_()
    regularizer(leaf, batch[1]).square().sum().backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize(("fits", "fits_backward"), [(5, 99), (99, 4), (99, 1), (2, 1)])
@pytest.mark.parametrize("options", [{}, {"compute": ddplug.Compute(chunk=11)}, {"compute": ddplug.Compute(draw=2)}])
def test_smaller_pieces(network: Any, batch: Batch, fits: int, fits_backward: int, options: dict[str, Any]) -> None:
    said: dict[str, Any] = {"weighting": "absolute", "announce": lambda line: None, **options}
    several = [network(seed) for seed in range(2)]
    plain = ddplug.Regularizer(several, LAM, **said)
    short = ddplug.Regularizer([Hungry(one, fits, fits_backward) for one in several], LAM, **said)
    with pytest.warns(ddplug.DDPlugWarning, match="memory ran out with 1[12] images") as told:
        first = gradient(short, batch)
    assert len(told) == 1
    expected = [gradient(plain, batch) for _ in range(3)]
    attempts.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = [first, gradient(short, batch), gradient(short, batch)]
    assert attempts == []  # what was seen is remembered
    for mine, wanted in zip(got, expected, strict=True):
        assert (mine - wanted).abs().max() < 1e-12 * wanted.abs().max()
    assert short.history.values == pytest.approx(plain.history.values, rel=1e-12)


def test_graphs_that_were_kept(network: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the larger pieces, one of which was walked before memory ran out, are of no use."""
    monkeypatch.setattr(chunking, "plan", lambda *_: chunking.Plan(6, 2))
    said: dict[str, Any] = {"weighting": "absolute", "announce": lambda line: None}
    short = ddplug.Regularizer([Hungry(network(), 99, 4)], LAM, **said)
    with pytest.warns(ddplug.DDPlugWarning, match="memory ran out with 6 images"):
        got = gradient(short, batch)
    expected = gradient(ddplug.Regularizer([network()], LAM, **said), batch)
    assert (got - expected).abs().max() < 1e-12 * expected.abs().max()


def test_the_value_alone(network: Any, batch: Batch) -> None:
    regularizer = ddplug.Regularizer([Hungry(network(), 3, 0)], 0, record=True)
    with pytest.warns(ddplug.DDPlugWarning, match="memory ran out with 12 images"):
        gradient(regularizer, batch)
    plain = ddplug.Regularizer([network()], 0, record=True)
    gradient(plain, batch)
    assert regularizer.history.values == pytest.approx(plain.history.values, rel=1e-12)


def test_where_nothing_is_smaller(network: Any, batch: Batch) -> None:
    """One image too many: the allocator's own error, and a round that was none."""
    regularizer = ddplug.Regularizer([Hungry(network(), 99, 0)], LAM, weighting="absolute", announce=lambda line: None)
    with (
        pytest.warns(ddplug.DDPlugWarning, match="memory ran out"),
        pytest.raises(RuntimeError, match="allocate") as seen,
    ):
        gradient(regularizer, batch)
    assert out_of_memory(seen.value)
    assert regularizer.rounds == len(regularizer.history) == 0
    assert not out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert out_of_memory(torch.OutOfMemoryError("CUDA"))
