"""Putting something before or after a callable that belongs to somebody else, and taking it away without a trace.

Functions and methods are replaced on their owner; an `nn.Module` keeps its place and gets torch's own hooks, so that
no object of the user's is ever wrapped in another type.
"""

from __future__ import annotations

import functools
import inspect
import types
import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from ddplug.errors import AttachError, DDPlugWarning

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Before = Callable[[tuple[Any, ...], dict[str, Any]], Arguments]
Instead = Callable[[tuple[Any, ...], dict[str, Any]], Any]
After = Callable[[tuple[Any, ...], dict[str, Any], Any], Any]
Undo = Callable[[], None]

_MISSING = object()
_MARK = "__ddplug_attached__"


def resolve(owner: object, path: str) -> tuple[object, str]:
    """The object that holds the last name of a dotted `path`, and that name; `AttachError` if there is no such."""
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent, _MISSING)
        if owner is _MISSING:
            raise AttachError(f"there is no '{parent}' on the way to '{path}'.")
    if not callable(getattr(owner, name, None)):
        held = ", ".join(callables(owner)) or "none"
        raise AttachError(f"{type(owner).__name__} has no method or function '{name}'; it has: {held}.")
    return owner, name


def callables(owner: object) -> list[str]:
    """Names of the public methods and functions of `owner`, for error messages."""
    names = vars(owner) if isinstance(owner, types.ModuleType) else dir(owner)
    ours = set(dir(nn.Module)) if isinstance(owner, nn.Module) else set()
    public = (name for name in names if not name.startswith("_") and name not in ours)
    return sorted(name for name in public if callable(inspect.getattr_static(owner, name, None)))


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """How `function` is called, without `self`; None for builtins that do not say."""
    try:
        return inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):
        return None


def intercept(
    owner: object,
    name: str,
    *,
    before: Before | None = None,
    instead: Instead | None = None,
    after: After | None = None,
) -> Undo:
    """Change what goes into, or comes out of, `owner.name` from now on; returns what undoes it (idempotent).

    Args:
        owner: an instance or a module.
        name: of a method, a function or an `nn.Module` on it.
        before: from (args, kwargs) to the ones that the callable gets.
        instead: from those arguments to a result, in the place of the callable, which is then not called.
        after: from (args, kwargs, result) to the result that the caller gets.

    Raises:
        AttachError: `owner` is a class, takes no attributes, or is already intercepted there.
    """
    if isinstance(owner, type):
        raise AttachError(
            f"got the class {owner.__name__}, expected an instance of it or a module: attach after making the trainer."
        )
    target = getattr(owner, name)
    if getattr(target, _MARK, False) or getattr(getattr(target, "forward", None), _MARK, False):
        raise AttachError(
            f"ddplug is already attached at {type(owner).__name__}.{name}; detach() that handle first, so that CMI is "
            "not counted twice."
        )
    if not isinstance(target, nn.Module):
        return _replace(owner, name, before, instead, after)
    if instead is None:
        return _hook(target, before, after)
    # Torch has no hook in the place of a call; its own `forward` can be overridden on the instance, and is put back.
    return _replace(target, "forward", before, instead, after)


def _hook(module: nn.Module, before: Before | None, after: After | None) -> Undo:
    handles = []
    if before is not None:
        call_before = before
        handles.append(
            module.register_forward_pre_hook(lambda _, args, kwargs: call_before(args, kwargs), with_kwargs=True)
        )
    if after is not None:
        call_after = after
        handles.append(
            module.register_forward_hook(
                lambda _, args, kwargs, result: call_after(args, kwargs, result), with_kwargs=True
            )
        )
    object.__setattr__(module, _MARK, True)

    def undo() -> None:
        for handle in handles:
            handle.remove()
        module.__dict__.pop(_MARK, None)

    return undo


def _replace(owner: object, name: str, before: Before | None, instead: Instead | None, after: After | None) -> Undo:
    target, active = getattr(owner, name), True

    @functools.wraps(target)
    def intercepted(*args: Any, **kwargs: Any) -> Any:
        if not active:
            return target(*args, **kwargs)
        if before is not None:
            args, kwargs = before(args, kwargs)
        result = target(*args, **kwargs) if instead is None else instead(args, kwargs)
        return result if after is None else after(args, kwargs, result)

    setattr(intercepted, _MARK, True)
    original = getattr(owner, "__dict__", {}).get(name, _MISSING)
    try:
        setattr(owner, name, intercepted)
    except (AttributeError, TypeError) as error:
        raise AttachError(
            f"{type(owner).__name__}.{name} cannot be replaced ({error}). Put the layer into the loop by hand: "
            "views = ddplug.Regularizer(proxies, weight)(views, labels)."
        ) from error

    def undo() -> None:
        nonlocal active
        if not active:
            return
        active = False
        if getattr(owner, "__dict__", {}).get(name) is not intercepted:
            warnings.warn(
                f"{type(owner).__name__}.{name} was replaced by somebody else after ddplug was attached; it was left "
                "as it is, and ddplug's part of it does nothing any more.",
                DDPlugWarning,
                stacklevel=3,
            )
        elif original is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, original)

    return undo
