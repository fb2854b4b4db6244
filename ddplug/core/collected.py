"""The calls of a round of several backward passes, which come to the layer one after the other."""

from __future__ import annotations

import weakref

from torch import Tensor
from torch.optim.optimizer import Optimizer

from ddplug.core.autograd import Call
from ddplug.core.leaves import leaves
from ddplug.errors import InputError


class Collected:
    """The calls of a round of several backward passes.

    A call whose gradient is still to come is owned by the host's graph; one whose gradient has come, by the round.
    """

    def __init__(self) -> None:
        self.arrived: list[Call] = []
        self.added = 0
        """Calls so far."""
        self.lost = 0
        """Calls whose graph was dropped unwalked, since this was last asked for."""
        self._waiting: list[weakref.ref[Call]] = []
        self._leaves: dict[int, tuple[Tensor, int]] = {}

    def add(self, call: Call) -> None:
        """A call that is part of the round if a gradient comes to it."""
        call.collected = self
        self.added += 1
        alive = [ref for ref in self._waiting if ref() is not None]
        self.lost += len(self._waiting) - len(alive)
        self._waiting = [*alive, weakref.ref(call)]

    def waiting(self) -> list[Call]:
        """The calls that no gradient has come to yet."""
        return [call for ref in self._waiting if (call := ref()) is not None and not call.done]

    def arrive(self, call: Call, grad: Tensor) -> None:
        """Note that the host's gradient has come to `call`."""
        if call.arrived is None:
            for leaf in leaves([call.source] if call.source is not None else [], nodes=[]):
                self._leaves.setdefault(id(leaf), (leaf, leaf._version))
            self.arrived.append(call)
            self._waiting = [ref for ref in self._waiting if ref() is not call]
        call.arrived = grad if call.arrived is None else call.arrived + grad

    def stepped(self) -> bool:
        """True if images changed after their gradient came: a step has cut their round."""
        return any(leaf._version != version for leaf, version in self._leaves.values())

    def hooked(self) -> bool:
        """True if foreign hooks see the images' gradient, and will see CMI's part separately."""
        return any(leaf._backward_hooks for leaf, _ in self._leaves.values())

    def images(self) -> list[Tensor]:
        """The leaves whose gradient is still incomplete."""
        return [leaf for leaf, _ in self._leaves.values()]

    def check_no_step(self, optimizer: Optimizer) -> None:
        """`InputError` if the images whose gradient is still incomplete are about to be stepped."""
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if any(id(leaf) in held for leaf in self.images()):
            raise InputError(
                "the optimizer of the images was stepped within a round, before CMI's gradient was added, which "
                "happens when the round ends. Put the step after the `with regularizer.round():` block."
            )

    def take(self) -> list[Call]:
        """The calls that a gradient came to."""
        taken = [call for call in self.arrived if not call.done]
        self.arrived, self._leaves = [], {}
        return taken

    def drop(self) -> None:
        """Let go of all calls that a gradient came to."""
        for call in self.take():
            call.release()
