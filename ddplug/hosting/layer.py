"""The layer that the lines of a patch call; at weight 0 these lines do nothing.

    import ddplug.hosting as ddplug_cmi                  # exactly this name: attach puts its own object there
    ddplug_cmi.add_options(parser)                       # --cmi_weight 0.0 and the like, for an argparse parser
    cmi = ddplug_cmi.start("dm", args, space=..., ...)   # once per synthetic set, when the real data is there
    views = cmi(views, labels)                           # the identity layer, where the host made its views
    images = cmi.clean(images, labels)                   # the same before its augmentation, for --cmi_views clean
    cmi.save()                                           # where the host saves: lambda and history, as JSON

`start` passes its keywords to the host's adapter, which translates the host's names.
"""

from __future__ import annotations

import argparse
import atexit
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from ddplug.core.regularizer import Regularizer
from ddplug.errors import RAISED, FileError, HostError, InputError, noted
from ddplug.hosting.names import Names
from ddplug.hosting.options import Inner, Views
from ddplug.hosting.proxies import resolve
from ddplug.proxies.pool import DeferredPool
from ddplug.utils.files import reserved, write_json

NAME = "ddplug_cmi"
"""The name under which patches import this module."""


_BETWEEN = 30.0
"""Least number of seconds between two savings during a run."""


class Layer:
    """The identity layer as a host sees it; off if there is no regulariser.

    If a host unrolls inner steps, the views of all of them reach one backward pass, and `inner` selects among them:

    - "one": those of one step, drawn uniformly for each pass by a generator of our own. The gradient is, on average
      over the draw, that of the mean over the inner steps of each step's CMI, at the cost of one step.
    - "last": those of the last step.
    - "all": CMI of all views together, around centroids that they share. That is the mean over the steps plus how far
      the steps' centroids lie apart, so "one" is not an estimate of it.

    Args:
        regularizer: the layer itself; None turns it off.
        views: "host" to act on calls, "clean" to act on calls of `clean`.
        steps: number of inner steps whose views belong to one backward pass; 1 if there is no unrolled loop.
        inner: the inner steps that are used.
        record: the JSON file that `save` writes, or None.
        facts: further entries of that file.
    """

    def __init__(
        self,
        regularizer: Regularizer | None,
        *,
        views: Views = "host",
        steps: int = 1,
        inner: Inner = "one",
        record: Path | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        if views not in get_args(Views) or inner not in get_args(Inner):
            raise InputError(
                f"unknown views {views!r} or inner {inner!r}; expected host or clean, and one, last or all."
            )
        self.regularizer, self.views, self.steps, self.inner = regularizer, views, steps, inner
        self.record, self.facts = record.absolute() if record is not None else None, dict(facts or {})
        if regularizer is not None and steps > 1:
            regularizer.stands_for(steps, steps if inner == "all" else 1)
        self._saved = False
        self._due = 0.0
        # An attached regulariser may serve several synthetic sets in turn; this one's rounds begin here.
        self._before = (regularizer.rounds, len(regularizer.history)) if regularizer is not None else (0, 0)
        self._chosen = steps - 1
        # Another seed than the regulariser's, as with the same one the step would be correlated with the drawn proxy.
        seed = regularizer.generator.initial_seed() if regularizer is not None else 0
        self._generator = torch.Generator().manual_seed(seed + 0x5EED)

    def __call__(
        self,
        views: Tensor,
        labels: Tensor | int,
        *,
        step: int | None = None,
        first: int = 0,
        real: Tensor | None = None,
    ) -> Tensor:
        """The host's views, unchanged; their gradient gains that of CMI.

        Args:
            views: (n, c, h, w), as the host's loss will see them.
            labels: (n - first,) class numbers, or the one class of all of them.
            step: number of the inner step of an unrolled loop, from 0.
            first: number of real images at the start of the batch, which pass unchanged.
            real: real images (m, c, h, w) under the same augmentation, all of the views' one class.
        """
        return views if self.views != "host" else self._pass(views, labels, step, first, real)

    def clean(
        self, images: Tensor, labels: Tensor | int, *, step: int | None = None, real: Tensor | None = None
    ) -> Tensor:
        """The images before the host's augmentation, unchanged; with views "clean" their gradient gains that of CMI."""
        return images if self.views != "clean" else self._pass(images, labels, step, 0, real)

    def gate(self, loss: Tensor, limit: float) -> None:
        """Leave out this round unless `loss` <= `limit`, in a host that steps only then; call it before backward().

        The round is not counted and lambda is not measured on it.
        """
        if self.regularizer is not None and self.regularizer.active and not float(loss.detach()) <= limit:
            self.regularizer.skip()

    def _pass(self, views: Tensor, labels: Tensor | int, step: int | None, first: int, real: Tensor | None) -> Tensor:
        if self.regularizer is None or not self.regularizer.active or not self._takes(step):
            return views
        self.save_when_due()
        chosen = views[first:] if first else views
        if not isinstance(labels, Tensor):
            labels = torch.full((len(chosen),), labels, device="cpu")
        if first or real is not None:
            self.regularizer.real.passed(views[:first] if real is None else real, None)
        chosen = self.regularizer(chosen, labels)
        return torch.cat([views[:first], chosen]) if first else chosen

    def _takes(self, step: int | None) -> bool:
        """Return True if the views of this inner step are regularised."""
        if step is None or self.inner == "all" or self.steps == 1:
            return True
        if step == 0 and self.inner == "one":
            self._chosen = int(torch.randint(self.steps, (), generator=self._generator, device="cpu"))
        return step == self._chosen

    @property
    def rounds(self) -> int:
        """Number of backward passes through the layer so far."""
        return self.regularizer.rounds - self._before[0] if self.regularizer is not None else 0

    def save_when_due(self) -> None:
        """Save, if the last time is long ago and the folder is there, which a host may look for before it fills it."""
        if time.monotonic() >= self._due and self.record is not None and self.record.parent.is_dir():
            with suppress(FileError):  # the last one reports it
                self.save()

    def save(self) -> Path | None:
        """Write lambda and the history beside the host's results, and return the file; None if there were no rounds.

        The file is also written during the run, which a machine or a scheduler may end. The file of another run is
        kept: if there is one at `record`, the new name has "-2" in it, or the next number.
        """
        if self.regularizer is None or self.record is None or not self.rounds:
            return None
        began = time.monotonic()
        if not self._saved:
            self.record, self._saved = reserved(self.record), True
        reg = self.regularizer
        history = reg.history.state_dict()[self._before[1] :]
        content = {
            "format": "ddplug-run", "version": 1, **self.facts, "weight": reg.weight, "lambda": reg.lam,
            "views": self.views, "inner": self.inner, "steps": self.steps, "every": reg.compute.every,
            "representation": reg.representation,
            "temperature": float(reg.term.settings().get("temperature", 1.0)),
            "term": {"name": reg.term.name, "label": reg.term.label, "unit": reg.term.unit},
            "proxies": [proxy.name for proxy in reg.pool], "rounds": self.rounds,
            "skipped": sum(round_["skipped"] for round_ in history), "history": history,
        }  # fmt: skip
        write_json(content, self.record)
        now = time.monotonic()
        self._due = now + max(_BETWEEN, 20 * (now - began))
        return self.record


class Attached:
    """Replacement of this module in a host to which `ddplug.attach` added a regulariser."""

    def __init__(self, adapter: Names, regularizer: Regularizer, views: Views, inner: Inner) -> None:
        self._adapter, self._regularizer, self._views, self._inner = adapter, regularizer, views, inner
        self._layer: Layer | None = None

    def add_options(self, parser: argparse.ArgumentParser, **_: object) -> None:
        """Do nothing: the options were passed to `attach`."""

    def add_config(self, config: Any, **_: object) -> None:
        """Do nothing: the options were passed to `attach`."""

    @noted
    def start(self, host: str, args: Any, **context: Any) -> Layer:
        """The layer of one synthetic set with the attached regulariser."""
        reg = self._regularizer
        if not reg.active:
            return Layer(reg)
        if isinstance(reg.pool, DeferredPool) and reg.pool.pending:
            reg.pool.fill(resolve(str(reg.pool.given), self._adapter, args, context))
            reg.announce(f"ddplug: {host}, weight {reg.weight}, {reg.pool}")
        else:
            reg.pool.check_data(self._adapter.setting(args)[1])
        if reg.input_space is None:
            reg.input_space = reg.pool.derived_space(self._adapter.space(args, context))
        reg.real.sample_from(lambda: self._adapter.real(args, context))
        self.save()
        self._layer = layer_of(self._adapter, reg, args, context, self._views, self._inner)
        return started(self._layer)

    def save(self) -> None:
        """Save the history of the last set's layer for the last time."""
        if self._layer is not None and self._layer in _LAYERS:
            _LAYERS.remove(self._layer)
            self._layer.save()


def layer_of(
    adapter: Names,
    regularizer: Regularizer,
    args: Any,
    context: Mapping[str, Any],
    views: Views,
    inner: Inner,
) -> Layer:
    """The layer of a synthetic set with `regularizer`, by the adapter and the patch's keywords."""
    host, dataset, ipc = adapter.setting(args)
    steps = int(context.get("steps", 1))
    regularizer.watch.where = f"host {host}"
    if adapter.class_by_class:
        regularizer.watch.expect("one class per round")
    facts = {"host": host, "dataset": dataset, "ipc": ipc}
    return Layer(regularizer, views=views, steps=steps, inner=inner, record=adapter.record(args, context), facts=facts)


_LAYERS: list[Layer] = []
_PROCESS = os.getpid()


def started(layer: Layer) -> Layer:
    """Register a layer to be saved when the program ends, also by a signal that has no handler."""
    if not _LAYERS:
        atexit.register(save_all)
        if threading.current_thread() is threading.main_thread():
            for ending in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
                if signal.getsignal(ending) is signal.SIG_DFL:
                    signal.signal(ending, _end)
    _LAYERS.append(layer)
    return layer


def _end(number: int, _: object) -> None:
    """Save every layer, then end the process by the signal."""
    try:
        save_all()
    finally:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def save_all() -> list[Path]:
    """Save and forget every started layer, and return the files; in a forked process do nothing."""
    saved: list[Path | None] = []
    while _LAYERS and os.getpid() == _PROCESS:
        saved.append(_LAYERS.pop().save())
    return [path for path in saved if path is not None]


@contextmanager
def require_rounds(what: str, expected: bool) -> Iterator[list[Layer]]:
    """Collect the layers that are started in the block, save them at its end, and raise if none had a round.

    Args:
        what: the host, for the error.
        expected: False at weight 0, where no layer acts.

    Raises:
        HostError: no layer was started, no backward pass went through any of them, or the host hid an error of ours.
    """
    save_all()
    RAISED.clear()
    try:
        yield _LAYERS
        layers = list(_LAYERS)
    finally:
        save_all()
    if RAISED:
        raise HostError(
            f"{what} caught an error of ddplug's and continued without CMI, so its results are not regularised: "
            f"{RAISED[0]}"
        )
    if expected and not any(layer.rounds for layer in layers):
        how = (
            f"its layer was started {len(layers)} times, but no backward pass ever reached images that went through it"
            if layers
            else "it ended before its synthetic images were made, so no layer was started"
        )
        raise HostError(
            f"the CMI regulariser never came into action in {what}: {how}. The results are those of the host "
            "alone. See the host's own output above; `ddplug run --weight 0` runs the host alone."
        )
