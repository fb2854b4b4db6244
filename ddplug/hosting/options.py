"""Our options on a host's command line, or in its config object."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

from ddplug.choices import Inner as Inner
from ddplug.core.flags import FLAGS, read

Views = Literal["host", "clean"]


def weight(text: str) -> float | str:
    """The weight of a command line: a number, or "paper"."""
    return text if text == "paper" else float(text)


class Option(NamedTuple):
    """One of our options on a host's command line, `--cmi_NAME`: a scalar or a string, which any config can hold."""

    name: str
    type: Callable[[str], Any]
    default: Any
    help: str
    choices: tuple[str, ...] | None = None


OPTIONS = (
    Option("weight", weight, 0.0, "CMI regulariser: share of the host's own gradient, or paper; 0 is off"),
    Option("proxies", str, "", "a pool's folder, buffer:PATH or idc:PATH; else the host's experts, else a small pool"),
    Option("views", str, "host", "the host's augmented views, or the clean images", get_args(Views)),
    *(
        Option(name, about.scalar, about.written(about.default), about.help, about.choices)
        for name, about in FLAGS.items()
        if about.hosts
    ),
)
INNER = Option(
    "inner",
    str,
    "one",
    "inner steps of an unrolled loop whose views are regularised: one, last or all",
    get_args(Inner),
)


def add_options(parser: argparse.ArgumentParser, *, inner: bool = False) -> None:
    """Add our options to the host's parser; `inner` for hosts with an unrolled inner loop.

    The host's own abbreviations still work, as our names all begin with `cmi_`.
    """
    group = parser.add_argument_group("CMI regulariser (ddplug)")
    for option in (*OPTIONS, *((INNER,) if inner else ())):
        group.add_argument(
            f"--cmi_{option.name}", type=option.type, default=option.default, choices=option.choices, help=option.help
        )


def add_config(config: Any, *, inner: bool = False) -> None:
    """Set our options with their defaults, under the same names, in a config object such as yacs's."""
    for option in (*OPTIONS, *((INNER,) if inner else ())):
        setattr(config, f"cmi_{option.name}", option.default)


def options_of(args: Any) -> dict[str, Any]:
    """Read our options from `args`, a host's options or config; the regulariser's as its parameters."""
    found = {option.name: getattr(args, f"cmi_{option.name}", option.default) for option in (*OPTIONS, INNER)}
    return {name: read(name, said) if name in FLAGS else said for name, said in found.items()}
