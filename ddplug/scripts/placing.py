"""Places for the layer in a script without a patch, and its insertion while the script is read.

A place is a function, whose results are views, or a line, whose value is. A function is wrapped where it is defined, so
whoever imports it, under whatever name, gets the wrapped one; a line keeps its number. No file is changed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddplug.errors import HostError
from ddplug.hosting.script import Source

LEVELS = 3
"""Number of folders above a script that are searched for its modules; many scripts put `..` on their path."""
OURS = "_ddplug_place_{}"


@dataclass(frozen=True)
class Place:
    """A function of a file by its name, "DiffAug.__call__", or else what a line makes.

    That is the value of the statement at `line`, or what a function that is called there returns.
    """

    path: Path
    line: int
    name: str = ""
    called: str = ""
    """The function in the line, as it is written there: "self.augment"."""

    def __str__(self) -> str:
        return f"{self.path.name}:{self.line}" + (f" ({self.name or self.called})" if self.name or self.called else "")


def folders_of(script: Path, path: Sequence[Path]) -> list[Path]:
    """Return the folders of `script`'s modules: its own, those of `path`, and those above it."""
    return [script.parent, *path, *script.parents[1 : 1 + LEVELS]]


def named(at: str, script: Path, path: Sequence[Path], advice: str) -> Place:
    """The place that `at` means: FILE.py:FUNCTION, FILE.py:LINE, FILE.py:LINE:CALLED, or a FUNCTION of the script.

    Raises:
        HostError: there is no such place; it says what there is, and gives the advice.
    """
    whole = re.fullmatch(r"(.*):(\d+):([\w.]+)", at)
    file, name, called = (whole[1], whole[2], whole[3]) if whole else (*at.rpartition(":")[::2], "")
    file = f"{file.removesuffix('.py')}.py" if file else script.name
    there = next((folder / file for folder in folders_of(script, path) if (folder / file).is_file()), None)
    if there is None:
        raise HostError(
            f"--at {at}: there is no file '{file}' beside {script.name}, above it or in the folders of --path. A place "
            "in an installed package is named by the line that calls it: --at FILE.py:LINE."
        )
    tree = read(there)
    if called:
        if called not in (calls := calls_in(tree, int(name))):
            raise HostError(
                f"--at {at}: '{called}' is not called in that line; there are {', '.join(calls) or 'no calls'}."
            )
        return Place(there.resolve(), int(name), called=called)
    if name.isdigit():
        if statement_at(tree, int(name)) is None:
            raise HostError(
                f"--at {at}: there is no assignment, return, or call of append in that line, so no value to put the "
                "layer on. Name the line in which the views get their name, or a function that is called there: "
                "--at FILE.py:LINE:FUNCTION."
            )
        return Place(there.resolve(), int(name))
    functions = functions_of(tree)
    if name not in functions:
        raise HostError(
            f"--at {at}: {there.name} has no function or method '{name}'; it has {', '.join(functions) or 'none'}. "
            f"{advice}."
        )
    return Place(there.resolve(), functions[name].lineno, name)


def read(path: Path) -> ast.Module:
    """The syntax tree of the file at `path`; `HostError` if there is none, or it is no Python."""
    try:
        return ast.parse(path.read_bytes(), str(path))
    except OSError as error:
        raise HostError(f"'{path}' cannot be read ({error.strerror}); expected a Python script.") from error
    except (SyntaxError, ValueError) as error:
        raise HostError(f"'{path}' is no Python that this interpreter understands: {error}") from error


def functions_of(node: ast.AST, before: str = "") -> dict[str, ast.FunctionDef]:
    """The functions and methods of a file, by dotted names."""
    found: dict[str, ast.FunctionDef] = {}
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, ast.FunctionDef | ast.ClassDef)
        if isinstance(child, ast.FunctionDef):
            found[before + child.name] = child
        found |= functions_of(child, f"{before}{child.name}." if named else before)  # type: ignore[attr-defined]
    return found


Stated = ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Return | ast.Expr


def statement_at(tree: ast.Module, line: int) -> Stated | None:
    """The innermost statement with a value that spans `line`."""
    found = None
    for node in ast.walk(tree):  # from outside in
        if isinstance(node, Stated) and node.lineno <= line <= (node.end_lineno or node.lineno):
            if isinstance(node, ast.Expr) and _appended(node) is None:
                continue
            found = node if node.value is not None else found
    return found


def value_at(tree: ast.Module, line: int) -> ast.expr | None:
    """The value that the statement at `line` assigns, returns or appends."""
    statement = statement_at(tree, line)
    appended = _appended(statement) if isinstance(statement, ast.Expr) else None
    if appended is not None:
        return appended.args[0]
    return None if statement is None else statement.value


def calls_in(tree: ast.AST, line: int) -> dict[str, list[ast.Call]]:
    """The calls that begin at `line`, by the name of the function as it is written; outer calls come first."""
    found: dict[str, list[ast.Call]] = {}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and node.lineno == line
            and re.fullmatch(r"[\w.]+", name := ast.unparse(node.func))
        ):
            found.setdefault(name, []).append(node)
    return found


class _Wrapping(ast.NodeTransformer):
    """Passes what calls of a function at a line return through another function; not calls among their arguments."""

    def __init__(self, place: Place, name: ast.Name) -> None:
        self._place, self._name = place, name

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Wrap `node` if it is one of these."""
        if node.lineno == self._place.line and ast.unparse(node.func) == self._place.called:
            return ast.copy_location(ast.Call(self._name, [node], []), node)
        return self.generic_visit(node)


def _appended(node: ast.Expr) -> ast.Call | None:
    """The call in a statement like `views.append(augment(images))`."""
    call = node.value
    appends = isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "append"
    return call if appends and isinstance(call, ast.Call) and len(call.args) == 1 else None


def sources(places: Sequence[Place], around: Callable[[Place], object]) -> dict[Path, Source]:
    """The files of `places`, with the layer in.

    Args:
        places: where it goes.
        around: what is put at a place: for a function a decorator, for a line a function of the value.
    """
    made: dict[Path, Source] = {}
    for path in dict.fromkeys(place.path for place in places):
        tree = read(path)
        functions = functions_of(tree)
        names: dict[str, object] = {}
        for number, place in enumerate(places):
            if place.path != path:
                continue
            ours = OURS.format(number)
            names[ours] = around(place)
            name = ast.Name(ours, ast.Load())
            if place.name:
                function = functions[place.name]
                # Nearest to the function, so that it gets the function itself and not what other decorators made of it.
                function.decorator_list.append(ast.copy_location(name, function))
            elif place.called:
                _Wrapping(place, name).visit(tree)
            else:
                _wrap(tree, place.line, name)
        made[path] = Source(ast.fix_missing_locations(tree), names)
    return made


def _wrap(tree: ast.Module, line: int, name: ast.Name) -> None:
    statement, value = statement_at(tree, line), value_at(tree, line)
    assert statement is not None
    assert value is not None
    call = ast.copy_location(ast.Call(name, [value], []), value)
    appended = _appended(statement) if isinstance(statement, ast.Expr) else None
    if appended is not None:
        appended.args[0] = call
    else:
        statement.value = call
