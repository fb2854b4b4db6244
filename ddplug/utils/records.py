"""Formats of files as types, and one function that checks a value against them.

    class Network(TypedDict):
        file: str
        bytes: Count
        head: NotRequired[str | None]

    content = read_record(path, Network, "a network's record", "Copy it again.")

Entries that a type does not name are left alone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NotRequired,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from ddplug.errors import DataError, DDPlugError
from ddplug.utils.files import record_sha256

_NAMES = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", list: "a list"}


class UnfitError(Exception):
    """A value that its format does not allow."""


class Rule(NamedTuple):
    """A condition on values of a type, in `Annotated[type, rule]`."""

    text: str
    holds: Callable[[Any], bool]


def between(low: float = -math.inf, high: float = math.inf) -> Rule:
    """Require a finite number from `low` to `high`."""
    text = "that is finite" if (low, high) == (-math.inf, math.inf) else f"from {low:g} to {high:g}"
    return Rule(text, lambda value: low <= value <= high and -math.inf < value < math.inf)


def like(pattern: str) -> Rule:
    """Require a string that matches `pattern` as a whole."""
    return Rule(f"like {pattern}", lambda value: re.fullmatch(pattern, value) is not None)


def sized(least: int, most: int = 2**53) -> Rule:
    """Require `least` to `most` entries."""
    return Rule(f"of at least {least} entries", lambda value: least <= len(value) <= most)


Count = Annotated[int, between(0)]
Finite = Annotated[float, between()]
Fraction = Annotated[float, between(0, 1)]


def check(value: Any, kind: Any, where: str = "") -> None:
    """Raise `UnfitError` unless `value` is of `kind`, which may be any type that records are written with.

    Dataclasses and typed dictionaries stand for dictionaries with their fields. A tuple passes as a list.

    Args:
        value: the value, as JSON or torch read it.
        kind: its type.
        where: its place in the file, for the error.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return
    if origin in (NotRequired, Annotated):
        check(value, inner[0], where)
        fits = all(rule.holds(value) for rule in inner[1:])
    elif is_typeddict(kind) or is_dataclass(kind):
        fits = isinstance(value, dict)
        for name, hint in _fields(kind).items() if fits else ():
            if name in value:
                check(value[name], hint, f"{where}.{name}")
            elif get_origin(hint) is not NotRequired:
                raise UnfitError(f"{where[1:]}: lacks {name}".removeprefix(": "))
    elif origin in (Union, UnionType):
        others = [each for each in inner if each is not NoneType]
        fits = value is None and len(others) < len(inner)
        if not fits and len(others) == 1:
            return check(value, others[0], where)
        fits = fits or any(_passes(value, each) for each in others)
    elif origin is Literal:
        fits = value in inner
    elif origin is list:
        fits = isinstance(value, list | tuple)
        for index, each in enumerate(value if fits else ()):
            check(each, inner[0], f"{where}[{index}]")
    elif origin is dict:
        fits = isinstance(value, dict)
        for key, each in value.items() if fits else ():
            check(each, inner[1], f"{where}.{key}")
    else:
        fits = isinstance(value, int | float if kind is float else kind)
        fits = fits and (kind is bool or not isinstance(value, bool))
    if not fits:
        given = repr(value)[:60] if isinstance(value, str | int | float | None) else type(value).__name__
        raise UnfitError(f"{where.removeprefix('.')}: expected {_shown(kind)}, got {given}".removeprefix(": "))


def read_record(
    path: Path, kind: Any, what: str, advice: str, *, error: type[DDPlugError] = DataError
) -> dict[str, Any]:
    """Read the dictionary in a JSON file, without its checksum.

    Args:
        path: the file.
        kind: its type, see `check`.
        what: its name with its article, for the errors.
        advice: what to do about a file that cannot be read, as a sentence.
        error: class of the errors.

    Raises `error` if the file is missing, is not JSON, has another checksum or is not of this kind.
    """
    try:
        content: Any = json.loads(path.read_bytes())
        check(content, dict[str, Any])
        if content.pop("sha256", None) not in (None, record_sha256(content)):
            raise UnfitError("the checksum differs; if you have edited it, delete its entry sha256")
        check(content, kind)
    except (UnfitError, OSError, ValueError, RecursionError) as cause:
        raise error(
            f"'{path}' cannot be read as {what} ({type(cause).__name__}: {cause}): it is damaged or half-written, or "
            f"of another kind or version. {advice}"
        ) from cause
    return content  # type: ignore[no-any-return]


def check_record(value: object, kind: Any, what: str, advice: str, *, error: type[DDPlugError] = DataError) -> None:
    """Raise `error` unless `value`, which is `what`, is of `kind`; `advice` says what to do."""
    try:
        check(value, kind)
    except UnfitError as cause:
        raise error(f"{what} is damaged or of another version ({cause}). {advice}") from cause


def _fields(kind: Any) -> dict[str, Any]:
    """Return the fields of a typed dictionary or a dataclass, those with a default as not required."""
    hints = get_type_hints(kind, include_extras=True)
    if not is_dataclass(kind):
        return hints
    given = {each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING}
    return {name: hint if name in given else NotRequired[hint] for name, hint in hints.items()}


def _passes(value: Any, kind: Any) -> bool:
    try:
        check(value, kind)
    except UnfitError:
        return False
    return True


def _shown(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        return " ".join([_shown(get_args(kind)[0]), *(rule.text for rule in kind.__metadata__)])
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    if get_origin(kind) is dict or is_typeddict(kind) or is_dataclass(kind):
        return "a dictionary"
    return _NAMES.get(get_origin(kind) or kind, getattr(kind, "__name__", str(kind)))
