"""Attach, rounds of one or several passes, failures, detach, save, load and resume, in any order.

After each: the gradient is the host's and lambda times CMI's, to the bit that of a layer which was never interrupted;
and to the bit the host's own while nothing is attached.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from torch import Tensor, nn

import ddplug

pytestmark = pytest.mark.numerical

LABELS = torch.tensor([2, 0, 1, 1, 0, 2, 1, 0, 1, 2, 1, 1])
SHARE = 0.5
OPTIONS: dict[str, Any] = {"weighting": ddplug.Sustained(2), "announce": lambda line: None}
Layer = Callable[[Tensor, Tensor], Tensor]


def smooth() -> nn.Module:
    torch_state = torch.get_rng_state()
    torch.manual_seed(5)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    torch.set_rng_state(torch_state)
    return network


POOL = ddplug.ProxyPool.from_modules([smooth()])
START = torch.randn(12, 3, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class Trainer:
    def augment(self, images: Tensor, labels: Tensor) -> Tensor:
        return images


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)


def plain(views: Tensor, labels: Tensor) -> Tensor:
    return views


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.trainer, self.images = Trainer(), START.clone()
        self.handle: ddplug.Handle | None = None
        self.twin = ddplug.Regularizer(POOL, SHARE, **OPTIONS)
        self.state = self.twin.state_dict()
        self.saved: list[tuple[dict[str, Any], Tensor, ddplug.Regularizer]] = []

    def gradient(self, layer: Layer, cuts: Sequence[int], together: Any = None) -> Tensor:
        """Of a host whose loss is a sum over the parts, in one backward pass or in one for each."""
        leaf = self.images.clone().requires_grad_()
        ends = [0, *sorted(cuts), 12]
        parts = [slice(*pair) for pair in pairwise(ends)]
        losses = (layer(leaf[rows].tanh(), LABELS[rows]).square().sum() for rows in parts)
        if together is None:
            torch.stack(list(losses)).sum().backward()
        else:
            with together():
                for loss in losses:
                    loss.backward()
        assert leaf.grad is not None
        return leaf.grad

    def compared(self, cuts: Sequence[int], several: bool) -> None:
        if self.handle is None:
            assert torch.equal(self.gradient(self.trainer.augment, cuts), self.gradient(plain, cuts))
            return
        got = self.gradient(self.trainer.augment, cuts, self.handle.round if several else None)
        assert torch.equal(got, self.gradient(self.twin, cuts, self.twin.round if several else None))
        assert equal(self.handle.state_dict(), self.twin.state_dict())
        leaf = self.images.clone().requires_grad_()
        (of_cmi,) = torch.autograd.grad(ddplug.CMI(POOL, "logit")(leaf.tanh(), LABELS), leaf)
        expected = self.gradient(plain, cuts) + self.handle.history[-1].lam * of_cmi
        assert (got - expected).abs().max() < 1e-12 * expected.abs().max()
        self.images = self.images - 0.05 * got

    @precondition(lambda self: self.handle is None)
    @rule()
    def attach(self) -> None:
        """And resume."""
        self.handle = ddplug.attach(self.trainer, SHARE, proxies=POOL, **OPTIONS)
        self.handle.load_state_dict(self.state)

    @precondition(lambda self: self.handle is not None)
    @rule()
    def detach(self) -> None:
        assert self.handle is not None
        self.handle.regularizer.watch.expect("never acts")
        self.state = self.handle.state_dict()
        self.handle.detach()
        assert vars(self.trainer) == {}
        self.handle = None

    @rule(cuts=st.sets(st.integers(1, 11), max_size=2))
    def round(self, cuts: set[int]) -> None:
        self.compared(sorted(cuts), several=False)

    @precondition(lambda self: self.handle is not None)
    @rule(cuts=st.sets(st.integers(1, 11), min_size=1, max_size=3))
    def accumulate(self, cuts: set[int]) -> None:
        self.compared(sorted(cuts), several=True)

    @precondition(lambda self: self.handle is not None)
    @rule(several=st.booleans())
    def fail(self, several: bool) -> None:
        """Leaves no trace."""
        assert self.handle is not None
        with (
            patch.object(ddplug.ProxyPool, "draw", side_effect=ddplug.DDPlugError("no proxies today")),
            pytest.raises(ddplug.DDPlugError, match="today"),
        ):
            self.gradient(self.trainer.augment, [5], self.handle.round if several else None)
        assert equal({**self.handle.state_dict(), "pool": None}, {**self.twin.state_dict(), "pool": None})

    @precondition(lambda self: self.handle is not None)
    @rule()
    def save(self) -> None:
        assert self.handle is not None
        self.saved.append((self.handle.state_dict(), self.images, copy.deepcopy(self.twin)))

    @precondition(lambda self: self.saved and self.handle is not None)
    @rule(data=st.data())
    def load(self, data: st.DataObject) -> None:
        assert self.handle is not None
        state, self.images, twin = data.draw(st.sampled_from(self.saved))
        self.handle.load_state_dict(state)
        self.twin = copy.deepcopy(twin)

    def teardown(self) -> None:
        if self.handle is not None:
            self.detach()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=20, stateful_step_count=15)
