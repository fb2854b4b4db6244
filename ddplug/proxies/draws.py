"""Random numbers that a function draws from generators that are not its own, or seeds of these."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import TorchDispatchMode

T = TypeVar("T")
TRIES = 3
"""Calls after each of which a state must have moved; another thread draws from the same generators now and then."""


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices draws from torch's own generators in this thread."""

    seen = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The operation as it is."""
        if torch.Tag.nondeterministic_seeded in func.tags and not any(
            isinstance(each, torch.Generator) for each in (*args, *(kwargs or {}).values())
        ):
            self.seen = True
        return func(*args, **(kwargs or {}))


def drawing(function: Callable[[], T], device: torch.device) -> tuple[T, str]:
    """Return `function()`, and the library whose own generator it draws from or seeds; an empty string if none."""
    states, others = _torch(device), {library: state() for library, state in _OTHERS.items()}
    with _Draws() as draws:  # type: ignore[no-untyped-call]
        result = function()
    # An operation that may draw need not, as attention without dropout; and a state may move by another thread.
    if states != _torch(device) and (draws.seen or _just_seeded()):
        return result, "torch"
    for library, state in _OTHERS.items():
        before = others[library]
        for _ in range(TRIES):
            now = state()
            if now == before:
                break
            if now[1][-1] == _SEEDED:
                return result, library
            before, result = state(), function()
        else:
            return result, library
    return result, ""


_SEEDED = 624
"""The place in a Mersenne Twister's numbers at which it stands once it was seeded, and hardly ever otherwise."""


def _just_seeded() -> bool:
    """Return True if nothing was drawn since torch's generator was seeded."""
    fresh = torch.Generator(device="cpu").manual_seed(torch.default_generator.initial_seed())
    with temporarily_clear_interpreter_stack():
        return torch.equal(fresh.get_state(), torch.default_generator.get_state())


def _torch(device: torch.device) -> list[bytes]:
    with temporarily_clear_interpreter_stack():  # within torch.func's transforms a new tensor has no numbers to read
        states = [torch.default_generator.get_state()]
        if device.type == "cuda":
            states.append(torch.cuda.get_rng_state(device))
        return [state.numpy().tobytes() for state in states]


def _numpy() -> tuple[Any, ...]:
    state: Any = np.random.get_state()
    return state[3:], (state[1].tobytes(), state[2])


_OTHERS: dict[str, Callable[[], tuple[Any, ...]]] = {"Python": random.getstate, "NumPy": _numpy}
"""The state of each library's own generator; its second item ends in the place in the numbers."""
