"""The regulariser's options, each said once: its default, what it means, and how a command line spells it.

From here come the options on hosts' command lines, those of `ddplug run` and `ddplug compare`, what a comparison's
record may name, and what a `Regularizer` checks and saves of what it was given.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from ddplug.choices import Choice, Chunk, Precision, Sharing, WeightingName
from ddplug.errors import InputError, WeightError

if TYPE_CHECKING:  # the table of options is read by command lines, which import torch only when they need it
    from ddplug.terms import Term, TermSpec

_NOTHING = object()


class About(NamedTuple):
    """Description of an option besides its type."""

    default: Any
    help: str
    choices: tuple[str, ...] | None = None
    zero: Any = _NOTHING
    """What 0 on a command line stands for, where that is not 0."""
    hosts: bool = True
    """Whether hosts have it on their command lines."""
    of_lambda: bool = False
    """Whether a lambda that was measured with one value means something else with another."""

    @property
    def scalar(self) -> type:
        """Of a command line's spelling: configs of hosts know neither None nor several types for one option."""
        return int if isinstance(self.default, bool) or self.zero is not _NOTHING else type(self.default)

    def spell(self, value: Any) -> Any:
        """The scalar or string for `value`."""
        if self.zero is not _NOTHING and value == self.zero:
            return 0
        return int(value) if isinstance(value, bool) else value


def _is(help: str, choices: tuple[str, ...] | None = None, **more: Any) -> dict[str, Any]:
    return {"help": help, "choices": choices, **more}


@dataclass(frozen=True)
class Options:
    """Those options of `ddplug.Regularizer`, which explains them, that can be written on a line or into a file.

    Raises `InputError` for a value that means nothing; the weighting is for who knows the weight to check.
    """

    term: TermSpec = field(default="cmi", metadata=_is("what is added to the loss: a term's name, or a sum of several"))
    weighting: WeightingName = field(default="relative", metadata=_is("what the weight is", get_args(WeightingName)))
    every: int = field(default=1, metadata=_is("act in every k-th step only, k times as strongly", of_lambda=True))
    representation: Choice = field(
        default="auto",
        metadata=_is("what CMI is computed on; auto: logits for a share, features for a lambda", get_args(Choice),
                     of_lambda=True),
    )  # fmt: skip
    temperature: float = field(default=1.0, metadata=_is("T in softmax(f / T)", of_lambda=True))
    calibrate: int = field(default=10, metadata=_is("steps over which a share is turned into a lambda"))
    draw: int = field(default=1, metadata=_is("proxies drawn per step", of_lambda=True))
    classes: int | None = field(
        default=None, metadata=_is("random classes per step that CMI is estimated on, scaled; 0 for all", zero=None)
    )
    precision: Precision = field(
        default="auto",
        metadata=_is("of proxies: bf16 backward where fast (auto), fp32 (exact), bf16 both ways", get_args(Precision)),
    )
    chunk: Chunk = field(
        default="auto",
        metadata=_is("images that go through a proxy together; 0 for as many as memory allows", zero="auto"),
    )
    views_per_image: int = field(
        default=1,
        metadata=_is("further views of each image, made by kornia; for one image per class", of_lambda=True),
    )
    seed: int = field(default=0, metadata=_is("of the regulariser's own generator"))
    set_size: int | None = field(
        default=None, metadata=_is("images of the whole set, of parts", zero=None, hosts=False, of_lambda=True)
    )
    processes: Sharing = field(
        default="one", metadata=_is("what each process of torch.distributed has", get_args(Sharing), hosts=False)
    )
    compile: bool = field(default=False, metadata=_is("put the proxies through torch.compile", hosts=False))
    record: bool = field(default=False, metadata=_is("at weight 0, note CMI all the same", hosts=False))

    def __post_init__(self) -> None:
        from ddplug.core.chunking import check_chunk
        from ddplug.core.estimator import count
        from ddplug.networks.precision import check_precision
        from ddplug.proxies.representations import check_representation
        from ddplug.terms.cmi import check_temperature
        from ddplug.utils.processes import HOW

        for name in ("every", "draw", "classes", "views_per_image", "set_size"):
            if (value := getattr(self, name)) is not None or ABOUT[name].default is not None:
                count(name, value)
        if self.representation != "auto":
            check_representation(self.representation)
        check_temperature(self.temperature)
        check_precision(self.precision)
        if self.processes not in get_args(Sharing):
            raise InputError(f"unknown processes={self.processes!r}. {HOW} 'one' is refused where there are more.")
        check_chunk(self.chunk)

    def check_with(self, objective: Term, weight: float | str, processes: Sharing, view: object) -> None:
        """Raise for options that mean nothing together with the term, the weight, the processes or the `view` given.

        `WeightError` for the paper's weight with another term, `InputError` for all else.
        """
        if weight == "paper" and objective.name != "cmi":
            raise WeightError(
                f"weight='paper' is a lambda for CMI within the batch, and what is added is {objective.label}; give "
                "the weight as a number."
            )
        if self.classes is not None and not objective.additive_over_classes:
            raise InputError(
                f"classes={self.classes} lets some classes stand for all, but {objective.label} of all is not made up "
                "of the classes' own; leave classes= out."
            )
        if self.views_per_image == 1 and view is not None:
            raise InputError("view= makes further views, of which views_per_image=1 asks for none; ask for 2 or more.")

    def of_lambda(self) -> dict[str, Any]:
        """Return the options that lambda depends on besides the weight."""
        return {name: getattr(self, name) for name, about in ABOUT.items() if about.of_lambda}


ABOUT = {option.name: About(option.default, **option.metadata) for option in fields(Options)}
HOSTS = tuple(name for name, about in ABOUT.items() if about.hosts)
"""Names of the options that hosts have."""
COMPARED = tuple(name for name in ABOUT if name not in ("seed", "term"))
"""Names of those that hold for a whole comparison: a seed is a run's own, and a term an arm's."""


def meant(name: str, spelling: Any) -> Any:
    """The value of option `name` that `spelling`, of a command line or a config, stands for; `InputError` if none."""
    about = ABOUT[name]
    if about.zero is _NOTHING:
        return bool(spelling) if isinstance(about.default, bool) else spelling
    try:
        return about.zero if spelling == about.zero else int(spelling) or about.zero
    except ValueError as error:
        raise InputError(f"{name} must be {about.zero or 0} or a number, got {spelling!r}.") from error
