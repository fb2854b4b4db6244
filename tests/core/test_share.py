"""Lambda by passages of the set: outliers, rounding noise and cut batches do not set it."""

from __future__ import annotations

import copy
import warnings
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
from torch import Tensor

import ddplug

pytestmark = pytest.mark.numerical

Batch = tuple[Tensor, Tensor]


def layer(pool: ddplug.ProxyPool, **options: Any) -> ddplug.Regularizer:
    return ddplug.Regularizer(pool, 1.0, announce=lambda line: None, **options)


def step(regularizer: ddplug.Regularizer, images: Tensor, labels: Tensor, factor: float = 1.0) -> Tensor:
    leaf = images.clone().requires_grad_()
    (regularizer(leaf, labels).square().sum() * factor).backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("weighting", ["relative", "sustained"])
def test_one_spike_of_the_hosts_loss_does_not_set_lambda(pool: ddplug.ProxyPool, batch: Batch, weighting: Any) -> None:
    plain, spiked = layer(pool, weighting=weighting), layer(pool, weighting=weighting)
    for number in range(10):
        step(plain, *batch)
        step(spiked, *batch, factor=10_000.0 if number == 2 else 1.0)
    assert plain.lam is not None
    assert spiked.lam == pytest.approx(plain.lam, rel=1e-9)
    assert max(share for share in spiked.history.share if share is not None) == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_images_of_a_class_that_are_equal_leave_lambda_waiting(network: Any, batch: Batch, dtype: torch.dtype) -> None:
    """CMI and its gradient are 0 in exact arithmetic; a share of rounding noise would be noise of the host's norm."""
    pool = ddplug.ProxyPool.from_modules([network(7).to(dtype)])
    images, labels = batch[0].to(dtype), batch[1]
    means = torch.stack([images[labels == label].mean(0) for label in range(3)])[labels]
    regularizer = layer(pool, weighting=ddplug.Relative(3))
    for _ in range(5):
        assert torch.equal(step(regularizer, means, labels), 2 * means)
    assert regularizer.lam is None
    for _ in range(3):
        step(regularizer, images, labels)
    usual = layer(pool, weighting=ddplug.Relative(3))
    for _ in range(3):
        step(usual, images, labels)
    assert usual.lam is not None
    assert regularizer.lam == pytest.approx(usual.lam, rel=1e-6)


@pytest.mark.parametrize(("weighting", "expected"), [("relative", 2 + 2 + 1), ("sustained", 6), ("absolute", 3)])
def test_the_term_is_computed_twice_only_where_lambda_is_measured(
    pool: ddplug.ProxyPool, batch: Batch, weighting: Any, expected: int
) -> None:
    """Two rounds that measure and one with a frozen lambda; "sustained" measures in all three."""
    kinds = {"relative": ddplug.Relative(2), "sustained": ddplug.Sustained(2), "absolute": ddplug.Absolute()}
    regularizer = layer(pool, weighting=kinds[weighting])
    computed = Mock(wraps=regularizer.term.value_and_grad)
    with patch.object(type(regularizer.term), "value_and_grad", computed):
        for _ in range(3):
            step(regularizer, *batch)
    assert computed.call_count == expected


@pytest.mark.parametrize("classes", [5, 20])
def test_a_set_in_parts_gets_the_lambda_of_the_whole(network: Any, classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    images = torch.randn(2 * classes, 3, 4, 4, generator=generator, dtype=torch.float64)
    labels = torch.arange(2 * classes) % classes
    pool = ddplug.ProxyPool.from_modules([network(7, classes=classes)])
    whole, parts = layer(pool), layer(pool, weighting=ddplug.Relative(set_size=2 * classes))
    for _ in range(10):
        step(whole, images, labels)
        for label in range(classes):
            rows = labels == label
            step(parts, images[rows], labels[rows])
    assert whole.lam is not None
    # Sums of a few thousand float64 squares in another order.
    assert parts.lam == pytest.approx(whole.lam, rel=1e-10)


def test_a_share_far_above_the_weight_is_warned_about_once(pool: ddplug.ProxyPool, batch: Batch) -> None:
    regularizer = layer(pool, weighting=ddplug.Relative(1))
    step(regularizer, *batch)
    with pytest.warns(ddplug.DDPlugWarning, match="100 times the share") as found:
        for _ in range(3):
            step(regularizer, *batch, factor=1e-3)
    assert len(found) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(copy.deepcopy(regularizer), *batch)


@pytest.mark.parametrize("every", [2, 3])
def test_every_skips_passages_of_the_set_and_not_classes(network: Any, every: int) -> None:
    """Six classes in turn: each acts in every second or third passage, and none in all or in none."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(12, 3, 4, 4, generator=generator, dtype=torch.float64)
    labels = torch.arange(12) % 6
    pool = ddplug.ProxyPool.from_modules([network(7, classes=6)])
    regularizer = layer(pool, weighting=ddplug.Absolute(set_size=12), compute=ddplug.Compute(every=every))
    acted = torch.zeros(6, dtype=torch.int64)
    for passage in range(6):
        if passage == 3:  # in the middle of the run, from a saved state
            state, regularizer = (
                regularizer.state_dict(),
                layer(pool, weighting=ddplug.Absolute(set_size=12), compute=ddplug.Compute(every=every)),
            )
            regularizer.load_state_dict(state)
        for label in range(6):
            rows = labels == label
            gradient = step(regularizer, images[rows], labels[rows])
            acted[label] += not torch.equal(gradient, 2 * images[rows])
    assert acted.tolist() == [6 // every] * 6
