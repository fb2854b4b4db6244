"""Calls of a host's function on synthetic images: noticed while the host runs, and what they return passed on.

Synthetic images are those that need a gradient; real batches need none, and neither does anything under `no_grad`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddplug.errors import HostError, noted
from ddplug.scripts.frames import Scope, arguments_of, calling, place_of, scope_of
from ddplug.scripts.placing import Place


@dataclass(frozen=True, eq=False)
class Call:
    """Views that a host has made of images that need a gradient."""

    place: Place
    where: str
    """FILE:LINE of the call."""
    images: Tensor | None
    """The function's argument (n, c, h, w); None at a line."""
    views: Tensor
    """(m, c, h, w)."""
    arguments: Scope | None
    """The function's arguments by name."""
    scopes: Sequence[Scope]
    """These, then the variables of the host's functions under way, from the innermost out."""


class ViewCalls:
    """Callable at the places: counts the calls, and passes on the views of those on synthetic images.

    Args:
        act: from such a call to what the host gets in the place of its views; None if these show real images.
    """

    def __init__(self, act: Callable[[Call], Tensor | None]) -> None:
        self.synthetic = self.untouched = 0
        """Calls on synthetic images, and on others."""
        self._act = act
        self._inside = False

    def at(self, place: Place) -> Callable[[Any], Any]:
        """Return a decorator of a function, or for a line a function of its value."""
        return functools.partial(self._around, place) if place.name else functools.partial(self._value, place)

    def _around(self, place: Place, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        @noted
        def viewed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            images = _images([*args, *kwargs.values()])
            if images is not None and not _synthetic(images):
                self.untouched += 1
                return function(*args, **kwargs)
            self._inside = True
            try:
                result = function(*args, **kwargs)
            finally:
                self._inside = False
            return self._passed(place, result, images, lambda: arguments_of(function, args, kwargs))

        return viewed

    @noted
    def _value(self, place: Place, value: Any) -> Any:
        images = _images([value])
        if images is None or not _synthetic(images):
            self.untouched += images is not None
            return value
        return self._passed(place, value, None, lambda: None)

    def _passed(
        self, place: Place, result: Any, images: Tensor | None, arguments_now: Callable[[], Scope | None]
    ) -> Any:
        """`result` with the views in it passed on; `images` went in."""
        parts = list(result) if isinstance(result, tuple | list) else [result]
        found = [index for index, part in enumerate(parts) if _is_batch(part) and _synthetic(part)]
        if not found:
            self.untouched += images is not None
            return result
        frames = list(calling())
        where = place_of(frames[0]) if frames else str(place)
        if len(found) > 1:
            raise HostError(
                f"{place} returns {len(found)} batches that need a gradient, and which of them are the views cannot be "
                f"told. Name the line where the views get their name: --at FILE.py:LINE, after {where}."
            )
        arguments = arguments_now()
        scopes = [*([arguments] if arguments is not None else []), *map(scope_of, frames)]
        passed = self._act(Call(place, where, images, parts[found[0]], arguments, scopes))
        if passed is None:
            self.untouched += 1
            return result
        self.synthetic += 1
        parts[found[0]] = passed
        if not isinstance(result, tuple | list):
            return parts[0]
        return type(result)(*parts) if hasattr(result, "_fields") else type(result)(parts)


def _is_batch(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point()


def _images(given: Sequence[Any]) -> Tensor | None:
    """The batch of images among arguments: one that needs a gradient, or else any."""
    flat = [part for value in given for part in (value if isinstance(value, tuple | list) else [value])]
    batches = [part for part in flat if _is_batch(part)]
    return next((batch for batch in batches if batch.requires_grad), batches[0] if batches else None)


def _synthetic(images: Tensor) -> bool:
    return images.requires_grad and torch.is_grad_enabled()
