"""Keeping torch.compile out of our own code, which is called from within what it compiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from torch._compile import _disable_dynamo

_P = ParamSpec("_P")
_R = TypeVar("_R")


def uncompiled(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """`function`, which runs as it is written, with all that it calls, also where its caller is compiled.

    What it does depends on counters, weak references and the backward pass at work, of which a compiler makes a graph
    break for each and no gain. This is `torch.compiler.disable`, but for the moment at which torch's compiler is
    imported: when the function is first called, as with torch's own optimizers, and not with ddplug.
    """
    return _disable_dynamo(function)
