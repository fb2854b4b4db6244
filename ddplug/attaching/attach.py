"""`ddplug.attach`: put the regulariser into a trainer that exists, and take it out again without a trace.

Three kinds of place are known: an augmentation (the layer goes on what it returns), a loss (the layer goes on its image
argument), and an optimizer that holds the synthetic images (CMI's gradient is added just before its step).
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Unpack, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from ddplug.attaching import registry
from ddplug.attaching.data import RealData, space_of_script
from ddplug.attaching.held import Held
from ddplug.attaching.hooks import original
from ddplug.attaching.images import leaves_of
from ddplug.attaching.labels import Labels, check_given, one_class_per_call
from ddplug.attaching.loggers import Logger, log
from ddplug.attaching.places import ImagesGiven, Place, find_place
from ddplug.choices import Inner
from ddplug.core.figures import plot_history
from ddplug.core.history import History
from ddplug.core.options import Views, weight_of
from ddplug.core.regularizer import Options, Regularizer
from ddplug.errors import RAISED, HostError, caught
from ddplug.proxies.doubts import Likeness
from ddplug.proxies.pool import DeferredPool

if TYPE_CHECKING:
    from ddplug.augment.dsa import DSA

Augment = Literal["host", "none", "kornia"]


class Handle:
    """Result of `attach`: the regulariser at work, and the way to take it out.

    A context manager: leaving it detaches. `history` and `lam` say what happened; `state_dict` lets a run continue.
    """

    def __init__(
        self, regularizer: Regularizer, where: str, undo: ExitStack | None, classes: one_class_per_call | None = None
    ) -> None:
        self.regularizer = regularizer
        self.where = where
        self._classes = classes
        self._undo = undo

    @property
    def attached(self) -> bool:
        """True until `detach`."""
        return self._undo is not None

    @property
    def history(self) -> History:
        """CMI, lambda and images of each round."""
        return self.regularizer.history

    @property
    def lam(self) -> float | None:
        """Lambda, or None while it is being measured."""
        return self.regularizer.lam

    def detach(self) -> None:
        """Restore the host exactly, and announce how many steps of the images had CMI; idempotent.

        Warns if the regulariser never came into action. Raises `HostError`, at the end, if an optimizer stepped the
        images all the same: these are the host's alone.
        """
        if self._undo is None:
            return
        undo, self._undo = self._undo, None
        self.regularizer.detach()
        undo.close()
        watch = self.regularizer.watch
        if self.regularizer.rounds:
            self.regularizer.announce(f"ddplug: {watch.summary(self.history)}")
        elif watch.steps and watch.expects_action and watch.due("never acts"):
            watch.expect("never acts")
            raise HostError(
                f"an optimizer took {watch.steps} steps of the images, and CMI was added in none: no backward pass "
                f"came through {self.where}. The images are the host's alone. Attach where they pass, at='NAME', or to "
                f"the optimizer that steps them.{caught()}"
            )
        watch.report()

    def round(self) -> AbstractContextManager[None]:
        """All backward passes within are one round; see `Regularizer.round`."""
        return self.regularizer.round()

    def log_to(self, *loggers: Logger) -> None:
        """Have every round written by `ddplug.attaching.loggers` or your own, until `detach()`, which closes them."""
        end = log(self.history, *loggers)
        if self._undo is None:
            end()
        else:
            self._undo.callback(end)

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw the term, lambda and the share by round; returns matplotlib's figure.

        Args:
            path: where to save it, .png, .svg or .pdf; None for nowhere.

        Raises:
            InputError: `path` is no picture's name.
            DataError: there is no round to draw, or matplotlib is missing.
            FileError: it cannot be written.
        """
        return plot_history(self.history, self.regularizer.term, path)

    def state_dict(self) -> dict[str, Any]:
        """Everything a continued run needs."""
        state = self.regularizer.state_dict()
        return state if self._classes is None else {**state, "one_class_per_call": self._classes.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.regularizer.load_state_dict(state)
        if self._classes is not None and "one_class_per_call" in state:
            self._classes.load_state_dict(state["one_class_per_call"])

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:  # the host's own exception says more than ours could
            self.regularizer.watch.expect("never acts")
        self.detach()

    def __deepcopy__(self, memo: dict[int, Any]) -> Handle:
        """A handle of nothing: what is attached to a trainer is not attached to its copy."""
        return Handle(copy.deepcopy(self.regularizer, memo), self.where, None)

    def __reduce__(self) -> tuple[Any, ...]:
        return Handle, (self.regularizer, self.where, None)

    def __repr__(self) -> str:
        state = "attached" if self.attached else "detached"
        return f"Handle({state}, {self.where}, weight={self.regularizer.weight}, {self.history})"


def attach(
    trainer: object,
    weight: float | None = None,
    *,
    proxies: object = None,
    at: str | None = None,
    images: ImagesGiven = None,
    labels: Labels | None = None,
    augment: Augment | DSA = "host",
    data: object = None,
    inner: Inner = "one",
    **options: Unpack[Options],
) -> Handle:
    """Regularise the synthetic images of `trainer` by CMI, from now until `detach()`.

    Args:
        trainer: a host that an adapter knows; an object or module with an augmentation or a loss as a method, function
            or submodule, compiled or not; an imported script that has such functions; an object that holds the
            synthetic images, which some optimizer steps; that optimizer, alone or as Accelerate or Lightning wrap it;
            or, if `labels` are given, an imported script whose functions make the images. They are looked for in this
            order.
        weight: share of the host's own gradient, by default 3; with `weighting="absolute"` lambda itself. 0 changes
            nothing at all (but for an augmentation that is given).
        proxies: a `ProxyPool`, a pool's folder, trained networks. None: a small pool is trained once on the host's
            real data (`data`, or those that hang on the trainer) and kept in the cache.
        at: dotted name of the callable, e.g. "augment" or "loss"; found by itself if it has a usual name. The layer
            goes on what it returns; on its image argument if it has the name of a loss, or if `images` is an argument.
        images: the synthetic images, a leaf tensor or a list of leaf tensors, or the dotted name of the attribute that
            holds them; or the name of the callable's image argument. By default they are found by autograd's graph.
        labels: a tensor (n,), one label for each row of the synthetic images, or the dotted name of an attribute that
            holds it; the name of the callable's label argument; a function from the views to their labels, or to the
            one class of all of them; `ddplug.one_class_per_call(classes)`. By default the integers (n,) that the
            trainer holds under a usual name, else the label argument of the callable.
        augment: "host" regularises the views that the trainer's augmentation makes, "none" the images before it.
            "kornia" puts `ddplug.augment.DSA()` in the place of the trainer's augmentation, a DSA puts that one there:
            the real batch, the synthetic batch and the regulariser then share one draw per iteration. Attached to an
            optimizer, the regulariser makes one view of each image by itself, by `DSA()` or the DSA given; "none"
            takes the images as they are.
        data: the host's real data: proxies are trained on them if there are none, their normalisation is taken for
            the views', proxies of other data are refused, and a term that compares with real images takes a sample of
            them where the host's own batch does not pass the place that is attached to. Whatever
            `ddplug.datasets.as_image_data` takes. None: an `ImageData`, torch data sets or loaders, or two tensors
            that are attributes of the trainer, or of what it holds. Where these have a `Normalize(mean, std)` among
            their transforms, that is the views' normalisation.
        inner: for a host with an unrolled loop: the views of "one" of its inner steps, the "last" or "all".
        options: of `ddplug.Regularizer`: weighting, term, representation, views, compute, processes, input_space,
            scale, record, seed, announce.

    Raises:
        HostError: no place found, or several, or already attached; it lists what was looked for.
        DDPlugError: whatever `Regularizer` and `ProxyPool` refuse.
    """
    RAISED.clear()
    weight = weight_of(weight, options.get("weighting", "relative"))
    if labels is not None and not isinstance(labels, str) and not callable(labels):
        check_given(labels)
    compiled, trainer = trainer, original(trainer)
    known = registry.find(trainer) if at is None else None
    replacement = _replacement(augment, options.get("seed", 0))
    real = RealData(None if known else trainer, data, options.get("input_space"))
    if known:
        _configure(known, augment, inner)
        place = Place(f"host {known[0]}", partial(known[1].install, trainer))
    else:
        try:
            place = find_place(
                trainer, at=at, images=images, labels=labels, shape=real.shape if weight != 0 else None,
                augment=replacement or ("none" if augment == "none" else "host"),
            )  # fmt: skip
        except HostError:
            given = at, images, labels, replacement, options.get("record") or None
            if weight != 0 or any(each is not None for each in given) or isinstance(trainer, type | Optimizer):
                raise
            place = Place("nothing", lambda _: lambda: None)  # a baseline needs no labels
    if place.own_views:
        replacement = None
        if augment != "none":
            from ddplug.augment.dsa import DSA

            own = augment if isinstance(augment, DSA) else DSA(seed=options.get("seed", 0))
            options.setdefault("views", Views(1, own))
    pool = _proxies(proxies, real, weight, options.get("record", False), bool(known))
    regularizer = Regularizer(pool, weight, **options)
    regularizer.real.sample_from(real.images)
    if real.known is not None and not regularizer.pool.pending:
        regularizer.pool.check_data(real.known.name, real.known.fingerprint())
    if options.get("input_space") is None and regularizer.active:
        regularizer.input_space = regularizer.pool.derived_space(real.space)
        if real.space is None and isinstance(trainer, ModuleType):
            regularizer.input_space = partial(space_of_script, regularizer)
        if (like := real.like_views()) is not None and not regularizer.term.keeps_real:
            regularizer.watch.likeness = Likeness(like)
    # At weight 0 nothing is installed, except an augmentation that the user passed and whatever an adapter installs.
    where = place.where
    idle = not regularizer.active and replacement is None and not known
    regularizer.watch.where = where
    regularizer.watch.expects_action = weight != 0
    undo = ExitStack()
    if weight != 0:
        _count_steps(trainer, regularizer)
    if not idle:
        undo.callback(place.install(regularizer))
        if compiled is not trainer and isinstance(trainer, torch.nn.Module):
            torch.compiler.reset()  # earlier code knows of no hooks
            undo.callback(torch.compiler.reset)
    handle = Handle(regularizer, where, undo, labels if isinstance(labels, one_class_per_call) else None)
    try:
        images = (
            f"; real data {real.where}, {real.space or 'of unknown normalisation'}"
            if real.where and regularizer.active
            else ""
        )
        regularizer.announce(f"ddplug: attached to {where}, weight {weight}, {regularizer.pool}{images}")
    except BaseException:
        regularizer.watch.expect("never acts")
        handle.detach()
        raise
    return handle


def _count_steps(trainer: object, regularizer: Regularizer) -> None:
    """Count the steps of the images, and warn if many pass without a round."""
    try:
        held = weakref.ref(trainer)
    except TypeError:  # no weak reference to it can be made
        return
    known: Any = WeakIdKeyDictionary()

    def images(optimizer: Optimizer, parameters: list[Tensor]) -> list[Tensor]:
        owner = held()
        if owner is optimizer or isinstance(owner, ModuleType):  # a script's are variables of one of its functions
            return parameters if all(parameter.ndim == 4 for parameter in parameters) else []
        like_images = [parameter for parameter in parameters if parameter.ndim >= 4]
        if any(parameter not in known for parameter in like_images):  # once for each, as it takes time
            found = {id(leaf) for leaf in leaves_of(Held(owner))}
            known.update({parameter: id(parameter) in found for parameter in like_images})
        return [parameter for parameter in like_images if known[parameter]]

    regularizer.watch.count_steps(images)


def _configure(known: tuple[str, object], augment: Augment | DSA, inner: Inner) -> None:
    """Pass a host's adapter its options; `HostError` for one that it does not have."""
    name, adapter = known
    if augment not in ("host", "none"):
        raise HostError(
            f"host {name} augments real and synthetic images itself; augment='kornia' or a DSA is for loops without."
        )
    wanted = {"views": "clean" if augment == "none" else "host", "inner": inner}
    configure = getattr(adapter, "configure", None)
    if configure is not None:
        configure(**wanted)
    elif wanted != {"views": "host", "inner": "one"}:
        raise HostError(f"the adapter of {name} has no options; leave out augment= and inner=.")


def _proxies(proxies: object, real: RealData, weight: float, record: bool, known: bool) -> object:
    """The proxies as given, or a small pool of the host's real data; a known host's come with its run."""
    from ddplug.proxies.pool import scheme_of

    if known and isinstance(proxies, str) and scheme_of(proxies):
        return DeferredPool(proxies)
    if proxies is not None:
        return proxies
    off = weight == 0 and not record
    data = None if off else real.images()
    if off or (known and data is None):
        return DeferredPool()
    if data is None:
        raise HostError(
            "no proxies given, and no real data to train some on: no data set, loader, or floating-point images "
            "(n, c, h, w) beside integers (n,) hang on the trainer. Pass data= (a data set, or images and labels), or "
            "proxies= (trained networks, or the folder that `ddplug pretrain` made)."
        )
    from ddplug.proxies.pretrain import default_pool

    return default_pool(data)


def _replacement(augment: object, seed: int) -> Callable[[Tensor], Tensor] | None:
    """Return the replacement of the host's augmentation, if any."""
    if augment in ("host", "none"):
        return None
    from ddplug.augment.dsa import DSA
    from ddplug.augment.shared import SharedDraw

    if augment == "kornia":
        augment = DSA(seed=seed)
    if not isinstance(augment, DSA):
        raise HostError(
            f"unknown augment {augment!r}, expected {', '.join(map(repr, get_args(Augment)))} or a ddplug.augment.DSA."
        )
    return SharedDraw(augment)
