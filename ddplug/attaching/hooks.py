"""Interception of a callable of the host, which leaves no trace when undone.

The owner's class gets an attribute that intercepts what this one owner holds, also what it will hold later. An
`nn.Module` gets torch's own hooks and an object has its calls intercepted on its class, so both stay what they are. A
function or method is replaced by a delegate. Owners whose class cannot be changed hold the delegate themselves.
"""

from __future__ import annotations

import inspect
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ddplug.core.autograd import uncompiled
from ddplug.errors import HostError, caution

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Before = Callable[[tuple[Any, ...], dict[str, Any]], Arguments]
Instead = Callable[[tuple[Any, ...], dict[str, Any]], Any]
After = Callable[[tuple[Any, ...], dict[str, Any], Any], Any]
Undo = Callable[[], None]

_MISSING = object()


def resolve(owner: object, path: str) -> tuple[object, str]:
    """Return the object that holds the last name of a dotted `path`, and that name; `HostError` if it has no such."""
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent, _MISSING)
        if owner is _MISSING:
            raise HostError(f"there is no '{parent}' on the way to '{path}'.")
    if not callable(getattr(owner, name, None)):
        held = ", ".join(callables(owner)) or "none"
        raise HostError(f"{type(owner).__name__} has no method or function '{name}'; it has: {held}.")
    return owner, name


def refuse_class(owner: object) -> None:
    """Raise `HostError` for a class in the place of an instance."""
    if isinstance(owner, type):
        raise HostError(
            f"got the class {owner.__name__}, expected an instance of it or a module: attach once it is made."
        )


def callables(owner: object) -> list[str]:
    """Names of the public methods and functions of `owner`, for error messages."""
    names = vars(owner) if isinstance(owner, types.ModuleType) else dir(owner)
    ours = set(dir(nn.Module)) if isinstance(owner, nn.Module) else set()
    public = (name for name in names if not name.startswith("_") and name not in ours)
    return sorted(name for name in public if callable(inspect.getattr_static(owner, name, None)))


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """Return the signature of `function`, without `self`; None for builtins that have none."""
    function = original(function)
    try:
        return inspect.signature(
            function if _is_object(function) or not isinstance(function, nn.Module) else function.forward
        )
    except (TypeError, ValueError):
        return None


def original(given: Any) -> Any:
    """Unwrap torch.compile's or a training library's wrapper: return the user's own module or torch optimizer."""
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
        HostError: `owner` is a class, takes no attributes, or is already intercepted there.
    """
    refuse_class(owner)
    target = getattr(owner, name)
    if _is_intercepted(target):
        raise HostError(
            f"ddplug is already attached at {type(owner).__name__}.{name}; detach() that handle first, so that CMI is "
            "not counted twice."
        )
    interception = Interception(before, instead, after)
    intercepted = interception.around(target)
    if not isinstance(owner, types.ModuleType) and hasattr(owner, "__dict__"):
        try:
            interception.undo.append(_on_class(owner, name, interception))
            return interception.stop
        except (AttributeError, TypeError):  # a class of C, whose attributes cannot be set
            pass
    interception.undo.append(_on_instance(owner, name, target, intercepted))
    return interception.stop


class Interception:
    """Interception of the calls of one attribute of one owner.

    The calls that an intercepted callable makes of itself are not intercepted.
    """

    def __init__(self, before: Before | None, instead: Instead | None, after: After | None) -> None:
        self._before, self._instead, self._after = before, instead, after
        self._within = threading.local()
        self._made: Intercepted | None = None
        self.active = True
        self.undo: list[Undo] = []

    def call(self, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call of `target`, intercepted."""
        if not self.active or getattr(self._within, "call", False):
            return target(*args, **kwargs)
        self._within.call = True
        try:
            if self._before is not None:
                args, kwargs = self._before(args, kwargs)
            result = target(*args, **kwargs) if self._instead is None else self._instead(args, kwargs)
            return result if self._after is None else self._after(args, kwargs, result)
        finally:
            self._within.call = False

    def around(self, target: Any) -> Any:
        """Return what replaces `target`. A module or an object of a Python class stays itself."""
        if _is_object(target):
            if not _is_intercepted(target):
                self.undo.append(_on_class(target, _CALL, self))
            return target
        if isinstance(target, nn.Module):
            if not _is_intercepted(target):
                self._hook(target)
            return target
        if not callable(target):
            return target
        if self._made is None or self._made.__wrapped__ != target:
            self._made = Intercepted(target, self)
        return self._made

    def _hook(self, module: nn.Module) -> None:
        """Intercept the calls of a module by torch's hooks; torch has none in the place of a call."""
        if isinstance(module, torch.jit.ScriptModule):
            raise HostError(
                f"{type(module).__name__} is compiled by torch.jit, which takes no hooks. Call it in a function or "
                "method and attach there: at='NAME'."
            )
        if self._instead is not None:
            delegate = Intercepted(module.forward, self)
            self.undo.append(_on_instance(module, "forward", module.forward, delegate))
            return
        if self._before is not None:
            hook: Any = ModuleHook(module, self._before)
            self.undo.append(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        if self._after is not None:
            hook = ModuleHook(module, self._after)
            self.undo.append(module.register_forward_hook(hook, with_kwargs=True).remove)

    def stop(self) -> None:
        """Undo all changes."""
        self.active, self._made = False, None
        while self.undo:
            self.undo.pop()()


class Intercepted:
    """A callable that replaces a callable of the host. It calls the host's, and has its attributes.

    Copies and pickles of the owner get the owner's own callable: what is attached to one trainer is not to its copy.
    """

    def __init__(self, target: Callable[..., Any], interception: Interception) -> None:
        vars(self).update(__wrapped__=target, _interception=interception)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The call, intercepted."""
        return self._interception.call(self.__wrapped__, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["__wrapped__"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__wrapped__, name, value)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _itself, (self.__wrapped__,)


class Attribute:
    """The attribute `name` of a class of which some instances are intercepted. It changes nothing for the others.

    The instances keep what they hold, so that copies have their own, and a callable put there later is intercepted too.
    """

    def __init__(self, kind: type, name: str) -> None:
        self._kind, self._name, self.users = kind, name, 0
        self.before = vars(kind).get(name, _MISSING)

    def _of_class(self) -> Any:
        if self.before is not _MISSING:
            return self.before
        bases = (vars(base) for base in self._kind.__mro__[1:])
        return next((names[self._name] for names in bases if self._name in names), _MISSING)

    @uncompiled
    def __get__(self, instance: Any, kind: type | None = None) -> Any:
        held = self._of_class()
        own = {} if instance is None or self._name == _CALL else vars(instance)  # Python calls the class's `__call__`
        if self._name in own and not hasattr(type(held), "__set__"):
            value = own[self._name]
        elif held is not _MISSING:
            value = held.__get__(instance, kind) if hasattr(type(held), "__get__") else held
        elif hasattr(self._kind, "__getattr__"):  # as modules find theirs
            value = self._kind.__getattr__(instance, self._name)
        else:
            raise AttributeError(f"{self._kind.__name__!r} object has no attribute {self._name!r}")
        interception = _intercepts(instance, self._name) if type(instance) is self._kind else None
        return value if interception is None else interception.around(value)

    def __set__(self, instance: Any, value: Any) -> None:
        held = self._of_class()
        if hasattr(type(held), "__set__"):
            held.__set__(instance, value)
        else:
            vars(instance)[self._name] = value

    def __delete__(self, instance: Any) -> None:
        del vars(instance)[self._name]


class _Mark:
    """The interception of one instance, kept among its attributes. Copies of the instance are not intercepted."""

    def __init__(self, owner: object, interception: Interception) -> None:
        try:
            self.owner: Callable[[], object] = weakref.ref(owner)
        except TypeError:
            self.owner = lambda: owner
        self.interception = interception

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _itself, (None,)


_AT, _CALL = "__ddplug_at_", "__call__"


def _intercepts(instance: object, name: str) -> Interception | None:
    mark = getattr(instance, "__dict__", {}).get(_AT + name)
    return mark.interception if mark is not None and mark.owner() is instance else None


def _is_intercepted(target: object) -> bool:
    """Return True if calls of `target` are intercepted, for whatever owner."""
    if not isinstance(target, nn.Module) or _is_object(target):
        return isinstance(target, Intercepted) or _intercepts(target, _CALL) is not None
    hooks = (*target._forward_pre_hooks.values(), *target._forward_hooks.values())
    of_target = any(isinstance(hook, ModuleHook) and hook.module() is target for hook in hooks)
    return of_target or isinstance(vars(target).get("forward"), Intercepted)


def _is_object(target: object) -> bool:
    """Return True if calls of `target` are of a Python class's `__call__`, on an object with attributes of its own.

    A module is such an object if its class has another `__call__` than torch's, which need not run torch's hooks.
    """
    call = getattr(type(target), _CALL, None)
    if not isinstance(call, types.FunctionType) or not hasattr(target, "__dict__"):
        return False
    return not isinstance(target, nn.Module) or not call.__module__.startswith("torch.")


def _on_class(owner: object, name: str, interception: Interception) -> Undo:
    kind = type(owner)
    found = vars(kind).get(name)
    attribute = found if isinstance(found, Attribute) else Attribute(kind, name)
    setattr(kind, name, attribute)
    attribute.users += 1
    vars(owner)[_AT + name] = _Mark(owner, interception)

    def undo() -> None:
        vars(owner).pop(_AT + name, None)
        attribute.users -= 1
        if attribute.users or vars(kind).get(name) is not attribute:
            return
        if attribute.before is _MISSING:
            delattr(kind, name)
        else:
            setattr(kind, name, attribute.before)

    return undo


class ModuleHook:
    """A hook of one module, which does nothing on copies of that module, as `copy.deepcopy` and pickle make them.

    The replicas that `nn.DataParallel` makes for each forward pass are the module itself, on another device.
    """

    def __init__(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        self.module, self._hook = weakref.ref(module), hook

    def __call__(self, module: nn.Module, *given: Any) -> Any:
        """Hook that torch calls around the module's forward."""
        own = module is self.module() or getattr(module, "_is_replica", False)
        return self._hook(*given) if own else None

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _itself, (_nothing,)


def _itself(given: Any) -> Any:
    return given


def _nothing(*given: Any) -> None:
    """Hook of a copied module, which changes nothing."""


def _on_instance(owner: object, name: str, target: object, intercepted: object) -> Undo:
    """Let `owner` itself hold what is intercepted: a module, a namespace, an object with slots."""
    own = not hasattr(owner, "__dict__") or name in vars(owner)
    try:
        if intercepted is not target:
            setattr(owner, name, intercepted)
    except (AttributeError, TypeError) as error:
        raise HostError(
            f"{type(owner).__name__}.{name} cannot be replaced ({error}). Put the layer into the loop by hand: "
            "views = ddplug.Regularizer(proxies, weight)(views, labels)."
        ) from error

    def undo() -> None:
        if getattr(owner, name, None) is not intercepted:
            caution(
                f"{type(owner).__name__}.{name} was replaced by somebody else after ddplug was attached; it was left "
                "as it is, and ddplug's part of it does nothing any more.",
                stacklevel=4,
            )
        elif own and intercepted is not target:
            setattr(owner, name, target)
        elif intercepted is not target:
            delattr(owner, name)

    return undo
