"""`ddplug run --script`: an unedited script for which there is no patch, with the layer in it.

The layer goes on what one function returns, which is wrapped where it is defined, while the script's files are read. Or
CMI's gradient is added before the steps of whatever torch optimizer steps images of the pool's shape. Nothing is
written to the script's folder. At weight 0 nothing is put anywhere.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ddplug.attaching.data import space_of_script
from ddplug.attaching.hooks import Undo, signature_of
from ddplug.attaching.images import Images
from ddplug.attaching.labels import LabelReader, held_labels, one_class_per_call
from ddplug.attaching.places import AtCalls
from ddplug.attaching.stepped import Stepped, like_images, stepped_images
from ddplug.augment.dsa import DSA
from ddplug.core.autograd import stepped_by
from ddplug.core.flags import keywords
from ddplug.core.options import Views
from ddplug.core.regularizer import Regularizer
from ddplug.datasets.images import ImageData
from ddplug.errors import HostError, InputError, noted
from ddplug.hosting.checkout import HostSpec
from ddplug.hosting.layer import Layer, require_rounds, started
from ddplug.hosting.options import Inner
from ddplug.hosting.script import Source, execute, require_packages
from ddplug.proxies.pool import ProxyPool
from ddplug.scripts.frames import Expression, Scope, Variables, arguments_of, calling, scope_of
from ddplug.scripts.placing import Place, named, read, sources
from ddplug.utils.output import say

OPTIMIZER = "optimizer"
"""The place before the steps of the images, for `--at`."""
CALLS = re.compile(r"calls:(\d+)")
ADVICE = (
    "Name the labels: --labels EXPRESSION, evaluated where the function is called or the optimizer is stepped, one "
    "class for each image of the set or for each view"
)
AT_CALLS = f"{ADVICE}; or, for a function that is called on one of K classes after the other, --labels calls:K."
OLD_NAMES = ("int", "float", "bool", "object", "complex")
"""Names of Python types that NumPy had once."""


@dataclass(frozen=True)
class Unpatched:
    """Description of a script without a patch; see `ddplug run --help`."""

    script: Path
    at: tuple[str, ...] = (OPTIMIZER,)
    labels: str = ""
    steps: str = ""
    """An expression: how many calls, one per inner step of an unrolled loop, one backward pass covers."""
    inner: Inner = "one"
    input_space: str | None = None
    """The views' normalisation; None if it is the script's only `Normalize`, else the pool's."""
    record: Path | None = None
    path: tuple[Path, ...] = ()
    redirect_cuda: bool = False
    old_numpy: bool = False

    @classmethod
    def of_host(cls, spec: HostSpec, repo: Path) -> Unpatched:
        """The script of a host without a patch in its checkout `repo`, with the options of its row in `hosts.toml`.

        Raises `HostError` if it is not the right checkout, or a package is missing.
        """
        assert spec.run is not None
        spec.check(repo)
        require_packages(spec)
        return cls(
            (repo / spec.script).resolve(), tuple(spec.run.get("at", [OPTIMIZER])), spec.run.get("labels", ""),
            path=tuple((repo / folder).resolve() for folder in spec.path), redirect_cuda=spec.redirect_cuda,
            input_space=spec.run.get("input_space"),
        )  # fmt: skip

    def command(self, name: str, at: str = "") -> list[str]:
        """The words of `ddplug NAME` on the script, without the script's own arguments."""
        words = ["ddplug", name, *(["--script", str(self.script), "--at", at] if at else [str(self.script)])]
        words += [word for folder in self.path for word in ("--path", str(folder))]
        return [*words, *["--redirect-cuda"] * self.redirect_cuda, *["--old-numpy"] * self.old_numpy]

    def finding(self, arguments: Sequence[str]) -> str:
        """The advice to run `ddplug find`."""
        words = [*self.command("find"), *(["--", *arguments] if arguments else [])]
        return f"`{shlex.join(words)}` runs a few steps and prints places"

    def execute(self, arguments: Sequence[str], replaced: Mapping[Path, Source]) -> None:
        """Run it, with some files replaced, as `ddplug.hosting.script.execute` does."""
        execute(
            self.script, arguments, replaced, path=self.path, redirect_cuda=self.redirect_cuda,
            numpy_aliases=OLD_NAMES if self.old_numpy else (),
        )  # fmt: skip


def run_unpatched(
    given: Unpatched,
    arguments: Sequence[str],
    weight: float | str,
    proxies: object,
    *,
    data: Callable[[], ImageData] | None = None,
    **flags: Any,
) -> None:
    """Run the script with the layer in it, and print what the layer did.

    Args:
        given: the script, and where the layer goes.
        arguments: the script's own command line.
        weight: share of the host's own gradient; 0 is the script alone, to the bit.
        proxies: a pool's folder, or whatever else `ProxyPool.of` takes.
        data: returns the real images for a term that compares with them; called only for such a term.
        flags: values by the names in `ddplug.core.flags.FLAGS`.

    Raises:
        HostError: there is no such place, the labels are unknown, or the layer never acted.
        InputError, ProxyError: options that mean nothing, or no pool.
    """
    read(given.script)  # whose errors are clearer than those of running it
    if weight == 0:
        given.execute(arguments, {})
        return
    if not proxies:
        raise InputError(
            f"no proxies given, and what data {given.script.name} has is not known, so none can be trained on it. Make "
            "some with `ddplug pretrain POOL --data ...` and name them: --proxies POOL."
        )
    pool = ProxyPool.of(proxies)
    options = keywords(weight, **flags)
    at_steps = given.at == (OPTIMIZER,)
    if at_steps and options["views"].count == 1:
        options["views"] = Views(1, DSA(seed=options["seed"]))
    regularizer = Regularizer(pool, input_space=given.input_space, **options)
    if given.input_space is None:
        regularizer.input_space = functools.partial(space_of_script, regularizer)
    if data is not None:
        regularizer.real.sample_from(data)
    finding = given.finding(arguments)
    layer = (_LayerAtSteps if at_steps else _LayerAtCalls)(given, regularizer, finding)
    watch, history = regularizer.watch, regularizer.history
    say(f"ddplug: {given.script.name}, weight {weight}, {pool}, at {watch.where}")
    watch.count_steps(lambda optimizer, _: stepped_images(optimizer, pool.info.shape))
    end = layer.install()
    try:
        with require_rounds(given.script.name, False):
            given.execute(arguments, layer.sources)
    finally:
        end()
        regularizer.detach()
    if not history:
        raise HostError(
            f"the CMI regulariser never came into action in {given.script.name}, whose results are those of the host "
            f"alone: {layer.seen()}. --weight 0 runs the host alone on purpose."
        )
    say(f"ddplug: {watch.summary(history)}")
    if layer.layer is not None and layer.layer.record is not None:
        say(f"ddplug: wrote {layer.layer.record}")
    layer.check()


class _LayerInScript:
    """A regulariser in a script, whose labels are among the variables of the script's functions under way."""

    def __init__(self, given: Unpatched, regularizer: Regularizer, finding: str) -> None:
        self._given, self._regularizer, self._finding = given, regularizer, finding
        self._variables = Variables()
        self.layer: Layer | None = None
        """The layer as a host sees it, from its first views on."""
        self.sources: Mapping[Path, Source] = {}
        """Replacements of the script's files."""

    def install(self) -> Undo:
        """Put the regulariser before what `sources` does not cover; returns what takes it out."""
        return lambda: None

    def seen(self) -> str:
        """Describe what passed without a round, and what to do."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise `HostError` if the run showed that the labels were wrong."""

    def _started(self, steps: int = 1) -> Layer:
        """The layer, which is made at its first views."""
        if self.layer is None:
            given, regularizer = self._given, self._regularizer
            if steps > 1 and given.inner != "all":
                regularizer.stands_for(steps)
            facts = {"host": given.script.name, "dataset": regularizer.pool.info.dataset, "script": str(given.script)}
            record = given.record or Path(f"cmi_{given.script.stem}.json")
            self.layer = started(Layer(regularizer, steps=steps, inner=given.inner, record=record, facts=facts))
        return self.layer


class _LayerAtCalls(_LayerInScript):
    """Puts the views of every call at the places through one layer."""

    def __init__(self, given: Unpatched, regularizer: Regularizer, finding: str) -> None:
        super().__init__(given, regularizer, finding)
        self._labels = _labels(given.labels)
        self._steps = Expression(given.steps, "--steps") if given.steps else None
        self._images = Images(self._variables)
        self._inside = False
        self._calls = 0
        places = [named(at, given.script, given.path, finding) for at in given.at]
        self.sources = sources(places, self._around)
        regularizer.watch.where = ", ".join(map(str, places))

    def _around(self, place: Place) -> Callable[[Any], Any]:
        """Return a decorator of the function at a place, or a function of a line's value."""
        reader = LabelReader(self._images, self._labels, self._variables, str(place), AT_CALLS)
        announced = False

        def at_call(at: AtCalls, arguments: Callable[[], list[Scope]], args: Any, kwargs: Any, result: Any) -> Any:
            nonlocal announced
            with self._variables.of(lambda: [*arguments(), *map(scope_of, calling())]):
                result = at.on_result(self._regularizer, args, kwargs, result)
            if reader.source and not announced:
                say(f"ddplug: {place}; labels: {reader.source}")
                announced = True
            return result

        def decorator(function: Callable[..., Any]) -> Callable[..., Any]:
            at = AtCalls(reader, signature_of(function), self._labels, self._put_through)

            @functools.wraps(function)
            @noted
            def viewed(*args: Any, **kwargs: Any) -> Any:
                if self._inside:
                    return function(*args, **kwargs)
                self._inside = True
                try:
                    result = function(*args, **kwargs)
                finally:
                    self._inside = False
                return at_call(at, lambda: [arguments_of(function, args, kwargs)], args, kwargs, result)

            return viewed

        at = AtCalls(reader, None, self._labels, self._put_through)
        return decorator if place.name else noted(lambda value: at_call(at, list, (), {}, value))

    def _put_through(self, views: Tensor, labels: Tensor) -> Tensor:
        """The views of one call, through the layer."""
        if self.layer is None:
            steps = int(self._variables.value(self._steps)) if self._steps is not None else 1
            if steps < 1:
                raise InputError(
                    f"--steps {self._given.steps!r} is {steps}, expected how many calls a backward pass covers."
                )
            self._started(steps)
        assert self.layer is not None
        step = self._calls % self.layer.steps if self.layer.steps > 1 else None
        self._calls += 1
        return self.layer(views, labels, step=step)

    def seen(self) -> str:
        """Describe the calls."""
        return (
            f"{self._calls} calls of {self._regularizer.watch.where} were on images that need a gradient, and no "
            f"backward pass reached these. {self._finding}; look also whether the host's augmentation is switched on"
        )

    def check(self) -> None:
        """Raise `HostError` if the number of calls does not fit the number of classes."""
        counted = self._labels
        if isinstance(counted, one_class_per_call) and counted.calls % len(counted.classes):
            raise HostError(
                f"--labels calls:{len(counted.classes)}: there were {counted.calls} calls on new synthetic images, "
                f"which is no multiple of {len(counted.classes)}, so the classes were wrong, and CMI with them. "
                f"{AT_CALLS}"
            )


class _LayerAtSteps(_LayerInScript):
    """Adds CMI's gradient wherever an optimizer of the script steps images.

    The host's views do not pass there, so CMI is of augmented views of the regulariser's own.
    """

    def __init__(self, given: Unpatched, regularizer: Regularizer, finding: str) -> None:
        super().__init__(given, regularizer, finding)
        self._others: dict[tuple[int, ...], None] = {}
        """Shapes of stepped images that are not the pool's."""
        if given.steps or CALLS.fullmatch(given.labels):
            raise InputError("--steps and --labels calls:K are for places that are called; name one: --at PLACE.")
        regularizer.watch.where = "the steps of its images"

    def install(self) -> Undo:
        """Put the regulariser before the steps of all optimizers that step images."""
        shape = self._regularizer.pool.info.shape

        def images(optimizer: Optimizer) -> list[Tensor]:
            found = stepped_images(optimizer, shape)
            if not found:
                self._others |= {tuple(each.shape): None for each in stepped_by(optimizer) if like_images(each)}
            return found

        return Stepped(images, self._labels_of, shape).install(self._regularizer)

    def _labels_of(self, images: Tensor) -> Tensor:
        """The labels of all images."""
        new = self.layer is None
        self._started().save_when_due()
        with self._variables.of(lambda: [*map(scope_of, calling())]):
            if self._given.labels:
                return torch.as_tensor(self._variables.get(self._given.labels))
            where = self._regularizer.watch.where
            if (found := held_labels(self._variables, len(images), where, f"{ADVICE}.")) is not None:
                if new:
                    say(f"ddplug: labels of the {len(images)} images: `{found[0]}`")
                return found[1]
        raise HostError(
            f"no labels for the {len(images)} images that {self._given.script.name} steps: none of its functions under "
            f"way has as many class numbers under a name like labels, targets or y. {ADVICE}."
        )

    def seen(self) -> str:
        """Describe the missing steps, and what to do."""
        known = f"no torch optimizer stepped images of the pool's shape, {self._regularizer.pool.info.shape}"
        if not self._others:
            return f"{known}. {self._finding}"
        return (
            f"{known}, but {', '.join(map(str, self._others))}. Make a pool of the script's own data with "
            "`ddplug pretrain POOL --data ...`, and name it: --proxies POOL"
        )


def _labels(text: str) -> str | one_class_per_call | None:
    """The labels as `--labels` names them: by `calls:K`, an expression, or not at all."""
    if counted := CALLS.fullmatch(text.strip()):
        if not int(counted[1]):
            raise InputError(f"--labels {text}: expected how many classes there are, --labels calls:10.")
        return one_class_per_call(int(counted[1]))
    if text:
        Expression(text, "--labels")
    return text or None
