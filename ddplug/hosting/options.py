"""Our options on a host's command line, or in its config object."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

from ddplug.networks.precision import Precision

Inner = Literal["one", "last", "all"]
Views = Literal["host", "clean"]


def weight(text: str) -> float | str:
    """The weight that a command line means: a number, or "paper"."""
    return text if text == "paper" else float(text)


class Option(NamedTuple):
    """An option of ours on a host's command line, `--cmi_NAME`: a scalar or a string, so that any config takes it."""

    name: str
    type: Callable[[str], Any]
    default: Any
    help: str
    choices: tuple[str, ...] | None = None


OPTIONS = (
    Option("weight", weight, 0.0, "CMI regulariser: share of the host's own gradient, or paper; 0 is off"),
    Option("weighting", str, "relative", "what the weight is", ("relative", "absolute")),
    Option("proxies", str, "", "a pool's folder, buffer:PATH or idc:PATH; else the host's experts, else a small pool"),
    Option("every", int, 1, "act in every k-th step only, k times as strongly"),
    Option("space", str, "feature", "what CMI is computed on", ("feature", "logit")),
    Option("temperature", float, 1.0, "T in softmax(f / T)"),
    Option("calibrate", int, 10, "steps over which a share is turned into a lambda"),
    Option("draw", int, 1, "proxies drawn per step"),
    Option("classes", int, 0, "random classes per step that CMI is estimated on, scaled; 0 for all"),
    Option(
        "precision", str, "auto", "auto: bf16 backward where fast; exact: fp32; bf16: both ways", get_args(Precision)
    ),
    Option("graphs", int, 0, "1: on a GPU, replay the step from a CUDA graph"),
    Option("chunk", int, 0, "images that go through a proxy together; 0 for as many as memory allows"),
    Option("views", str, "host", "the host's augmented views, or the clean images", get_args(Views)),
    Option("views_per_image", int, 1, "further views of each image, made by kornia; for one image per class"),
    Option("seed", int, 0, "of the regulariser's own generator"),
)
INNER = Option(
    "inner", str, "one", "of the views of an unrolled loop's inner steps, those of one, last or all", get_args(Inner)
)


def add_options(parser: argparse.ArgumentParser, *, inner: bool = False) -> None:
    """Add our options to the host's parser; `inner` for hosts with an unrolled inner loop.

    Nothing is drawn, read or imported. The host's own abbreviations still work, as our names all begin with `cmi_`.
    """
    group = parser.add_argument_group("CMI regulariser (ddplug)")
    for option in (*OPTIONS, *((INNER,) if inner else ())):
        group.add_argument(
            f"--cmi_{option.name}", type=option.type, default=option.default, choices=option.choices, help=option.help
        )


def add_config(config: Any, *, inner: bool = False) -> None:
    """The same options as entries of a config object (yacs and the like), under the same names, with their defaults."""
    for option in (*OPTIONS, *((INNER,) if inner else ())):
        setattr(config, f"cmi_{option.name}", option.default)
