"""The regulariser's options as flags: the forms of command lines, hosts' parsers and records.

Each is a scalar or a string of one name. `keywords` is the one place that makes `Regularizer`'s arguments of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, get_args

from ddplug.choices import Choice, Precision, WeightingName
from ddplug.core.options import Compute, Relative, Views, check_factor, paper, weighting_of
from ddplug.errors import InputError

_SAME = object()


class Flag(NamedTuple):
    """Default of an option, its help text, and its form on a command line."""

    default: Any
    help: str
    choices: tuple[str, ...] | None = None
    zero: Any = _SAME
    """Value that 0 on a command line stands for, where that is not 0."""
    hosts: bool = True
    """True if hosts have it on their command lines."""

    @property
    def scalar(self) -> type:
        """Type on a command line: configs of hosts know neither None nor several types for one option."""
        return int if isinstance(self.default, bool) or self.zero is not _SAME else type(self.default)

    def written(self, value: Any) -> Any:
        """The scalar or string for `value`."""
        if self.zero is not _SAME and value == self.zero:
            return 0
        return int(value) if isinstance(value, bool) else value


FLAGS = {
    "term": Flag("cmi", "term that is added to the loss: a name, or a sum of several"),
    "weighting": Flag("relative", "meaning of the weight", get_args(WeightingName)),
    "every": Flag(1, "act in every k-th step only, k times as strongly"),
    "representation": Flag(
        "auto", "outputs that CMI is of; auto is logit, or feature for absolute weights", get_args(Choice)
    ),
    "temperature": Flag(1.0, "T in softmax(f / T)"),
    "calibrate": Flag(10, "steps over which lambda is determined from the weight"),
    "draw": Flag(1, "proxies drawn per step"),
    "classes": Flag(None, "random classes per step that CMI is estimated from; 0 for all", zero=None),
    "precision": Flag(
        "auto", "arithmetic of the proxies: auto (bf16 backward if fast), exact (fp32), or bf16", get_args(Precision)
    ),
    "chunk": Flag("auto", "images per pass through a proxy; 0 for as many as memory allows", zero="auto"),
    "views_per_image": Flag(1, "views of each image, made by kornia if more than one; for one image per class"),
    "seed": Flag(0, "seed of the regulariser's generator"),
    "compile": Flag(False, "compile the proxies by torch.compile", hosts=False),
}  # fmt: skip
HOSTS = tuple(name for name, flag in FLAGS.items() if flag.hosts)
"""Names of the options that hosts have."""
COMPARED = tuple(name for name in FLAGS if name not in ("seed", "term"))
"""Names of those that hold for a whole comparison: a seed is a run's own, and a term an arm's."""


def read(name: str, given: Any) -> Any:
    """Return the value of option `name` from its form on a command line or in a config; `InputError` if invalid."""
    flag = FLAGS[name]
    if flag.zero is _SAME:
        return bool(given) if isinstance(flag.default, bool) else given
    try:
        return flag.zero if given == flag.zero else int(given) or flag.zero
    except ValueError as error:
        raise InputError(f"{name} must be {flag.zero or 0} or a number, got {given!r}.") from error


def read_weight(text: str) -> float | str:
    """Return the weight that `text` stands for, a number or "paper"; `InputError` for anything else."""
    try:
        return text if text == "paper" else check_factor("weight", float(text))
    except ValueError as error:
        raise InputError(f"a weight is a number >= 0 or paper, got {text!r}.") from error


def keywords(weight: float | str, setting: tuple[str, str, int] | None = None, **flags: Any) -> dict[str, Any]:
    """Return the arguments of `ddplug.Regularizer`, the weight among them, for the values of some flags.

    Args:
        weight: a number, or "paper" for the lambda of the paper's public code.
        setting: (host, data set, images per class), for the paper's lambda.
        flags: values by the names in `FLAGS`; missing ones have their defaults.

    Raises:
        InputError: an invalid value, or a weight that the paper does not give.
    """
    from ddplug.terms import make

    if unknown := sorted(set(flags) - set(FLAGS)):
        raise InputError(f"unknown options of the regulariser, {', '.join(unknown)}; known: {sorted(FLAGS)}.")
    value = {name: flags.get(name, flag.default) for name, flag in FLAGS.items()}
    term = make(value["term"], temperature=value["temperature"])
    weighting = weighting_of(value["weighting"])
    if isinstance(weighting, Relative):
        weighting = replace(weighting, rounds=value["calibrate"])
    if weight == "paper":
        if setting is None:
            raise InputError("weight paper is known for hosts with a patch only; give the weight as a number.")
        if term.name != "cmi":
            raise InputError(f"weight paper is for CMI within the batch, not for {term.label}; give a number.")
        weight, weighting = 1.0, paper(*setting)
    return {
        "weight": weight, "weighting": weighting, "term": term, "representation": value["representation"],
        "views": Views(value["views_per_image"]), "seed": value["seed"],
        "compute": Compute(**{name: value[name] for name in Compute.__dataclass_fields__}),
    }  # fmt: skip


def code(weight: float | str, **flags: Any) -> str:
    """Return the Python source of the arguments of `ddplug.attach` that `keywords` makes of these flags."""
    parts = [f"weight={weight!r}"]
    weighting = flags.get("weighting", "relative")
    if "calibrate" in flags and weighting != "absolute":
        parts.append(f"weighting=ddplug.{weighting.capitalize()}({flags['calibrate']})")
    elif "weighting" in flags:
        parts.append(f"weighting={weighting!r}")
    term = flags.get("term", "cmi")
    if "temperature" in flags:
        parts.append(f"term=ddplug.terms.make({term!r}, temperature={flags['temperature']!r})")
    elif "term" in flags:
        parts.append(f"term={term!r}")
    parts += [f"{name}={flags[name]!r}" for name in ("representation", "seed") if name in flags]
    if "views_per_image" in flags:
        parts.append(f"views={flags['views_per_image']}")
    if compute := [f"{name}={flags[name]!r}" for name in Compute.__dataclass_fields__ if name in flags]:
        parts.append(f"compute=ddplug.Compute({', '.join(compute)})")
    return ", ".join(parts)
