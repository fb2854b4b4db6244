"""Variables of a host's functions while one of ours runs, and expressions evaluated there."""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddplug.attaching.held import items_of
from ddplug.errors import HostError, InputError
from ddplug.hosting.script import execute

_OTHERS = (str(Path(__file__).parents[1]), *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")))
"""Folders of ddplug, Python and installed packages."""


@dataclass(frozen=True, eq=False)
class Scope:
    """The variables of one function under way: a snapshot, to be dropped before the host goes on."""

    where: str
    """Name in messages: "main() of train.py:31"."""
    local: Mapping[str, Any]
    everywhere: Mapping[str, Any]
    """The names of its module."""
    code: types.CodeType | None = None

    def has(self, name: str) -> bool:
        """Return True if `name` is defined in the scope."""
        return name in self.local or name in self.everywhere or (self.code is not None and hasattr(builtins, name))


class Expression:
    """An expression that the user wrote, `these_indices // args.ipc`, evaluated in the host's functions."""

    def __init__(self, text: str, option: str) -> None:
        self.text, self.option = text, option
        try:
            tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, ValueError) as error:
            raise InputError(f"{option} {text!r} is no expression: {error}") from error
        self._code = compile(tree, f"<{option}>", "eval")
        bound = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        self.names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - bound

    def value(self, scopes: Sequence[Scope]) -> tuple[Any, Scope]:
        """Its value in the first of `scopes` that has all its names, and which that was; `HostError` if none has."""
        for scope in scopes:
            if all(scope.has(name) for name in self.names):
                try:
                    return eval(self._code, {**scope.everywhere, **scope.local}), scope
                except Exception as error:
                    raise HostError(
                        f"{self.option} {self.text!r} could not be evaluated in {scope.where}: "
                        f"{type(error).__name__}: {error}"
                    ) from error
        known = "; ".join(f"{scope.where} has {', '.join(sorted(scope.local)) or 'none'}" for scope in scopes)
        raise HostError(f"{self.option} {self.text!r}: no function on the way knows all of its names. {known}.")


class Variables:
    """Variables of the functions under way at a call, by dotted names; empty between calls, to keep nothing alive."""

    def __init__(self) -> None:
        self._scopes: Callable[[], Sequence[Scope]] = tuple

    @contextmanager
    def of(self, scopes: Callable[[], Sequence[Scope]]) -> Iterator[None]:
        """Look into `scopes` in the block, from the innermost out, if anything is looked for."""
        self._scopes = functools.cache(scopes)
        try:
            yield
        finally:
            self._scopes = tuple

    def groups(self) -> Iterator[Iterator[tuple[str, Any]]]:
        """Yield the variables of each function, from the innermost out; arguments belong to a call, not to the set."""
        for scope in self._scopes():
            if scope.code is not None:
                yield items_of(scope.local or scope.everywhere)

    def get(self, path: str) -> Any:
        """The value of an expression for labels; `HostError` if no function knows its names."""
        return self.value(Expression(path, "--labels"))

    def value(self, expression: Expression) -> Any:
        """The value of an expression; `HostError` if no function knows its names."""
        return expression.value(self._scopes())[0]


@functools.cache
def is_hosts(file: str) -> bool:
    """Return True if `file` is the host's: neither ddplug's nor Python's nor an installed package's."""
    return not file.startswith(("<", *_OTHERS)) and "site-packages" not in file


def calling() -> Iterator[types.FrameType]:
    """The host's functions under way, from the innermost out."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not execute.__code__:
        if is_hosts(frame.f_code.co_filename):
            yield frame
        frame = frame.f_back


def scope_of(frame: types.FrameType) -> Scope:
    """The variables of `frame`."""
    own = bool(frame.f_code.co_flags & inspect.CO_NEWLOCALS)
    held = frame.f_locals
    local = dict(held) if own else {}
    if own and isinstance(held, dict):
        held.clear()  # before Python 3.13 the frame keeps this copy of its variables, and with it what they held
    where = f"{frame.f_code.co_name}() of {place_of(frame)}" if own else place_of(frame)
    return Scope(where, local, frame.f_globals, frame.f_code)


def place_of(frame: types.FrameType) -> str:
    """FILE:LINE."""
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def arguments_of(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Scope:
    """The arguments that `function` is called with, by their names."""
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return Scope(f"the arguments of {function.__qualname__}", dict(bound.arguments), {})
