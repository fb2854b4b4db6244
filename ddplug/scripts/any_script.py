"""`ddplug run --script`: an unedited script for which there is no patch, with the layer on what one function returns.

The function is wrapped where it is defined, while the script's files are read, so before anybody imports it. Nothing is
written to the script's folder. At weight 0 nothing is put anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddplug.attaching.images import Images
from ddplug.attaching.labels import LIKE_LABELS, LabelReader, one_class_per_call
from ddplug.attaching.places import through
from ddplug.augment.dsa import DSA
from ddplug.core.flags import keywords
from ddplug.core.options import Views
from ddplug.core.regularizer import Regularizer
from ddplug.errors import HostError, InputError
from ddplug.hosting.layer import Layer, layer_of, require_rounds, started
from ddplug.hosting.names import Names
from ddplug.hosting.options import Inner
from ddplug.hosting.script import execute
from ddplug.proxies.pool import ProxyPool
from ddplug.scripts.at_steps import OPTIMIZER, LayerAtSteps
from ddplug.scripts.frames import Expression, Variables
from ddplug.scripts.placing import Place, named, sources, usual
from ddplug.scripts.sources import File, with_imports
from ddplug.scripts.view_calls import Call, ViewCalls, own_files
from ddplug.utils.output import say

OPTION = "--labels"
CALLS = re.compile(r"calls:(\d+)")
ADVICE = (
    f"Name the labels: {OPTION} EXPRESSION, evaluated where the function is called, one class for each image of the "
    f"set or for each view, or {OPTION} calls:K if each call is on one of K classes after the other."
)
OLD_NAMES = ("int", "float", "bool", "object", "complex")
"""Names of Python types that NumPy had once."""


@dataclass(frozen=True)
class Unpatched:
    """Description of a script without a patch; see `ddplug run --help`."""

    script: Path
    at: tuple[str, ...] = ()
    labels: str = ""
    steps: str = ""
    """An expression: how many calls, one per inner step of an unrolled loop, one backward pass covers."""
    inner: Inner = "one"
    record: Path | None = None
    path: tuple[Path, ...] = ()
    redirect_cuda: bool = False
    old_numpy: bool = False

    @property
    def name(self) -> str:
        """Name for messages."""
        return self.script.name

    def read(self) -> dict[Path, File]:
        """The script and its own modules; `HostError` if there is no such script."""
        return with_imports(self.script, self.path)

    def places(self, files: Mapping[Path, File]) -> list[Place]:
        """Return the places for the layer: those of `at`, or every function that has the name of an augmentation."""
        found = [named(at, files, self.script, self.path) for at in self.at] or usual(files)
        if not found:
            raise HostError(
                f"{self.name} and what it imports ({len(files) - 1} modules of its own) have no function with the "
                f"usual name of an augmentation. `ddplug find {self.script}` lists places; name one: --at "
                "MODULE:FUNCTION or --at FILE.py:LINE."
            )
        return found

    def execute(
        self, arguments: Sequence[str], files: Mapping[Path, File], at: ViewCalls | None, places: Sequence[Place]
    ) -> None:
        """Run it, with `at` at the places; as `ddplug.hosting.script.execute` does."""
        put = sources(places, files, at.at) if at is not None else {}
        execute(
            self.script, arguments, put, path=self.path, redirect_cuda=self.redirect_cuda,
            numpy_aliases=OLD_NAMES if self.old_numpy else (),
        )  # fmt: skip

    def hosts(self, files: Mapping[Path, File]) -> list[Path]:
        """The files and folders that are the script's own."""
        return [self.script.parent, *self.path, *files]


def run_unpatched(
    given: Unpatched,
    arguments: Sequence[str],
    weight: float,
    proxies: object,
    *,
    input_space: str | None = None,
    **flags: Any,
) -> None:
    """Run the script with the layer in it, and print what the layer did.

    Args:
        given: the script, and where the layer goes.
        arguments: the script's own command line.
        weight: share of the host's own gradient; 0 is the script alone, to the bit.
        proxies: a pool's folder, or whatever else `ProxyPool.of` takes.
        input_space: the views' normalisation; None if it is the pool's.
        flags: values by the names in `ddplug.core.flags.FLAGS`.

    Raises:
        HostError: there is no such place, the labels are unknown, or the layer never acted.
        InputError, ProxyError: options that mean nothing, or no pool.
    """
    files = given.read()
    at_steps = given.at == (OPTIMIZER,)
    places = [] if at_steps else given.places(files)
    labels = _labels(given.labels)
    steps = Expression(given.steps, "--steps") if given.steps else None
    if weight == 0:
        given.execute(arguments, files, None, ())
        return
    if not proxies:
        raise InputError(
            f"no proxies given, and what data {given.name} has is not known, so none can be trained on it. Make "
            "some with `ddplug pretrain POOL --data ...` and name them: --proxies POOL."
        )
    pool = ProxyPool.of(proxies)
    options = keywords(weight, **flags)
    if at_steps:
        if options["views"].count == 1:
            options["views"] = Views(1, DSA(seed=options["seed"]))
        _run_at_steps(given, arguments, Regularizer(pool, input_space=input_space, **options), files)
        return
    regularizer = Regularizer(pool, input_space=input_space, **options)
    layer = _LayerAtCalls(given, regularizer, labels, steps)
    at = ViewCalls(layer.act, given.hosts(files), one=not given.at)
    say(f"ddplug: {given.name}, weight {weight}, {pool}, at {', '.join(map(str, places))}")
    with require_rounds(given.name, False):
        given.execute(arguments, files, at, places)
    _report(given, at, layer, places)


def _run_at_steps(
    given: Unpatched, arguments: Sequence[str], regularizer: Regularizer, files: Mapping[Path, File]
) -> None:
    """Run the script with CMI's gradient added before each step of its images."""
    if given.steps or CALLS.fullmatch(given.labels):
        raise InputError("--steps and --labels calls:K are for places that are called; leave them out at optimizer.")
    record = given.record or Path(f"cmi_{given.script.stem}.json")
    at = LayerAtSteps(given.name, regularizer, given.labels, record, own_files(given.hosts(files)))
    say(f"ddplug: {given.name}, {regularizer.pool}, weight {regularizer.weight}, at the steps of its images")
    undo = at.install()
    try:
        with require_rounds(given.name, False):
            given.execute(arguments, files, None, ())
    finally:
        undo()
    if at.layer is None or not at.layer.rounds:
        shape = regularizer.pool.info.shape
        raise HostError(
            f"the CMI regulariser never came into action in {given.name}: no torch optimizer stepped images of the "
            f"pool's shape, {shape}. Its results are those of the host alone. `ddplug find {given.script}` runs a few "
            "steps and prints what is stepped."
        )
    say(f"ddplug: CMI acted in {at.layer.rounds} of {at.steps} steps of the images; labels: {at.source}")
    if at.layer.record is not None:
        say(f"ddplug: wrote {at.layer.record}")


class _LayerAtCalls(Names):
    """Puts the views of every call through one layer, which is made at the first of them."""

    def __init__(
        self,
        given: Unpatched,
        regularizer: Regularizer,
        labels: str | one_class_per_call | None,
        steps: Expression | None,
    ) -> None:
        self.name, self._given = given.name, given
        self.regularizer, self.labels, self._steps = regularizer, labels, steps
        self.layer: Layer | None = None
        self._variables = Variables(OPTION)
        self._images = Images(self._variables)
        self._readers: dict[str, LabelReader] = {}
        self._calls = 0

    @property
    def sources_of_labels(self) -> dict[str, str]:
        """Source of the labels by the place of the calls."""
        return {where: reader.source for where, reader in self._readers.items()}

    def setting(self, args: Any) -> tuple[str, str, int]:
        """Host, data set and images per class, of which the last is unknown (0)."""
        return self.name, self.regularizer.pool.info.dataset or "", 0

    def record(self, args: Any, context: Mapping[str, Any]) -> Path:
        """Return the file of CMI's history: the user's, or one in the folder that the script is started in."""
        return self._given.record or Path(f"cmi_{self._given.script.stem}.json")

    def act(self, call: Call) -> Tensor | None:
        """The views of one call, through the layer; None if they show real images."""
        if call.where not in self._readers:
            self._readers[call.where] = LabelReader(self._images, self.labels, self._variables, call.where, ADVICE)
        self._variables.scopes = call.scopes
        try:
            labelled = self._readers[call.where].read(call.images, call.views, _passed(call))
        finally:
            self._variables.scopes = ()
        if labelled is None:
            return None
        if self.layer is None:
            self.layer = self._start(call)
        step = self._calls % self.layer.steps if self.layer.steps > 1 else None
        self._calls += 1
        if labelled.synthetic is not None and self.regularizer.objective.needs_real:
            real = torch.ones(len(call.views), dtype=torch.bool, device=call.views.device)
            real[labelled.synthetic] = False
            self.regularizer.real.passed(call.views[real], None)
        return through(partial(self.layer, step=step), call.views, labelled)

    def _start(self, call: Call) -> Layer:
        steps = int(self._steps.value(call.scopes)[0]) if self._steps is not None else 1
        if steps < 1:
            raise InputError(
                f"--steps {self._given.steps!r} is {steps}, expected how many calls a backward pass covers."
            )
        layer = layer_of(self, self.regularizer, None, {"steps": steps}, "host", self._given.inner)
        layer.facts = {"script": str(self._given.script), "dataset": self.regularizer.pool.info.dataset}
        return started(layer)


def _labels(text: str) -> str | one_class_per_call | None:
    """The labels as `--labels` names them: by `calls:K`, an expression, or not at all."""
    if counted := CALLS.fullmatch(text.strip()):
        if not int(counted[1]):
            raise InputError(f"{OPTION} {text}: expected how many classes there are, {OPTION} calls:10.")
        return one_class_per_call(int(counted[1]))
    if text:
        Expression(text, OPTION)
    return text or None


def _passed(call: Call) -> Tensor | None:
    """Class numbers that the function was called with, one for each view."""
    for name, value in (call.arguments.local if call.arguments is not None else {}).items():
        if isinstance(value, Tensor) and value.shape == (len(call.views),) and LIKE_LABELS.search(name):
            return value
    return None


def _report(given: Unpatched, at: ViewCalls, layer: _LayerAtCalls, places: Sequence[Place]) -> None:
    """Print where the layer acted; `HostError` if it never did, or if the number of calls does not fit the classes."""
    untouched = sum(at.untouched.values())
    if not at.synthetic:
        raise HostError(
            f"the CMI regulariser never came into action in {given.name}: {', '.join(map(str, places))} "
            f"{'was' if len(places) == 1 else 'were'} called on {untouched} batches of images, of which none needed a "
            f"gradient. Its results are those of the host alone. `ddplug find {given.script}` lists other places; look "
            "also whether its augmentation is switched on. --weight 0 runs the host alone on purpose."
        )
    rounds = layer.layer.rounds if layer.layer is not None else 0
    for (place, where), count in at.synthetic.items():
        read = layer.sources_of_labels.get(where, "not read")
        say(f"ddplug: {place}, called at {where} on synthetic images {count} times; labels: {read}")
    if not rounds:
        raise HostError(
            f"the CMI regulariser never came into action in {given.name}: no backward pass ever reached the views. Its "
            f"results are those of the host alone. Name another place, see `ddplug find {given.script}`."
        )
    say(f"ddplug: CMI acted in {rounds} backward passes; {untouched} calls on other images were left alone.")
    if layer.layer is not None and layer.layer.record is not None:
        say(f"ddplug: wrote {layer.layer.record}")
    counted = layer.labels
    if isinstance(counted, one_class_per_call) and counted.calls % len(counted.classes):
        raise HostError(
            f"{OPTION} calls:{len(counted.classes)}: there were {counted.calls} calls on new synthetic images, which "
            f"is no multiple of {len(counted.classes)}, so the classes were wrong, and CMI with them. {ADVICE}"
        )
