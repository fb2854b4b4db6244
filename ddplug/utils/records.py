"""Formats of files, written as tables, and one function that checks a record against them.

    NETWORK = entries({"file": text(255), "bytes": whole(), "head": optional(text())})
    content = read_record(path, NETWORK, "a network's record", "Copy it again.")

A check is a function that takes a value and raises `UnfitError` if it is none of those allowed. Entries that a table
does not name are left alone, as newer versions may write more.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddplug.errors import DataError, DDPlugError
from ddplug.utils.sealing import BrokenError, unseal_record

Check = Callable[[Any], None]

DEEPEST = 64
"""Levels of containers within containers; nothing that we write has more than ten."""
LARGEST = 2**30
"""Bytes of a JSON file."""
_HUGE = 1e300
_SHOWN = 60


class UnfitError(Exception):
    """A value that is not one of those allowed: what was expected, what was given, and where it stands."""

    def __init__(self, problem: str, where: tuple[str | int, ...] = ()) -> None:
        super().__init__(problem)
        self.problem, self.where = problem, where

    def __str__(self) -> str:
        place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.where).lstrip(".")
        return f"{place}: {self.problem}" if place else self.problem

    def within(self, step: str | int) -> UnfitError:
        """The same, seen from the container in which it stands at `step`."""
        return UnfitError(self.problem, (step, *self.where))


# --- what a value may be


def number(low: float = -math.inf, high: float = math.inf, *, finite: bool = True) -> Check:
    """A number from `low` to `high`; NaN and the infinities only if it need not be finite."""

    def check(value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _unfit(f"a number {_span(low, high)}", value)
        if isinstance(value, float) and not math.isfinite(value):
            if finite:
                raise _unfit("a finite number", value)
        elif not low <= value <= high or abs(value) > _HUGE:  # a larger whole number is no float
            raise _unfit(f"a number {_span(low, high)}", value)

    return check


def whole(low: int = 0, high: int = 2**53) -> Check:
    """A whole number from `low` to `high`."""

    def check(value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _unfit(f"a whole number from {low} to {high}", value)

    return check


def text(longest: int = 10_000, pattern: str = "") -> Check:
    """A string, which `pattern` has to match as a whole if one is given."""

    def check(value: Any) -> None:
        if not isinstance(value, str) or len(value) > longest:
            raise _unfit(f"a string of at most {longest} characters", value)
        if pattern and not re.fullmatch(pattern, value):
            raise _unfit(f"a string like {pattern}", value)

    return check


def flag(value: Any) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise _unfit("true or false", value)


def anything(value: Any) -> None:
    """Whatever it is."""


def one_of(*allowed: Any) -> Check:
    """One of some values."""

    def check(value: Any) -> None:
        if not any(type(value) is type(each) and value == each for each in allowed):
            raise _unfit(f"one of {', '.join(map(repr, allowed))}", value)

    return check


def optional(inner: Check) -> Check:
    """Accept None, or values that `inner` accepts."""

    def check(value: Any) -> None:
        if value is not None:
            inner(value)

    return check


def either(*checks: Check) -> Check:
    """Accept values that any of `checks` accepts; the last one raises."""

    def check(value: Any) -> None:
        for each in checks[:-1]:
            try:
                each(value)
            except UnfitError:
                continue
            return
        checks[-1](value)

    return check


def list_of(inner: Check, least: int = 0, most: int = 10_000_000) -> Check:
    """A list or tuple of `least` to `most` values that `inner` allows."""

    def check(value: Any) -> None:
        if not isinstance(value, list | tuple):
            raise _unfit("a list", value)
        if not least <= len(value) <= most:
            raise UnfitError(f"expected {least} to {most} entries, got {len(value)}")
        for index, each in enumerate(value):
            _at(index, inner, each)

    return check


def dict_of(inner: Check, keys: Check = anything) -> Check:
    """A dictionary with strings for keys, which `keys` allows, of values that `inner` allows."""

    def check(value: Any) -> None:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise _unfit("a dictionary with strings for keys", value)
        for key, each in value.items():
            keys(key)
            _at(key, inner, each)

    return check


def entries(required: Mapping[str, Check], optionals: Mapping[str, Check] | None = None) -> Check:
    """A dictionary that has the entries `required`, and may have `optionals` and any others."""
    extra = optionals or {}

    def check(value: Any) -> None:
        if not isinstance(value, dict):
            raise _unfit(f"a dictionary with {', '.join(required)}", value)
        if missing := [key for key in required if key not in value]:
            raise UnfitError(f"lacks {', '.join(missing)}")
        for key, inner in {**required, **extra}.items():
            if key in value:
                _at(key, inner, value[key])

    return check


def tensor(kind: str = "any", shape: Sequence[int | None] | None = None, *, finite: bool = False) -> Check:
    """A tensor whose numbers are of `kind` ("float", "integer" or "any"), with these sizes where they are not None."""

    def check(value: Any) -> None:
        if not isinstance(value, Tensor):
            raise _unfit("a tensor", value)
        if kind != "any" and kind != number_kind(value):
            raise UnfitError(f"expected a tensor of {kind} numbers, got {value.dtype}")
        fits = shape is None or (
            len(shape) == value.ndim
            and all(want is None or want == have for want, have in zip(shape, value.shape, strict=True))
        )
        if not fits:
            raise UnfitError(f"expected a tensor of shape {shape}, got {tuple(value.shape)}")
        if is_expanded(value):
            raise UnfitError(f"the numbers of the tensor of shape {tuple(value.shape)} are not stored one by one")
        if finite and not bool(torch.isfinite(value).all()):
            raise UnfitError(f"the tensor of shape {tuple(value.shape)} holds NaN or infinity")

    return check


def is_expanded(of: Tensor, beyond: int = 0) -> bool:
    """Return True if a tensor has more numbers than stored, by over `beyond` bytes, or is not a plain one."""
    if of.layout != torch.strided or of.is_quantized:
        return True
    return of.numel() * of.element_size() > of.untyped_storage().nbytes() + beyond


def number_kind(of: Tensor) -> str:
    """ "float", "integer" or "other" (truth values, complex numbers)."""
    if of.is_floating_point():
        return "float"
    return "integer" if not of.is_complex() and of.dtype != torch.bool else "other"


# --- holding something to it


def read_record(
    path: Path,
    check: Check,
    what: str,
    advice: str,
    *,
    error: type[DDPlugError] = DataError,
) -> dict[str, Any]:
    """The dictionary in a JSON file, without its checksum, if `check` allows it.

    Args:
        path: the file.
        check: what it may hold.
        what: what it is, with its article, for the errors.
        advice: what to do about a file that cannot be read, as a sentence.
        error: class of the errors.

    Raises `error` if the file is not there, is not JSON, has another checksum or is not allowed.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise UnfitError(f"it has more than {LARGEST:,} bytes")
        content: object = json.loads(path.read_bytes().decode("utf-8"))
        check_depth(content)
        content = unseal_record(content)
        if not isinstance(content, dict):
            raise _unfit("a dictionary", content)
        check(content)
    except (UnfitError, BrokenError, OSError, ValueError, RecursionError) as cause:
        said = f"{type(cause).__name__}: {cause}" if isinstance(cause, ValueError) else str(cause)
        problem = "it is nested too deeply" if isinstance(cause, RecursionError) else said
        raise error(
            f"'{path}' cannot be read as {what} ({problem}): it is damaged or half-written, or of another kind or "
            f"version. {advice}"
        ) from cause
    return content


def check_record(value: object, check: Check, what: str, advice: str, *, error: type[DDPlugError] = DataError) -> None:
    """Raise `error` unless `check` allows `value`, which is `what`; `advice` says what to do."""
    try:
        check_depth(value)
        check(value)
    except UnfitError as cause:
        raise error(f"{what} is damaged or of another version ({cause}). {advice}") from cause


def check_depth(value: object) -> None:
    """`UnfitError` if containers stand more than `DEEPEST` levels within each other."""
    for _ in nested(value):
        pass


def nested(value: object) -> Iterator[object]:
    """`value` and everything in it, without recursion; `UnfitError` below `DEEPEST` levels, as in a cycle."""
    waiting: list[tuple[object, int]] = [(value, 0)]
    seen: set[tuple[int, int]] = set()  # what stands in many places is looked at once for each level
    while waiting:
        held, depth = waiting.pop()
        yield held
        if isinstance(held, dict | list | tuple):
            if (id(held), depth) in seen:
                continue
            seen.add((id(held), depth))
            if depth == DEEPEST:
                raise UnfitError(f"it is nested more than {DEEPEST} levels deep")
            inner = held.values() if isinstance(held, dict) else held
            waiting += [(each, depth + 1) for each in inner]


def _at(step: str | int, check: Check, value: object) -> None:
    try:
        check(value)
    except UnfitError as cause:
        raise cause.within(step) from None


def _span(low: float, high: float) -> str:
    if math.isinf(low) and math.isinf(high):
        return "of ordinary size"
    return f">= {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"


def _unfit(expected: str, value: object) -> UnfitError:
    if isinstance(value, Tensor):
        return UnfitError(f"expected {expected}, got a tensor of shape {tuple(value.shape)}")
    if isinstance(value, int) and abs(value) > 10**_SHOWN:
        return UnfitError(f"expected {expected}, got a whole number of more than {_SHOWN} digits")
    shown = repr(value) if isinstance(value, str | int | float | bool | None) else type(value).__name__
    return UnfitError(f"expected {expected}, got {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '...'}")
