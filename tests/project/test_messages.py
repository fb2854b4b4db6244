"""Functions, arguments, commands and options that messages name are there."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import re
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

import ddplug
from ddplug.cli.app import app
from ddplug.core.regularizer import Options
from ddplug.proxies.pretrain import pretrain

ROOT = Path(__file__).parents[2]
NOT_OURS = {"is_grads_batched", "transform", "inplace", "run_name", "digest", "--cmi", "--dataset"}
"""Names of torch, Python and hosts, and one of a `repr`."""


def strings() -> Iterator[tuple[str, str]]:
    """File and text of all strings with a space that are no docstrings, in pieces where something is filled in."""
    for file in sorted((ROOT / "ddplug").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                yield str(file), node.value if " " in node.value else ""


def parameters(held: Any, depth: int = 2) -> Iterator[str]:
    """Names of the parameters of a function, or of all functions in a module or class."""
    with suppress(TypeError, ValueError, RuntimeError):
        yield from inspect.signature(getattr(held, "__func__", held)).parameters
    if depth and (isinstance(held, type) or inspect.ismodule(held)):
        for name, each in vars(held).items():
            if not name.startswith("_") or name == "__call__":
                yield from parameters(each, depth - 1)


def test_messages_name_what_there_is() -> None:
    known, waiting = {}, {"ddplug": typer.main.get_command(app)}
    while waiting:
        name, command = waiting.popitem()
        known[name] = {option for each in command.params for option in each.opts}
        waiting |= {f"{name} {inner}": each for inner, each in getattr(command, "commands", {}).items()}
    names = {*NOT_OURS, *Options.__annotations__, *parameters(pretrain)}
    names |= {name for public in dir(ddplug) for name in parameters(getattr(ddplug, public))}.union(*known.values())
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wrong = []
    for file, text in strings():
        for path in re.findall(r"\bddplug(?:\.[A-Za-z_]\w*)+", text):
            try:
                pkgutil.resolve_name(path)
            except (AttributeError, ImportError):
                wrong.append((file, path))
        said = re.findall(r"(?<![\w.-])([a-z_]+)=(?!=)", text)
        said += [] if "/hosting/" in file else re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)  # there, of hosts
        wrong += [(file, each) for each in said if each not in names]
        wrong += [(file, each) for each in re.findall(r"`(ddplug [a-z]+)", text) if each not in known]
        wrong += [(file, each) for each in re.findall(r"ddplug\[(\w+)\]", text) if each not in extras]
    assert not wrong
