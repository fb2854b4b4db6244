"""`ddplug run --script`: an unedited script for which there is no patch, with the layer on what one function returns.

The function is wrapped where it is defined, while the script's files are read, so before anybody imports it. Nothing is
written to the script's folder. At weight 0 nothing is put anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddplug.core.flags import keywords
from ddplug.core.regularizer import Regularizer
from ddplug.errors import HostError, InputError
from ddplug.hosting.layer import Layer, layer_of, require_rounds, started
from ddplug.hosting.names import Names
from ddplug.hosting.options import Inner
from ddplug.hosting.script import execute
from ddplug.proxies.pool import ProxyPool
from ddplug.scripts.found_labels import LabelReader
from ddplug.scripts.frames import Expression
from ddplug.scripts.placing import Place, named, sources, usual
from ddplug.scripts.sources import File, with_imports
from ddplug.scripts.view_calls import Call, Rows, ViewCalls
from ddplug.utils.output import say

OLD_NAMES = ("int", "float", "bool", "object", "complex")
"""What NumPy once had of Python's own types."""


@dataclass(frozen=True)
class Unpatched:
    """Description of a script without a patch; see `ddplug run --help`."""

    script: Path
    at: tuple[str, ...] = ()
    labels: str = ""
    rows: str = ""
    steps: str = ""
    """An expression: how many calls, one per inner step of an unrolled loop, one backward pass covers."""
    inner: Inner = "one"
    record: Path | None = None
    path: tuple[Path, ...] = ()
    redirect_cuda: bool = False
    old_numpy: bool = False

    @property
    def name(self) -> str:
        """In messages."""
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
    """Run the script with the layer in, and say afterwards what it did.

    Args:
        given: the script, and where the layer goes.
        arguments: the script's own command line.
        weight: share of the host's own gradient; 0 is the script alone, to the bit.
        proxies: a pool's folder, or whatever else `ProxyPool.of` takes.
        input_space: the views' normalisation; None if it is the pool's.
        flags: values by the names in `ddplug.core.flags.FLAGS`.

    Raises:
        HostError: no such place, labels that cannot be told, or the layer never came into action.
        InputError, ProxyError: options that mean nothing, or no pool.
    """
    files = given.read()
    places = given.places(files)
    labels, rows = LabelReader(given.labels, None), Rows(given.rows) if given.rows else None
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
    labels.classes = len(pool.info.class_names) if pool.info.class_names is not None else pool.proxies[0].outputs
    regularizer = Regularizer(pool, input_space=input_space, **keywords(weight, **flags))
    layer = _LayerAtCalls(given, regularizer, labels, steps)
    at = ViewCalls(layer.act, given.hosts(files), rows=rows, one=not given.at)
    say(f"ddplug: {given.name}, weight {weight}, {pool}, at {', '.join(map(str, places))}")
    with require_rounds(given.name, False):
        given.execute(arguments, files, at, places)
    _report(given, at, layer, places)


class _LayerAtCalls(Names):
    """Puts the views of every call through one layer, which is made at the first of them."""

    def __init__(
        self, given: Unpatched, regularizer: Regularizer, labels: LabelReader, steps: Expression | None
    ) -> None:
        self.name, self._given = given.name, given
        self.regularizer, self.labels, self._steps = regularizer, labels, steps
        self.layer: Layer | None = None
        self._calls = 0

    def setting(self, args: Any) -> tuple[str, str, int]:
        """Images per class are not known."""
        return self.name, self.regularizer.pool.info.dataset or "", 0

    def record(self, args: Any, context: Mapping[str, Any]) -> Path:
        """Return the file of CMI's history: the user's, or one in the folder that the script is started in."""
        return self._given.record or Path(f"cmi_{self._given.script.stem}.json")

    def act(self, call: Call) -> Tensor:
        """The views of one call, through the layer."""
        labels = self.labels.read(call.where, call.scopes, call.stop - call.first)
        if self.layer is None:
            self.layer = self._start(call)
        step = self._calls % self.layer.steps if self.layer.steps > 1 else None
        self._calls += 1
        if call.stop == len(call.views):
            return self.layer(call.views, labels, step=step, first=call.first)
        passed = self.layer(call.views[: call.stop], labels, step=step, first=call.first)
        return torch.cat([passed, call.views[call.stop :]])

    def _start(self, call: Call) -> Layer:
        steps = int(self._steps.value(call.scopes)[0]) if self._steps is not None else 1
        if steps < 1:
            raise InputError(
                f"--steps {self._given.steps!r} is {steps}, expected how many calls a backward pass covers."
            )
        layer = layer_of(self, self.regularizer, None, {"steps": steps}, "host", self._given.inner)
        layer.facts = {"script": str(self._given.script), "dataset": self.regularizer.pool.info.dataset}
        return started(layer)


def _report(given: Unpatched, at: ViewCalls, layer: _LayerAtCalls, places: Sequence[Place]) -> None:
    """Say what was done, and where; `HostError` if that is nothing, or the labels were counted wrongly."""
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
        read = layer.labels.said.get(where, "not read")
        say(f"ddplug: {place}, called at {where} on synthetic images {count} times; labels: {read}")
    if not rounds:
        raise HostError(
            f"the CMI regulariser never came into action in {given.name}: no backward pass ever reached the views. Its "
            f"results are those of the host alone. Name another place, see `ddplug find {given.script}`."
        )
    say(f"ddplug: CMI acted in {rounds} backward passes; {untouched} calls on other images were left alone.")
    if layer.layer is not None and layer.layer.record is not None:
        say(f"ddplug: wrote {layer.layer.record}")
    counted = layer.labels.per_step
    if counted and layer.labels.calls % counted:
        raise HostError(
            f"--labels calls:{counted}: there were {layer.labels.calls} calls on synthetic images, which is no "
            f"multiple of {counted}, so the classes were not what was said, and CMI was wrong. Name the labels: "
            "--labels EXPRESSION."
        )
