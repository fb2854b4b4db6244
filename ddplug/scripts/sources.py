"""A script and those of its own modules that it imports, as syntax trees: read, never run."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ddplug.errors import HostError

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef

LEVELS = 3
"""Number of folders above a script that are searched for its modules; many scripts put `..` on their path."""


@dataclass(frozen=True, eq=False)
class File:
    """A Python file, and the functions and classes that it defines, by dotted names."""

    path: Path
    tree: ast.Module
    definitions: dict[str, Definition] = field(default_factory=dict)

    @property
    def module(self) -> str:
        """Module name for `--at`."""
        return self.path.parent.name if self.path.stem == "__init__" else self.path.stem


def read(path: Path) -> File:
    """The file at `path`; `HostError` if there is none, or it is no Python."""
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except OSError as error:
        raise HostError(f"'{path}' cannot be read ({error.strerror}); expected a Python script.") from error
    except (SyntaxError, ValueError) as error:
        raise HostError(f"'{path}' is no Python that this interpreter understands: {error}") from error
    return of_tree(path, tree)


def of_tree(path: Path, tree: ast.Module) -> File:
    """The file at `path`, whose tree is this."""
    return File(path, tree, dict(_definitions(tree)))


def _definitions(node: ast.AST, before: str = "") -> Iterator[tuple[str, Definition]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            yield before + child.name, child
            yield from _definitions(child, f"{before}{child.name}.")
        else:
            yield from _definitions(child, before)


def folders_of(script: Path, path: Sequence[Path] = ()) -> list[Path]:
    """Return the folders of `script`'s modules: its own, those of `path`, and those above it."""
    return list(dict.fromkeys([script.parent, *path, *script.parents[1 : 1 + LEVELS]]))


def find_module(name: str, folders: Sequence[Path]) -> Path | None:
    """The file of the module `name` ("utils", "misc.augment") in `folders`; None if it is in none of them."""
    parts = name.split(".")
    for folder in folders:
        for path in (folder.joinpath(*parts).with_suffix(".py"), folder.joinpath(*parts, "__init__.py")):
            if all(parts) and path.is_file():
                return path
    return None


def with_imports(script: Path, path: Sequence[Path] = ()) -> dict[Path, File]:
    """The script, first, and all modules of its own that it imports, directly or not, by path.

    A module that is no Python for this interpreter is left out: the script may never get to it.
    """
    folders = folders_of(script, path)
    found = {script: read(script)}
    waiting = [script]
    while waiting:
        file = found[waiting.pop()]
        for module in _imported(file.tree):
            there = find_module(module, [file.path.parent, *folders])
            if there is None or there in found:
                continue
            try:
                found[there] = read(there)
            except HostError:
                continue
            waiting.append(there)
    return found


def _imported(tree: ast.Module) -> Iterator[str]:
    """Names of modules that may be meant by the imports of a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module:
                yield node.module
            # `from package import module`, and the same within a package
            yield from (f"{node.module}.{alias.name}" if node.module else alias.name for alias in node.names)
