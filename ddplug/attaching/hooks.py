"""Putting something before or after a callable that belongs to somebody else, and taking it away without a trace.

Functions and methods are replaced on their owner; an `nn.Module` keeps its place and gets torch's own hooks, so that
no object of the user's is ever wrapped in another type.
"""

from __future__ import annotations

import functools
import inspect
import threading
import types
import warnings
import weakref
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ddplug.errors import AttachError, DDPlugWarning

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Before = Callable[[tuple[Any, ...], dict[str, Any]], Arguments]
Instead = Callable[[tuple[Any, ...], dict[str, Any]], Any]
After = Callable[[tuple[Any, ...], dict[str, Any], Any], Any]
Undo = Callable[[], None]

_MISSING = object()
_HOOKED: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Modules that carry hooks of ours."""


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
    function = original(function)
    try:
        return inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):
        return None


def original(given: Any) -> Any:
    """What `torch.compile` or a training library has wrapped: the module, or the torch optimizer, of the user's own."""
    while True:
        inner = getattr(given, "_orig_mod", None) if isinstance(given, nn.Module) else None
        if inner is None and isinstance(getattr(given, "optimizer", None), Optimizer):
            # A trainer has an attribute of that name, too; a wrapper is an optimizer itself, or of Lightning's making.
            wraps = isinstance(given, Optimizer) or type(given).__name__ == "LightningOptimizer"
            inner = given.optimizer if wraps else None
        if inner is None:
            return given
        given = inner


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
    replaced = target.__dict__.get("forward") if isinstance(target, nn.Module) else target
    if isinstance(replaced, Intercepted) or (isinstance(target, nn.Module) and target in _HOOKED):
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


class Intercepted:
    """A callable in the place of somebody's own, which it calls; switched off, it does nothing else.

    Copies and pickles of the owner get the owner's own callable: what is attached to one trainer is not to its copy.
    """

    def __init__(
        self, target: Callable[..., Any], before: Before | None, instead: Instead | None, after: After | None
    ) -> None:
        functools.update_wrapper(self, target)
        self._target, self._before, self._instead, self._after = target, before, instead, after
        self.active = True
        self._within = threading.local()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The call, intercepted; the calls that it makes of itself are not."""
        if not self.active or getattr(self._within, "call", False):
            return self._target(*args, **kwargs)
        self._within.call = True
        try:
            if self._before is not None:
                args, kwargs = self._before(args, kwargs)
            result = self._target(*args, **kwargs) if self._instead is None else self._instead(args, kwargs)
            return result if self._after is None else self._after(args, kwargs, result)
        finally:
            self._within.call = False

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _itself, (self._target,)


class ModuleHook:
    """A hook of one module, which on copies of that module, as `copy.deepcopy` and pickle make them, does nothing.

    The replicas that `nn.DataParallel` makes for each forward pass are the module itself, on another device.
    """

    def __init__(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        self._module, self._hook = weakref.ref(module), hook

    def __call__(self, module: nn.Module, *given: Any) -> Any:
        """What torch calls around the module's forward."""
        own = module is self._module() or getattr(module, "_is_replica", False)
        return self._hook(*given) if own else None

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _itself, (_nothing,)


def _itself(given: Any) -> Any:
    return given


def _nothing(*given: Any) -> None:
    """A hook that leaves everything as it is."""


def _hook(module: nn.Module, before: Before | None, after: After | None) -> Undo:
    handles = []
    if before is not None:
        handles.append(module.register_forward_pre_hook(ModuleHook(module, before), with_kwargs=True))
    if after is not None:
        handles.append(module.register_forward_hook(ModuleHook(module, after), with_kwargs=True))
    _HOOKED.add(module)

    def undo() -> None:
        for handle in handles:
            handle.remove()
        _HOOKED.discard(module)

    return undo


def _replace(owner: object, name: str, before: Before | None, instead: Instead | None, after: After | None) -> Undo:
    target = getattr(owner, name)
    intercepted = Intercepted(target, before, instead, after)
    original = getattr(owner, "__dict__", {}).get(name, _MISSING)
    try:
        setattr(owner, name, intercepted)
    except (AttributeError, TypeError) as error:
        raise AttachError(
            f"{type(owner).__name__}.{name} cannot be replaced ({error}). Put the layer into the loop by hand: "
            "views = ddplug.Regularizer(proxies, weight)(views, labels)."
        ) from error

    def undo() -> None:
        if not intercepted.active:
            return
        intercepted.active = False
        if getattr(owner, name, None) is not intercepted:
            warnings.warn(
                f"{type(owner).__name__}.{name} was replaced by somebody else after ddplug was attached; it was left "
                "as it is, and ddplug's part of it does nothing any more.",
                DDPlugWarning,
                stacklevel=3,
            )
        elif name not in getattr(owner, "__dict__", {}):
            setattr(owner, name, target)  # a slot, or a property with a setter
        elif original is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, original)

    return undo
