"""The labels of the views that a function of the host's has made: said by the user, or found among its variables."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddplug.errors import HostError, InputError
from ddplug.scripts.frames import Expression, Scope
from ddplug.scripts.sources import read
from ddplug.terms.base import check_labels

LIKE_LABELS = re.compile(r"(^|_)(y|labs?|labels?|targets?|cls|class(es)?)(_|\d|$)", re.IGNORECASE)
CALLS = re.compile(r"calls:(\d+)")
OPTION = "--labels"
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True, eq=False)
class Found:
    """A candidate for the labels."""

    text: str
    """Spelling for `--labels`."""
    kind: str
    """What it is: "an argument", "a variable", "a loop's variable"."""
    labels: Tensor

    def __str__(self) -> str:
        return f"{self.text} ({self.kind})"


class LabelReader:
    """Reads the labels at every call.

    Args:
        given: `calls:K`, an expression, or an empty string: find them.
        classes: how many there are, if that is known.
    """

    def __init__(self, given: str, classes: int | None) -> None:
        counted = CALLS.fullmatch(given.strip())
        self.per_step = int(counted[1]) if counted else 0
        if counted and not self.per_step:
            raise InputError(f"{OPTION} {given}: expected how many classes there are, --labels calls:10.")
        self.expression = Expression(given, OPTION) if given and not counted else None
        self.classes = classes
        self.calls = 0
        self.said: dict[str, str] = {}
        """By the place of the calls, where their labels came from."""
        self._taken: dict[str, list[str]] = {}

    def read(self, where: str, scopes: Sequence[Scope], rows: int) -> Tensor:
        """Labels (rows,) of the views of a call.

        Args:
            where: the place of the call; each may have labels of its own.
            scopes: the variables there, from the innermost function out.
            rows: how many synthetic views there are.

        Raises:
            HostError: labels cannot be told without being named, or what was taken contradicts itself later on.
            InputError: what was named are no labels of so many views.
        """
        if self.per_step:
            self.calls += 1
            self.said[where] = f"the number of the call, of {self.per_step}"
            return torch.full((rows,), (self.calls - 1) % self.per_step)
        if self.expression is not None:
            value, scope = self.expression.value(scopes)
            self.said.setdefault(where, f"`{self.expression.text}` in {scope.where}")
            return self._spread(value, rows)
        if where not in self._taken:
            self._taken[where] = self._find(where, scopes, rows)
        labels, *others = [self._spread(Expression(text, OPTION).value(scopes)[0], rows) for text in self._taken[where]]
        for text, other in zip(self._taken[where][1:], others, strict=True):
            if not torch.equal(labels.cpu(), other.cpu()):
                raise HostError(
                    f"{self._taken[where][0]} and {text} gave the same labels at first, and other ones now, at "
                    f"{where}. Say which are meant: {OPTION} EXPRESSION."
                )
        return labels

    def _spread(self, value: Any, rows: int) -> Tensor:
        what = f"{OPTION} {self.expression.text!r}" if self.expression is not None else "what was taken as labels"
        try:
            labels = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{what} is {type(value).__name__}, expected class numbers.") from error
        if labels.ndim == 0:
            labels = labels.expand(rows)
        try:
            check_labels(labels, rows)
        except InputError as error:
            raise InputError(f"{error} These are {what}.") from error
        return labels

    def _find(self, where: str, scopes: Sequence[Scope], rows: int) -> list[str]:
        """Return the expressions of the labels at `where` that agree, the surest first; `HostError` if none is sure."""
        for scope in scopes:
            found = list(candidates(scope, rows, self.classes))
            if not found:
                continue
            differing = [other for other in found[1:] if not torch.equal(other.labels.cpu(), found[0].labels.cpu())]
            if differing:
                raise HostError(
                    f"the labels of the {rows} views at {where} may be {', '.join(map(str, found))}, which are not the "
                    f"same. Say which: {OPTION} {found[0].text}, say."
                )
            self.said[where] = f"`{found[0].text}`, {found[0].kind} in {scope.where}"
            if len(found) > 1:
                self.said[where] += f" (held to agree with {', '.join(f'`{each.text}`' for each in found[1:])})"
            return [each.text for each in found]
        others = [f"{text} ({kind})" for scope in scopes[:3] for text, kind in unlikely(scope, rows)]
        raise HostError(
            f"no labels of the {rows} views at {where} were found: no integers ({rows},) of a name like y, labels or "
            "targets among the arguments and variables, and no loop over the classes. Say where they are: "
            f"{OPTION} EXPRESSION, evaluated there, or {OPTION} calls:K if it comes with one of K classes after the "
            f"other. Of that length there are: {', '.join(others) or 'none'}."
        )


def candidates(scope: Scope, rows: int, classes: int | None) -> Iterator[Found]:
    """Yield candidates for the labels of `rows` views in one function's variables: tensors by name, then loops."""
    kind = "a variable" if scope.code is not None else "an argument"
    for text, value in _tensors(scope, rows):
        within = bool((value >= 0).all()) and (classes is None or bool((value < classes).all()))
        if within and LIKE_LABELS.search(text.rpartition(".")[2]):
            yield Found(text, kind, value.detach())
    for name in _class_loops(scope, classes):
        yield Found(name, "a loop's variable", torch.full((rows,), scope.local.get(name, scope.everywhere.get(name))))


def unlikely(scope: Scope, rows: int) -> Iterator[tuple[str, str]]:
    """Integers of the right length whose names are not those of labels: to be named in a message."""
    for text, value in _tensors(scope, rows):
        if not LIKE_LABELS.search(text.rpartition(".")[2]):
            yield text, f"{str(value.dtype).removeprefix('torch.')} from {int(value.min())} to {int(value.max())}"


def _tensors(scope: Scope, rows: int) -> Iterator[tuple[str, Tensor]]:
    held = scope.local if scope.local or scope.code is None else scope.everywhere
    members = vars(held["self"]) if hasattr(held.get("self"), "__dict__") else {}
    named = [*held.items(), *((f"self.{name}", value) for name, value in members.items())]
    for text, value in named:
        if isinstance(value, Tensor) and value.shape == (rows,) and value.dtype in INTEGERS:
            yield text, value


def _class_loops(scope: Scope, classes: int | None) -> Iterator[str]:
    """Variables of loops `for c in range(N)` around the running line, where N is the number of classes."""
    if classes is None or scope.code is None:
        return
    for node in ast.walk(read(Path(scope.code.co_filename)).tree):
        # A loop around the function's definition is not its own.
        if not isinstance(node, ast.For) or not scope.code.co_firstlineno <= node.lineno <= scope.line:
            continue
        if scope.line > (node.end_lineno or 0) or not isinstance(node.target, ast.Name):
            continue
        name = node.target.id
        if not name.startswith("_") and _length(node.iter, scope) == classes and scope.has(name):
            yield name


def _length(node: ast.expr, scope: Scope) -> int | None:
    """Return the length of `range(N)`, if N is a number, a name or an attribute: looked up, nothing is called."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range"):
        return None
    if len(node.args) != 1 or any(isinstance(part, ast.Call) for part in ast.walk(node.args[0])):
        return None
    try:
        value, _ = Expression(ast.unparse(node.args[0]), OPTION).value([scope])
    except HostError:
        return None
    return value if isinstance(value, int) else None
