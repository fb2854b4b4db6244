"""The layer keeps copies of what a host may overwrite before the backward pass: labels and real batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ddplug

pytestmark = pytest.mark.numerical

Batch = tuple[Tensor, Tensor]
QUIET: dict[str, Any] = {"weighting": "absolute", "announce": lambda line: None}


def test_labels_of_a_buffer_that_is_refilled_for_each_class(pool: ddplug.ProxyPool, batch: Batch) -> None:
    images, labels = batch
    whole = images.clone().requires_grad_()
    ddplug.Regularizer(pool, 1.0, **QUIET)(whole, labels).sum().backward()

    regularizer, cut = ddplug.Regularizer(pool, 1.0, **QUIET), images.clone().requires_grad_()
    buffer, loss = torch.empty(0, dtype=torch.int64), torch.zeros((), dtype=torch.float64)
    for label in range(3):
        rows = (labels == label).nonzero().flatten()
        buffer.resize_(len(rows)).fill_(label)
        loss = loss + regularizer(cut[rows], buffer).sum()
    buffer.resize_(1).fill_(7)
    loss.backward()
    assert whole.grad is not None
    assert cut.grad is not None
    # The same sums of at most a few hundred float64 numbers, in another order.
    torch.testing.assert_close(cut.grad, whole.grad, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("passed", [True, False], ids=["given", "passed by"])
def test_a_real_batch_that_the_next_one_overwrites(pool: ddplug.ProxyPool, batch: Batch, passed: bool) -> None:
    images, labels = batch
    real = torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def gradient(spoil: bool) -> Tensor:
        regularizer = ddplug.Regularizer(pool, 1.0, term="mim", **QUIET)
        leaf, given, classes = images.clone().requires_grad_(), real.clone(), labels.clone()
        if passed:
            loss = regularizer(leaf, labels, real=(given, classes)).sum()
        else:
            regularizer.passed_by(given, classes)
            loss = regularizer(leaf, labels).sum()
        if spoil:
            given.fill_(3.0)
            classes.fill_(0)
        loss.backward()
        assert leaf.grad is not None
        return leaf.grad

    assert torch.equal(gradient(spoil=True), gradient(spoil=False))


def test_a_weight_that_has_no_effect_cannot_be_set(pool: ddplug.ProxyPool) -> None:
    regularizer = ddplug.Regularizer(pool, 1.0, **QUIET)
    with pytest.raises(AttributeError):
        regularizer.weight = 370  # type: ignore[misc]
