"""Saved states of a regulariser: each part is held to what it may be before anything is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ddplug

NAN, INF = float("nan"), float("inf")
ROUND = {"number": 0, "value": 0.1, "lam": 1.0, "images": 4, "skipped": False}
DAMAGED: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "a lambda that is NaN": (("weighting", "lam"), NAN, r"weighting\.lam: expected a number that is finite"),
    "a norm that is a word": (("weighting", "sums"), [1.0, "x"], r"sums\[1\]: expected a number"),
    "no weighting": (("weighting",), [], r"weighting: expected a dictionary"),
    "rounds below zero": (("rounds",), -1, r"rounds: expected a whole number"),
    "half a round": (("rounds",), 1.5, r"rounds: expected a whole number"),
    "a generator of floats": (("generators", "proxies"), torch.zeros(5056), r"RNG state must be a torch.ByteTensor"),
    "no generator": (("generators", "classes"), None, r"generators.classes: expected Tensor"),
    "a history that is none": (("history",), {"number": 0}, r"history: expected a list"),
    "a round that is none": (("history",), [3], r"history\[0\]: expected a dictionary"),
    "a pool that is a number": (("pool",), 3, r"pool: expected a string"),
    "a view that is a list": (("view",), [1], r"view: expected a dictionary"),
}


def layer(pool: ddplug.ProxyPool) -> ddplug.Regularizer:
    return ddplug.Regularizer(pool, 0.5, weighting=ddplug.Relative(2), announce=lambda line: None)


def changed(state: dict[str, Any], keys: tuple[str, ...], value: Any) -> dict[str, Any]:
    first, *others = keys
    return {**state, first: changed(state[first], tuple(others), value) if others else value}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_part_is_named_and_nothing_is_taken(
    name: str, pool: ddplug.ProxyPool, batch: tuple[Tensor, Tensor]
) -> None:
    first, second = layer(pool), layer(pool)
    leaf = batch[0].clone().requires_grad_()
    first(leaf, batch[1]).square().sum().backward()
    keys, value, said = DAMAGED[name]
    before = repr(second.state_dict())
    with pytest.raises(ddplug.errors.InputError, match=rf"^this state .* is damaged.*{said}.*nothing was"):
        second.load_state_dict(changed(first.state_dict(), keys, value))
    assert repr(second.state_dict()) == before
    second.load_state_dict(first.state_dict())
    assert len(second.history) == 1


@pytest.mark.parametrize("state", [None, [], "state", torch.zeros(3)], ids=lambda state: type(state).__name__)
def test_what_is_no_dictionary(state: Any, pool: ddplug.ProxyPool) -> None:
    with pytest.raises(
        ddplug.errors.InputError, match="this state of a Regularizer is damaged .*expected a dictionary"
    ):
        layer(pool).load_state_dict(state)
