"""The page of `ddplug`'s commands and their options, read from the command line itself."""

from __future__ import annotations

import re
from typing import Any

import typer

from ddplug.cli.app import app


def commands_page() -> str:
    """Every command with its arguments and options, in Markdown."""
    group: Any = typer.main.get_command(app)
    lines = ["# Commands", "", "As `ddplug --help` and `ddplug COMMAND --help` say it. `python -m ddplug` is the same."]
    for name, command in sorted(group.commands.items()):
        arguments = [part for part in command.params if part.param_type_name == "argument"]
        options = [part for part in command.params if part.param_type_name == "option" and part.name != "help"]
        shown = " ".join([f"ddplug {name}", "[OPTIONS]", *(_called(part) for part in arguments)])
        lines += ["", f"## ddplug {name}", "", _plain(command.help), "", f"`{shown}`", ""]
        lines += [f"- `{_called(part)}`: {_plain(getattr(part, 'help', ''))}" for part in arguments]
        lines += [
            f"- `{', '.join([*part.opts, *part.secondary_opts])}`: {_plain(part.help)}{_default(part)}"
            for part in options
        ]
    return "\n".join(lines) + "\n"


def _called(part: Any) -> str:
    return str(part.metavar or part.name.upper())


def _default(option: Any) -> str:
    default = option.default
    return "" if default in (None, "", False, ()) or callable(default) else f" Default: `{default}`."


def _plain(text: str | None) -> str:
    return re.sub(r"([\\*_<>\[\]|])", r"\\\1", " ".join((text or "").split()))
