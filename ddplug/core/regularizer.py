"""The identity layer: forward nothing changes, on the way back the gradient gains lambda times that of CMI.

    views = regularizer(views, labels)      # forward: the same values;  backward: g -> g + lambda * dCMI/dviews

As the derivative of a sum is the sum of derivatives, the images get exactly the gradient of L_host + lambda * CMI,
while the host's loss, log and thresholds stay as they are. All calls that one backward pass reaches form a *round*:
at the first of them CMI is estimated on the views of all together, and each call is handed its slice. A host that takes
its batch in several backward passes puts them into `with regularizer.round():`, and they form one round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from ddplug.choices import Choice, Sharing, WeightingName
from ddplug.core.autograd import Call, check_plain, uncompiled
from ddplug.core.estimator import Estimator, ToPool
from ddplug.core.history import History
from ddplug.core.options import Compute, Views, Weighting, weight_of, weighting_of
from ddplug.core.progress import Progress, check_pool, check_state
from ddplug.core.real import RealImages
from ddplug.core.rounds import RoundKeeper
from ddplug.core.step import PieceByPiece
from ddplug.core.watch import Watch
from ddplug.core.weighting import Lambda
from ddplug.datasets.images import ImageData, as_image_data
from ddplug.datasets.spaces import AnySpace
from ddplug.errors import InputError, noted
from ddplug.proxies.doubts import doubts
from ddplug.proxies.pool import DeferredPool, ProxyPool
from ddplug.proxies.representations import chosen
from ddplug.terms import TermSpec, make
from ddplug.terms.base import check_labels, check_not_negative, transformed
from ddplug.utils.output import say
from ddplug.utils.processes import Processes


class Options(TypedDict, total=False):
    """The options of `Regularizer` that `ddplug.attach` passes on."""

    weighting: WeightingName | Weighting
    term: TermSpec
    representation: Choice
    views: int | Views
    compute: Compute
    processes: Sharing | Processes
    input_space: AnySpace | str | None
    scale: Callable[[], float] | None
    record: bool
    seed: int
    announce: Callable[[str], object]


class Regularizer:
    """Adds lambda * CMI's gradient to the views that pass through it; see the module for the idea.

    Args:
        pool: a `ProxyPool`, a pool's folder, a network or a list of them. At weight 0 a folder need not exist.
        weight: a share of the host's own gradient, or a lambda, by `weighting`; finite and >= 0. 0 is off. None: 3 for
            "relative", 1 for others.
        weighting: "relative" (the share in the first rounds, whose lambda is then frozen), "sustained" (the share
            during the whole run) or "absolute" (lambda itself); these with options, `ddplug.Relative(rounds=20)`,
            `ddplug.Sustained(...)`, `ddplug.Absolute(...)`; or `ddplug.paper("dm", "cifar10", 10)`.
        term: the name of a term (`ddplug.terms.terms()`), a sum such as "cmi+0.3*proxy_ce", the same as
            {"cmi": 1, "proxy_ce": 0.3}, or a `Term`, such as `ddplug.terms.CMI(temperature=0.5)` or one of your own.
        representation: "logit", or "feature" for penultimate features (the paper's choice). "auto" is logits for a
            share, and features for a lambda, as published lambdas are of features.
        views: views of each image that the term is estimated on, a number or `ddplug.Views(4, make)`; 1 for what passes
            itself.
        compute: precision, chunks, laziness and draws, see `ddplug.Compute`.
        processes: under torch.distributed, what each process has, a name or `ddplug.Processes(name, group)`: "sharded",
            "averaged", "replicated" or "separate". "one" is refused where there are several processes.
        input_space: the views' normalisation, as an `InputSpace` or "unit", "normalized:cifar10", "zca" (the pool's
            own whitening); None if it is the pool's. Refused for a pool that does not say what its own is.
        data: the host's real data, as `ddplug.datasets.as_image_data` takes them, tensors in the views' `input_space`.
            A term that compares with real images takes a sample in each round, where the host's own batch does not
            come along.
        scale: for mixed precision: the factor on the host's loss right now, e.g. `scaler.get_scale`.
        record: at weight 0, note CMI of every round all the same, as a baseline; nothing is added to the gradient.
        seed: of our own generator, the only one drawn from.
        announce: where the resolved lambda is reported; printed by default.

    Raises:
        InputError, ProxyError: an invalid argument.
        HostError: in a round, where processes differ, or one does not come to it.
    """

    def __init__(
        self,
        pool: object,
        weight: float | None = None,
        *,
        weighting: WeightingName | Weighting = "relative",
        term: TermSpec = "cmi",
        representation: Choice = "auto",
        views: int | Views = 1,
        compute: Compute = Compute(),  # noqa: B008, immutable
        processes: Sharing | Processes = "one",
        input_space: AnySpace | str | None = None,
        data: object = None,
        scale: Callable[[], float] | None = None,
        record: bool = False,
        seed: int = 0,
        announce: Callable[[str], object] = say,
    ) -> None:
        weighting = weighting_of(weighting)
        weight = weight_of(weight, weighting)
        self._lambda, self._record = Lambda(weight, weighting), record
        self.weight, self.weighting = self._lambda.weight, self._lambda.how
        # At weight 0 the folder need not exist.
        off = weight == 0 and not record
        self.pool = DeferredPool(str(pool)) if off and isinstance(pool, str | Path) else ProxyPool.of(pool)
        views = views if isinstance(views, Views) else Views(views)
        self.processes = processes if isinstance(processes, Processes) else Processes(processes)
        self.term, self.compute, self.announce = make(term), compute, announce
        self.representation = chosen(representation, self.weighting.kind, self.term.representation)
        if compute.classes is not None and not self.term.additive_over_classes:
            raise InputError(
                f"classes={compute.classes} lets some classes stand for all, but {self.term.label} is no sum over "
                "classes; leave classes out."
            )
        self.pool.check_draw(compute.draw)
        view = views.make
        if views.count > 1 and view is None:
            from ddplug.augment.dsa import DSA

            view = DSA(seed=seed)
        self._given_space = input_space
        self._find_space: Callable[[Tensor], AnySpace | None] | None = None
        self._to_pool = ToPool(self.pool, self.pool.space_of(input_space))
        if data is not None:
            data = as_image_data(data, space=None if isinstance(data, ImageData | str) else input_space)
        stored = partial(self.pool.has_centroids, self.term, self.representation)
        self.real = RealImages(self.term, seed, announce, self._to_pool.of_views, data, stored)
        step = PieceByPiece(self.representation, self.term, self._to_pool, compute, self.processes)
        real = self.real if self.term.needs_real else None
        self._estimator = Estimator(self.pool, step, views.count, view, seed, real)
        self._progress = Progress(self._estimator, self._lambda, announce)
        self.generator = self._estimator.generator
        self.watch = Watch(self._progress)
        self._keeper = RoundKeeper(self._progress, self.watch, scale)
        self._probed = False
        self._expected_pool: str | None = None

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse to replace an attribute, which would have no effect."""
        if name in vars(self) and not name.startswith("_"):
            raise AttributeError(f"{name} of a Regularizer cannot be changed; make another one with it.")
        super().__setattr__(name, value)

    @property
    def input_space(self) -> AnySpace | None:
        """The views' normalisation; None if it is the pool's. May be set before the first call.

        A function is called with the first views, and returns it.
        """
        return self._to_pool.space

    @input_space.setter
    def input_space(self, space: AnySpace | str | Callable[[Tensor], AnySpace | None] | None) -> None:
        self._find_space = space if callable(space) else None
        self._given_space = None if callable(space) else space
        self._to_pool.space = self.pool.space_of(self._given_space)
        self.watch.likeness = None

    @property
    def history(self) -> History:
        """CMI, lambda, share and images of each round whose images were stepped.

        Where no optimizer holds the images, a backward pass counts as their step.
        """
        self._keeper.provisional.commit_unheld()
        return self._progress.history

    @property
    def rounds(self) -> int:
        """Rounds so far whose images were stepped, left-out rounds included."""
        with self._keeper.provisional.committed() as progress:
            return progress.rounds

    @property
    def lam(self) -> float | None:
        """Lambda, once it is settled; None while a share is still being measured."""
        with self._keeper.provisional.committed() as progress:
            return progress.lam.lam

    @property
    def active(self) -> bool:
        """True if it does anything: not detached, and a weight above 0 or CMI to record."""
        return self._keeper.enabled and (self.weight != 0 or self._record)

    @uncompiled
    @noted
    def __call__(self, views: Tensor, labels: Tensor, *, real: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return `views` unchanged; CMI's part is added to their gradient.

        Args:
            views: (n, c, h, w) floats. Without a gradient, at weight 0 or after `detach()` they come back untouched.
            labels: (n,) class numbers, in any order. Calls of one round are regularised together.
            real: real images (m, c, h, w) under the same augmentation and their class numbers (m,), for a term that
                compares with them; other terms ignore them.

        Raises:
            InputError, ProxyError: views or labels that the pool cannot take, here or in the backward pass.
        """
        if self.active and transformed():
            check_plain(views)
        if not (self.active and torch.is_grad_enabled() and views.requires_grad):
            self.passed_by(views, labels)
            return views
        self.watch.expects_action = True  # before the checks, as the host may catch what they raise
        return self._keeper.passed(views, self._checked(views, labels, real))

    def passed_by(self, images: Tensor | None = None, labels: Tensor | None = None) -> None:
        """Record a call whose views are not regularised. Warns if no other calls follow.

        A term that compares with real images takes them as real, of `labels` (m,) or of the class of the next views.
        """
        if self.active:
            self.watch.untouched()
            if images is not None:
                check_plain(images)
                self.real.passed(images, labels)

    @contextmanager
    def round(self) -> Iterator[None]:
        """Make all backward passes within the block one round: CMI of all their views, around common centroids.

        The host's own gradient reaches its images as usual. CMI's is added when the block ends, and the step comes
        after it. Lambda means the same however the batch is cut. Views are kept until the end of the block. A block
        that is left by an exception adds nothing.

        Raises:
            InputError: rounds within each other, a step of an optimizer of the images within, or a backward pass with
                create_graph=True.
        """
        if not self.active:
            yield
            return
        with self._keeper.together():
            yield

    @uncompiled
    def added(self, images: Tensor, labels: Tensor, grad: Tensor) -> Tensor | None:
        """Return lambda * dCMI/dimages, which the caller adds to `grad`: a round on images that pass no layer.

        Shapes as in a call; `grad` is the host's gradient, (n, c, h, w). None if this round adds nothing.
        """
        return self._keeper.at_once(self._checked(images, labels), grad) if self.active else None

    def stands_for(self, steps: int, calls: int = 1) -> None:
        """Note that the views of `calls` calls, which one backward pass reaches, stand for those of `steps` steps.

        The host unrolls the steps, and either one of them passes the layer or all. Of one, a measured lambda is
        multiplied by `steps`, and the recorded share divided. Over all steps the host's gradient is sqrt(steps) times
        as long as on one step's views, and CMI's, a mean over steps times as many views, 1/sqrt(steps) times.
        """
        self._lambda.factor, self._keeper.calls = steps / calls, calls

    def skip(self) -> None:
        """Leave out the calls whose backward pass is still to come."""
        self._keeper.skip()

    def detach(self) -> None:
        """Switch off for good, also for calls whose backward pass is still to come. Idempotent."""
        self._keeper.stop()

    def settings(self) -> dict[str, Any]:
        """Return the settings that lambda depends on: a state is valid with these only."""
        how = {name: value for name, value in vars(self.weighting).items() if name != "schedule"}
        return {
            "weight": self.weight, "weighting": self.weighting.kind, **how, "term": self.term.name,
            **self.term.settings(), "representation": self.representation, "every": self.compute.every,
            "draw": self.compute.draw, "classes": self.compute.classes, "views": self._estimator.count,
            "input_space": None if self._given_space is None else str(self._given_space),
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Return everything a continued run needs: the measurement, the generators, the history, and the settings."""
        with self._keeper.provisional.committed() as progress:
            pool = None if self.pool.pending else self.pool.digest()
            return {**progress.state_dict(), "settings": self.settings(), "pool": pool}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`; nothing is changed if it is refused.

        Raises:
            InputError: it is not a state of a regulariser, or of another weight, weighting, term, ... or pool.
        """
        check_state(state, self.settings())
        if self.pool.pending:
            self._expected_pool = state["pool"]
        else:
            check_pool(state["pool"], self.pool.digest())
        before = self.state_dict()
        self._keeper.provisional.clear()
        try:
            self._progress.load_state_dict(state)
        except Exception as error:  # a damaged state may be anything
            self._progress.load_state_dict(before)
            raise InputError(
                f"this state of a Regularizer is damaged ({type(error).__name__}: {error}); nothing was taken from it."
            ) from error

    def __repr__(self) -> str:
        how = "measuring" if self.lam is None else f"lambda {self.lam:.6g}"
        how = how if self._keeper.enabled else "detached"
        what = f"weight={self.weight}, {self.weighting.kind}, {self.representation}"
        return f"Regularizer({what}, {self.pool}, {self.rounds} rounds, {how})"

    def _checked(self, views: Tensor, labels: Tensor, real: tuple[Tensor, Tensor] | None = None) -> Call:
        """A call on views and labels that CMI can be estimated on."""
        labels = labels if isinstance(labels, Tensor) else torch.as_tensor(labels, device="cpu")
        self.processes.check()
        if self.processes.together and not self._keeper.common:
            self._keeper.common = {**self.settings(), "the proxies": self.pool.digest()}
        if not len(views) and self.processes.pooled:
            self.pool.check(views, self.input_space)
            return Call(views.detach(), labels.detach())
        check_labels(labels, len(views))
        # A copy, as hosts refill one buffer of labels before the backward pass reads them.
        labels = labels.detach().to(torch.int64, copy=True)
        if labels.device.type == "cpu":
            check_not_negative(labels)  # raises where the label was passed, not in the backward pass
            self.pool.check_classes(labels)
        self.pool.check(views, self.input_space)
        if not self._probed:
            self._probe(views, labels)
            self._probed = True
        self.watch.look(views)
        return Call(views.detach(), labels, self.real.given(real, labels))

    def _probe(self, views: Tensor, labels: Tensor) -> None:
        """Run the checks of the first call."""
        check_pool(self._expected_pool, self.pool.digest())
        if self._find_space is not None:
            self.input_space = self._find_space(views)
        elif self.input_space is None:  # by name, of a pool that was not there yet
            self._to_pool.space = self.pool.space_of(self._given_space)
        self.pool.check_draw(self.compute.draw)
        self.pool.check_classes(labels)
        self.pool.probe(views, self.input_space, self.representation)
        for doubt in doubts(self.pool, views, labels, self.input_space, from_noise=self.term.keeps_real):
            self.watch.warn(doubt, doubt)
