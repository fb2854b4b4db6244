"""Places for the layer in a script without a patch, and its insertion while the script is read.

A place is a function, whose results are views, or a line, whose value is. A function is wrapped where it is defined, so
whoever imports it, under whatever name, gets the wrapped one; a line keeps its number. No file is changed.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddplug.errors import HostError
from ddplug.hosting.script import Source
from ddplug.scripts.sources import File, Function, find_module, folders_of, of_tree, read

NAMES = re.compile(r"(diff(erentiable)?_?)?aug(ment(ation)?)?s?(_?(fn|images?|imgs?|views?|batch))?|dsa", re.IGNORECASE)
"""Usual names of augmentations, functions and classes."""
CALLED = ("__call__", "forward")
"""Methods by which an object is called."""
OURS = "_ddplug_place_{}"
_LINE = re.compile(r"(.+\.py):(\d+)")


@dataclass(frozen=True)
class Place:
    """A function of a file by its name, "DiffAug.__call__", or else the value of the statement at `line`."""

    path: Path
    line: int
    name: str = ""

    def __str__(self) -> str:
        return f"{self.path.name}:{self.line}" + (f" ({self.name})" if self.name else "")

    @property
    def at(self) -> str:
        """Spelling for `--at`."""
        return f"{self.path.stem}:{self.name}" if self.name else f"{self.path.name}:{self.line}"


def usual(files: Mapping[Path, File]) -> list[Place]:
    """Every function and every class of objects to be called that has the usual name of an augmentation."""
    found = []
    for file in files.values():
        for name, node in file.definitions.items():
            if NAMES.fullmatch(node.name):
                method = node if isinstance(node, Function) else _called(file, name)
                if method is not None:
                    found.append(Place(file.path, method.lineno, _name_of(file, method)))
    return list(dict.fromkeys(found))


def callable_in(file: File, name: str) -> Function | None:
    """The function `name` of a file, or that by which objects of the class `name` are called."""
    node = file.definitions.get(name)
    return node if isinstance(node, Function) else _called(file, name) if node is not None else None


def _called(file: File, name: str) -> Function | None:
    """The method by which an object of the class `name` is called, if the class itself has it."""
    for method in CALLED:
        if isinstance(found := file.definitions.get(f"{name}.{method}"), Function):
            return found
    return None


def _name_of(file: File, wanted: Function) -> str:
    return next(name for name, node in file.definitions.items() if node is wanted)


def named(at: str, files: Mapping[Path, File], script: Path, path: Sequence[Path] = ()) -> Place:
    """The place that `at` means: FUNCTION, CLASS or CLASS.METHOD, MODULE: before it or not, or FILE.py:LINE.

    Raises:
        HostError: there is no such place, or several; it says what there is.
    """
    if line := _LINE.fullmatch(at):
        return _line(line[1], int(line[2]), files, script, path)
    module, _, name = at.rpartition(":")
    among = list(files.values())
    if module:
        there = find_module(module.removesuffix(".py"), folders_of(script, path))
        if there is None:
            raise HostError(
                f"--at {at}: there is no module '{module}' beside {script.name}, above it or in the folders of --path. "
                "A place in an installed package is named by the line that calls it: --at FILE.py:LINE."
            )
        among = [files.get(there) or read(there)]
    found = []
    for file in among:
        if (method := callable_in(file, name)) is not None:
            found.append(Place(file.path, method.lineno, _name_of(file, method)))
    if len(found) == 1:
        return found[0]
    if found:
        which = ", ".join(f"{place.at} (line {place.line})" for place in found)
        raise HostError(f"--at {at} may be any of {which}; name one with its module.")
    names = sorted({name for file in among for name, node in file.definitions.items() if isinstance(node, Function)})
    close = [name for name in names if NAMES.fullmatch(name.split(".")[-1])] or names
    raise HostError(
        f"--at {at}: no function, and no class whose objects are called, of that name in "
        f"{', '.join(file.path.name for file in among[:6])}. There are: {', '.join(close[:12]) or 'none'}. "
        f"`ddplug find {script}` lists places to try."
    )


def _line(name: str, number: int, files: Mapping[Path, File], script: Path, path: Sequence[Path]) -> Place:
    known = [file for file in files if file.name == Path(name).name and str(file).endswith(name)]
    there = known[0] if known else next((f / name for f in folders_of(script, path) if (f / name).is_file()), None)
    if there is None:
        raise HostError(f"--at {name}:{number}: {script.name} and what it imports have no file '{name}'.")
    file = files.get(there) or read(there)
    if _statement(file.tree, number) is None:
        raise HostError(
            f"--at {name}:{number}: there is no assignment, return, or call of append in that line, so no value to put "
            "the layer on. Name the line in which the views get their name."
        )
    return Place(there, number)


def has_value(tree: ast.Module, line: int) -> bool:
    """Return True if `--at FILE.py:LINE` may name that line."""
    return _statement(tree, line) is not None


Stated = ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Return | ast.Expr


def _statement(tree: ast.Module, line: int) -> Stated | None:
    """The innermost statement with a value that spans `line`."""
    found = None
    for node in ast.walk(tree):  # from outside in
        if isinstance(node, Stated) and node.lineno <= line <= (node.end_lineno or node.lineno):
            if isinstance(node, ast.Expr) and _appended(node) is None:
                continue
            found = node if node.value is not None else found
    return found


def _appended(node: ast.Expr) -> ast.Call | None:
    """The call in a statement like `views.append(augment(images))`."""
    call = node.value
    appends = isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "append"
    return call if appends and isinstance(call, ast.Call) and len(call.args) == 1 else None


def sources(
    places: Sequence[Place], files: Mapping[Path, File], around: Callable[[Place], object]
) -> dict[Path, Source]:
    """The files of `places`, with the layer in.

    Args:
        places: where it goes.
        files: those that have been read.
        around: what is put at a place: for a function a decorator, for a line a function of the value.
    """
    made: dict[Path, Source] = {}
    for path in dict.fromkeys(place.path for place in places):
        tree = copy.deepcopy((files.get(path) or read(path)).tree)
        file = of_tree(path, tree)
        names: dict[str, object] = {}
        for number, place in enumerate(place for place in places if place.path == path):
            ours = OURS.format(number)
            names[ours] = around(place)
            name = ast.Name(ours, ast.Load())
            if place.name:
                function = file.definitions[place.name]
                # Nearest to the function, so that it gets the function itself and not what other decorators made of it.
                function.decorator_list.append(ast.copy_location(name, function))
            else:
                _wrap(tree, place.line, name)
        made[path] = Source(ast.fix_missing_locations(tree), names)
    return made


def _wrap(tree: ast.Module, line: int, name: ast.Name) -> None:
    statement = _statement(tree, line)
    assert statement is not None
    assert statement.value is not None
    appended = _appended(statement) if isinstance(statement, ast.Expr) else None
    value = appended.args[0] if appended is not None else statement.value
    call = ast.copy_location(ast.Call(name, [value], []), value)
    if appended is not None:
        appended.args[0] = call
    else:
        statement.value = call
