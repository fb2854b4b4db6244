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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddplug.core.autograd import Call, uncompiled
from ddplug.core.chunking import Chunk
from ddplug.core.estimator import Estimator, ToPool
from ddplug.core.history import History
from ddplug.core.options import ABOUT, Options
from ddplug.core.real import RealImages
from ddplug.core.rounds import RoundKeeper
from ddplug.core.state import check_kind, check_pool, check_settings
from ddplug.core.step import PieceByPiece
from ddplug.core.watch import Watch
from ddplug.core.weighting import Schedule, WeightingName, make_weighting
from ddplug.datasets.images import ImageData
from ddplug.datasets.spaces import AnySpace
from ddplug.errors import InputError, noted
from ddplug.networks.precision import Precision
from ddplug.proxies.doubts import doubts
from ddplug.proxies.pool import DeferredPool, ProxyPool
from ddplug.proxies.representations import Choice, chosen
from ddplug.terms import Term, TermSpec, make
from ddplug.terms.base import check_labels, check_not_negative
from ddplug.utils.output import say
from ddplug.utils.processes import Processes, Sharing


class Regularizer:
    """Adds lambda * CMI's gradient to the views that pass through it; see the module for the idea.

    Args:
        proxies: a `ProxyPool`, a pool's folder, a network or a list of them. At weight 0 a folder need not exist.
        weight: a share of the host's own gradient, a lambda (weighting="absolute"), or "paper". 0 is off.
        weighting: what `weight` means: the share in the first rounds, whose lambda is then frozen ("relative"), the
            share during the whole run ("sustained"), or lambda itself ("absolute").
        term: what is added: the name of a term (`ddplug.terms.terms()`), a sum such as "cmi+0.3*proxy_ce", the
            same as {"cmi": 1, "proxy_ce": 0.3}, or a `Term` of your own.
        representation: "logit", "feature" for penultimate features (the paper's choice), or "pooled" for these averaged
            over the positions of the maps that a network flattens before its head. "auto" is logits for a share, and
            features for a lambda, as published lambdas are of features.
        temperature: T > 0 in softmax(f / T).
        calibrate: passages of the set over which a share is turned into a lambda, which is announced; without
            `set_size` every round is a passage. Lambda follows from the median over them. During the first one nothing
            is added.
        every: act in every k-th passage of the set only, k times as strongly.
        draw: proxies drawn, and averaged over, per round.
        set_size: for hosts that step on a part of their set at a time, class by class say: images of the whole set. A
            round then counts in proportion to its images, so that lambda means what it does on all of them at once.
            None: every round stands for itself.
        classes: estimate CMI on this many classes only, drawn anew each round, scaled so that the mean over all draws
            is CMI of all of them; None for all. Rounds that calibrate take all.
        precision: "auto" takes the gradient back through a proxy's layers in bf16 where the device is fast at it,
            "exact" never, "bf16" has the forward pass in bf16 too; see `ddplug.networks.precision`. The
            term itself is never reduced.
        chunk: images that go through a proxy together. A number bounds memory by that many images' graph, whatever
            the number of views; "auto" keeps graphs of up to 2 GiB. The gradient is the whole batch's in any case.
        compile: pass images through torch.compile's version of the proxies. Compiling takes a minute, once.
        schedule: a factor on lambda by round number, e.g. `ddplug.core.weighting.warmup(100)`.
        views_per_image: estimate CMI on this many further views of every image that passes, newly made each round, so
            that it means something at one image per class and is less noisy elsewhere. 1: on what passes itself.
        view: what makes such a view, (n, c, h, w) to (n, c, h, w), differentiable; by default `ddplug.augment.DSA()`.
        input_space: the views' normalisation, as an `InputSpace` or "unit", "normalized:cifar10", "zca" (the pool's
            own whitening); None if it is the pool's. Refused for a pool that does not say what its own is.
        setting: (host, data set, images per class), for weight="paper".
        data: the host's real data, of which a term that compares with real images takes a sample in each round, where
            the host's own batch does not come along.
        scale: for mixed precision: the factor on the host's loss right now, e.g. `scaler.get_scale`.
        processes: under torch.distributed, what each process has: "sharded" (images of its own, of one set), "averaged"
            (a part of each batch of one set, whose gradients the host averages over the processes, as DDP does),
            "replicated" (the whole set) or "separate" (a run of its own). Gradient and lambda are those of one process
            with all images. "one" is refused where there are more.
        group: the processes of the run, as torch.distributed's group; None for all.
        record: at weight 0, note CMI of every round all the same, as a baseline; nothing is added to the gradient.
        seed: of our own generator, the only one drawn from.
        announce: where the resolved lambda is reported; printed by default.

    Raises:
        WeightError, InputError, PoolError, SpaceError: arguments that mean nothing, each said in the message.
        ProcessError: in a round, where processes differ, or one does not come to it.
    """

    def __init__(
        self,
        proxies: object,
        weight: float | str = 1.0,
        *,
        weighting: WeightingName = "relative",
        term: TermSpec = "cmi",
        representation: Choice = "auto",
        temperature: float = 1.0,
        calibrate: int = 10,
        every: int = 1,
        draw: int = 1,
        set_size: int | None = None,
        classes: int | None = None,
        precision: Precision = "auto",
        chunk: Chunk = "auto",
        compile: bool = False,
        schedule: Schedule | None = None,
        views_per_image: int = 1,
        view: Callable[[Tensor], Tensor] | None = None,
        input_space: AnySpace | str | None = None,
        setting: tuple[str, str, int] | None = None,
        data: ImageData | None = None,
        scale: Callable[[], float] | None = None,
        processes: Sharing = "one",
        group: Any = None,
        record: bool = False,
        seed: int = 0,
        announce: Callable[[str], object] = say,
    ) -> None:
        self.options = Options(**{name: value for name, value in locals().items() if name in ABOUT})
        self._weight = weight
        self.weighting = make_weighting(weight, weighting, calibrate=calibrate, setting=setting)
        self.record = record
        # What is off asks for nothing, not even that the folder be there.
        off = weight == 0 and not record
        self.pool = DeferredPool(str(proxies)) if off and isinstance(proxies, str | Path) else ProxyPool.of(proxies)
        objective = make(term, temperature=temperature)
        self.representation = chosen(representation, self.weighting.kind, objective.representation)
        self.options.check_with(objective, weight, processes, view)
        self.every, self.set_size = every, set_size
        self.processes = Processes(processes, group)
        self.pool.check_draw(draw)
        if views_per_image > 1 and view is None:
            from ddplug.augment.dsa import DSA

            view = DSA(seed=seed)
        self._given_space = input_space
        self._to_pool = ToPool(self.pool, self.pool.space_of(input_space))
        self.real = RealImages(objective, seed, announce, self._to_pool.of_views, data)
        """Where a term that compares with real images gets them."""
        step = PieceByPiece(
            self.representation, objective, self._to_pool, precision=precision, chunk=chunk,
            compile=compile, processes=self.processes,
        )  # fmt: skip
        self.estimator = Estimator(
            self.pool, step, draw=draw, classes=classes,
            views_per_image=views_per_image, view=view, seed=seed, processes=self.processes,
            real=self.real if objective.needs_real else None,
        )  # fmt: skip
        self.watch = Watch()
        self._keeper = RoundKeeper(
            self.estimator, self.weighting, self.watch, weight, every=every,
            set_size=set_size, schedule=schedule, scale=scale, announce=announce, processes=self.processes,
        )  # fmt: skip
        self._probed = False
        self._expected_pool: str | None = None

    @property
    def input_space(self) -> AnySpace | None:
        """The views' normalisation; None if it is the pool's. May be set before the first call."""
        return self._to_pool.space

    @input_space.setter
    def input_space(self, space: AnySpace | str | None) -> None:
        self._given_space = space
        self._to_pool.space = self.pool.space_of(space)

    @property
    def weight(self) -> float | str:
        """The weight it was made with: a share, a lambda or "paper"."""
        return self._weight

    @property
    def objective(self) -> Term:
        """The term that is added."""
        return self.estimator.objective

    @property
    def temperature(self) -> float:
        """T in softmax(f / T), for terms that have one; else 1."""
        return float(self.objective.settings().get("temperature", 1.0))

    @property
    def generator(self) -> torch.Generator:
        """Generator that proxies are drawn with."""
        return self.estimator.generator

    @property
    def history(self) -> History:
        """CMI, lambda, share and images of each round."""
        return self._keeper.history

    @property
    def rounds(self) -> int:
        """Rounds so far, skipped and lazy ones included."""
        return self._keeper.rounds

    @property
    def enabled(self) -> bool:
        """True if it acts; False after `detach()`. Can be set to False for a while, outside of backward passes."""
        return self._keeper.enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self._keeper.enabled = enabled

    @property
    def announce(self) -> Callable[[str], object]:
        """Function that is called with the report of the resolved lambda."""
        return self._keeper.announce

    @property
    def lam(self) -> float | None:
        """Lambda, once it is settled; None while a share is still being measured."""
        return self.weighting.lam

    @property
    def active(self) -> bool:
        """True if it does anything: not detached, and a weight above 0 or CMI to record."""
        return self.enabled and (self.weight != 0 or self.record)

    @uncompiled
    @noted
    def __call__(self, views: Tensor, labels: Tensor, *, real: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """`views`, unchanged; their gradient will gain that of CMI.

        Args:
            views: (n, c, h, w) floats. Without a gradient, at weight 0 or after `detach()` they come back untouched.
            labels: (n,) class numbers, in any order. Calls of one round are regularised together.
            real: real images (m, c, h, w) under the same augmentation and their class numbers (m,), for a term that
                compares with such; others ignore them.

        Raises:
            InputError, ProxyError, SpaceError: views or labels that the pool cannot take, here or in the backward pass.
        """
        if not (self.active and torch.is_grad_enabled() and views.requires_grad):
            self.passed_by(views, labels)
            return views
        return self._keeper.passed(views, self._checked(views, labels, real))

    def passed_by(self, images: Tensor | None = None, labels: Tensor | None = None) -> None:
        """Told that views came that are not to be regularised; many such and no others are warned about.

        They are real images, to a term that compares with such: of `labels` (m,), or of the class of the next views.
        """
        if self.active:
            self.watch.untouched()
            if images is not None:
                self.real.passed(images, labels)

    @contextmanager
    def round(self) -> Iterator[None]:
        """All backward passes within are one round: CMI of the views of all of them, around common centroids.

        The host's own gradient reaches its images as ever; CMI's is added to it when the block ends, so the step comes
        after. Lambda then means the same however the batch was cut. Views are kept until then. A block that is left by
        an exception adds nothing.

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
        """Lambda * dCMI/dimages, to be added to `grad` by the caller: one round on images that no layer could see.

        Shapes as in a call; `grad` is the host's gradient, (n, c, h, w). None if this round adds nothing.
        """
        return self._keeper.at_once(self._checked(images, labels), grad) if self.active else None

    def skip(self) -> None:
        """Leave out the calls whose backward pass is still to come: it passes as it is, and is no round."""
        self._keeper.skip()

    def detach(self) -> None:
        """Switch off for good: calls become no-ops, also those whose backward pass is still to come. Idempotent."""
        self._keeper.stop()

    def settings(self) -> dict[str, Any]:
        """Return the settings that lambda depends on besides the weight: a state is valid with these only."""
        return {
            **self.options.of_lambda(), **self.objective.settings(), "term": self.objective.name,
            "representation": self.representation, "classes": self.estimator.classes,
            "input_space": str(self._given_space) if self._given_space is not None else None,
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Everything a continued run needs: what was measured, the generators, the history; and what it belongs to."""
        self._keeper.provisional.settle()
        return {
            "weighting": self.weighting.state_dict(),
            **self.estimator.state_dict(),
            "rounds": self.rounds,
            "seen": self._keeper.seen,
            "history": self.history.state_dict(),
            "settings": self.settings(),
            "pool": None if self.pool.pending else self.pool.digest(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`; nothing is changed if it is refused.

        Raises:
            WeightError: it is of another weight or weighting.
            InputError: it is no such state, or of another term, space, temperature, `every`, `draw`, ... or pool.
        """
        check_kind(state)
        self.weighting.check(state["weighting"])
        check_settings(state["settings"], self.settings())
        if self.pool.pending:
            self._expected_pool = state.get("pool")
        else:
            check_pool(state.get("pool"), self.pool)
        before = self.state_dict()
        self._keeper.provisional.clear()
        try:
            self._take(state)
        except Exception as error:  # a damaged state may be anything
            self._take(before)
            raise InputError(
                f"this state of a Regularizer is damaged ({type(error).__name__}: {error}); nothing was taken from it."
            ) from error

    def _take(self, state: dict[str, Any]) -> None:
        self.weighting.load_state_dict(state["weighting"])
        self.estimator.load_state_dict(state)
        self.history.load_state_dict(state["history"])
        self._keeper.rounds = self.watch.rounds = int(state["rounds"])
        self._keeper.seen = int(state["seen"])
        self._keeper.skips_reported = self.history.skipped

    def __repr__(self) -> str:
        how = "detached" if not self.enabled else f"lambda {self.lam:.6g}" if self.lam is not None else "measuring"
        what = f"weight={self.weight}, {self.weighting.kind}, {self.representation}"
        return f"Regularizer({what}, {self.pool}, {self.rounds} rounds, {how})"

    def _checked(self, views: Tensor, labels: Tensor, real: tuple[Tensor, Tensor] | None = None) -> Call:
        """A call on views and labels that CMI can be estimated on."""
        labels = torch.as_tensor(labels)
        self.processes.check()
        if self.processes.together and not self._keeper.common:
            common = {**self.settings(), "weight": self.weight, "weighting": self.weighting.kind}
            self._keeper.common = {**common, "the proxies": self.pool.digest()}
        if not len(views) and self.processes.pooled:
            self.pool.check(views, self.input_space)
            return Call(views.detach(), labels.detach())
        check_labels(labels, len(views))
        if labels.device.type == "cpu":
            check_not_negative(labels)  # a wrong label is best said where it was given
            self.pool.check_classes(labels)
        self.pool.check(views, self.input_space)
        if not self._probed:
            self._probe(views, labels)
            self._probed = True
        # A copy, as hosts refill one buffer of labels before the backward pass reads them.
        labels = labels.detach().clone()
        return Call(views.detach(), labels, self.real.given(real, labels))

    def _probe(self, views: Tensor, labels: Tensor) -> None:
        """Run the checks of the first call."""
        check_pool(self._expected_pool, self.pool)
        if self.input_space is None:  # by name, of a pool that was not there yet
            self._to_pool.space = self.pool.space_of(self._given_space)
        self.pool.check_draw(self.estimator.draw)
        self.pool.check_classes(labels)
        self.pool.probe(views, self.input_space, self.representation)
        for doubt in doubts(self.pool, views, labels, self.input_space, from_noise=self.objective.keeps_real):
            self.watch.warn(doubt, doubt)
