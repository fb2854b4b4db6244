"""A patch in memory: functions of an imported module get the code of the patched text."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from typing import Any

from ddplug.attaching.hooks import Undo
from ddplug.errors import HostError
from ddplug.hosting.layer import NAME, Attached


def patch_module(module: types.ModuleType, original: bytes, patched: bytes, hosting: Attached) -> Undo:
    """Give the functions of `module` that differ between the two texts the code of `patched`; returns the undo.

    The function objects stay the same, also where they have been imported to. The module's top level does not run
    again. `hosting` is put under the name that our lines use.
    """
    file = module.__file__ or module.__name__
    before, after = (dict(_functions(compile(text, file, "exec", dont_inherit=True))) for text in (original, patched))
    changed = {name: code for name, code in after.items() if not _same(before[name], code)}
    if not changed:
        raise HostError(f"the patch changes no function of {module.__name__}; run it with `ddplug run`.")
    targets = {name: _function(module, name) for name in changed}
    originals = {name: function.__code__ for name, function in targets.items()}
    active = True
    vars(module)[NAME] = hosting
    for name, function in targets.items():
        function.__code__ = changed[name]

    def undo() -> None:
        nonlocal active
        if not active:
            return
        active = False
        hosting.save()
        for name, function in targets.items():
            function.__code__ = originals[name]
        vars(module).pop(NAME, None)

    return undo


def _functions(code: types.CodeType) -> Iterator[tuple[str, types.CodeType]]:
    """Functions and methods of a module's code by qualified name, except functions within functions."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            if constant.co_flags & inspect.CO_NEWLOCALS and constant.co_flags & inspect.CO_OPTIMIZED:
                yield constant.co_qualname, constant
            else:
                yield from _functions(constant)  # the body of a class


def _function(module: types.ModuleType, name: str) -> types.FunctionType:
    """The function of `module` with this qualified name, below its decorators."""
    found: Any = module
    for part in name.split("."):
        found = inspect.getattr_static(found, part, None)
    found = inspect.unwrap(getattr(found, "__func__", found)) if found is not None else None
    if not isinstance(found, types.FunctionType):
        raise HostError(f"{module.__name__} no longer has a function '{name}'; other code has replaced it.")
    return found


def _same(first: types.CodeType, second: types.CodeType) -> bool:
    """Return True if two code objects are equal, line numbers aside."""
    if (first.co_code, first.co_names, first.co_varnames) != (second.co_code, second.co_names, second.co_varnames):
        return False
    if len(first.co_consts) != len(second.co_consts):
        return False
    return all(
        _same(a, b) if isinstance(a, types.CodeType) and isinstance(b, types.CodeType) else repr(a) == repr(b)
        for a, b in zip(first.co_consts, second.co_consts, strict=True)
    )
