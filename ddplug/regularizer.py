"""The identity layer: forward nothing changes, on the way back the gradient gains lambda times that of CMI.

    views = regularizer(views, labels)      # forward: the same values;  backward: g -> g + lambda * dCMI/dviews

As the derivative of a sum is the sum of derivatives, the images get exactly the gradient of L_host + lambda * CMI,
while the host's loss, log and thresholds stay as they are. All calls that one backward pass reaches form a *round*:
at the first of them CMI is estimated on the views of all together, and each call is handed its slice.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddplug.cmi import ONE_IMAGE_PER_CLASS, check_labels, check_not_negative, check_temperature, group
from ddplug.errors import DDPlugWarning, InputError, WeightError
from ddplug.gradient import PieceByPiece, cmi_gradient
from ddplug.graphs import Graphs
from ddplug.history import History
from ddplug.pieces import Chunk, check_chunk
from ddplug.precision import Precision, check_precision
from ddplug.proxies import ProxyPool, Space, check_space
from ddplug.rounds import Call, Identity, Round, gather
from ddplug.slots import check_compile
from ddplug.spaces import AnySpace
from ddplug.weighting import Relative, Schedule, WeightingName, make_weighting


class Regularizer:
    """Adds lambda * CMI's gradient to the views that pass through it; see the module for the idea.

    Args:
        proxies: a `ProxyPool`, a pool's folder, a network or a list of them.
        weight: a share of the host's own gradient (weighting="relative"), a lambda ("absolute"), or "paper". 0 is off.
        weighting: what `weight` means.
        space: "feature" for penultimate features (the paper's choice) or "logit".
        temperature: T > 0 in softmax(f / T).
        calibrate: rounds over which a share is turned into a lambda, which is then frozen and announced. The first of
            them only measures.
        every: act in every k-th round only, k times as strongly.
        draw: proxies drawn, and averaged over, per round.
        classes: estimate CMI on this many classes only, drawn anew each round, scaled so that the mean over all draws
            is CMI of all of them; None for all. Rounds that calibrate take all.
        precision: "auto" takes the gradient back through a proxy's layers in bf16 where the device is fast at it,
            "exact" never, "bf16" has the forward pass in bf16 too; see `ddplug.precision`. CMI itself is never reduced.
        chunk: images that go through a proxy together. A number bounds memory by that many images' graph, whatever
            the number of views; "auto" keeps graphs of up to 2 GiB. The gradient is the whole batch's in any case.
        graphs: replay the step from a CUDA graph, on a GPU, where shapes repeat; falls back by itself.
        compile: pass images through torch.compile's version of the proxies. Compiling takes a minute, once.
        schedule: a factor on lambda by round number, e.g. `ddplug.weighting.warmup(100)`.
        views_per_image: estimate CMI on this many further views of every image that passes, newly made each round, so
            that it means something at one image per class and is less noisy elsewhere. 1: on what passes itself.
        view: what makes such a view, (n, c, h, w) to (n, c, h, w), differentiable; by default `ddplug.augment.DSA()`.
        input_space: the views' normalisation; None if it is the pool's.
        setting: (host, data set, images per class), for weight="paper".
        scale: for mixed precision: the factor on the host's loss right now, e.g. `scaler.get_scale`.
        seed: of our own generator, the only one drawn from.
        announce: where the resolved lambda is reported; `print` by default.

    Raises:
        WeightError, InputError, PoolError: arguments that mean nothing, each said in the message.
    """

    def __init__(
        self,
        proxies: object,
        weight: float | str = 1.0,
        *,
        weighting: WeightingName = "relative",
        space: Space = "feature",
        temperature: float = 1.0,
        calibrate: int = 10,
        every: int = 1,
        draw: int = 1,
        classes: int | None = None,
        precision: Precision = "auto",
        chunk: Chunk = "auto",
        graphs: bool = True,
        compile: bool = False,
        schedule: Schedule | None = None,
        views_per_image: int = 1,
        view: Callable[[Tensor], Tensor] | None = None,
        input_space: AnySpace | None = None,
        setting: tuple[str, str, int] | None = None,
        scale: Callable[[], float] | None = None,
        seed: int = 0,
        announce: Callable[[str], object] = print,
    ) -> None:
        self.weight = weight
        self.weighting = make_weighting(weight, weighting, calibrate=calibrate, setting=setting)
        self.pool = ProxyPool.of(proxies)
        self.space = check_space(space)
        self.temperature = check_temperature(temperature)
        self.every = _count("every", every)
        self.proxies_per_round = _count("draw", draw)
        if draw > len(self.pool):
            raise InputError(f"draw must be between 1 and the pool's size, {len(self.pool)}, got {draw}.")
        self.views_per_image, self.view = _count("views_per_image", views_per_image), view
        if view is not None and views_per_image == 1:
            raise InputError("view= makes further views, of which views_per_image=1 asks for none; ask for 2 or more.")
        if views_per_image > 1 and view is None:
            from ddplug.augment import DSA  # kornia, which only those who want more views need

            self.view = DSA(seed=seed)
        self.schedule, self.scale = schedule, scale
        self._to_pool = _ToPool(self.pool, input_space)
        self.announce = announce
        self.classes = None if classes is None else _count("classes", classes)
        self._step: PieceByPiece | Graphs = PieceByPiece(
            self.space, self.temperature, self._to_pool, precision=check_precision(precision),
            chunk=check_chunk(chunk), compile=check_compile(compile),
        )  # fmt: skip
        if graphs and not compile:
            self._step = Graphs(self._step)
        self.generator = torch.Generator().manual_seed(seed)
        # Of another seed: of one, the classes would go with the proxy that is drawn in the same round.
        self.class_generator = torch.Generator().manual_seed(seed + 0xC1A55E5)
        self.history = History()
        self.enabled = True
        self.rounds = 0
        self._pending: list[weakref.ref[Call]] = []
        self._probed = False
        self._reported = 0
        self._warned: set[str] = set()

    @property
    def input_space(self) -> AnySpace | None:
        """The views' normalisation; None if it is the pool's. May be set before the first call."""
        return self._to_pool.space

    @input_space.setter
    def input_space(self, space: AnySpace | None) -> None:
        self._to_pool.space = space

    @property
    def lam(self) -> float | None:
        """Lambda, once it is settled; None while a share is still being measured."""
        return self.weighting.lam

    @property
    def active(self) -> bool:
        """Whether it does anything at all: neither detached nor of weight 0."""
        return self.enabled and self.weight != 0

    def __call__(self, views: Tensor, labels: Tensor) -> Tensor:
        """`views`, unchanged; their gradient will gain that of CMI.

        Args:
            views: (n, c, h, w) floats. Without a gradient, at weight 0 or after `detach()` they come back untouched.
            labels: (n,) class numbers, in any order. Calls of one round are regularised together.

        Raises:
            InputError, ProxyError, SpaceError: views or labels that the pool cannot take, here or in the backward pass.
        """
        if not self.active or not (torch.is_grad_enabled() and views.requires_grad):
            return views
        call = self._checked(views, labels)
        self._make_graphs()
        self._pending = [ref for ref in self._pending if ref() is not None]
        self._pending.append(weakref.ref(call))
        identity: Tensor = Identity.apply(views, call, self._on_backward)
        return identity

    def added(self, images: Tensor, labels: Tensor, grad: Tensor) -> Tensor | None:
        """Lambda * dCMI/dimages, to be added to `grad` by the caller: one round on images that no layer could see.

        Shapes as in a call; `grad` is the host's gradient, (n, c, h, w). None if this round adds nothing.
        """
        if not self.active:
            return None
        call = self._checked(images, labels)
        self._make_graphs()
        self._start_round([call])
        return self._hand_out(call, grad)

    def skip(self) -> None:
        """Leave out the calls whose backward pass is still to come: it passes as it is, and is no round."""
        for ref in self._pending:
            if (call := ref()) is not None:
                call.release()
        self._pending.clear()

    def detach(self) -> None:
        """Switch off for good: calls become no-ops, also those whose backward pass is still to come. Idempotent."""
        self.enabled = False
        self._pending.clear()
        self._step.forget()

    def state_dict(self) -> dict[str, Any]:
        """Everything a continued run needs: what was measured, the generator, the history."""
        return {
            "weighting": self.weighting.state_dict(),
            "generator": self.generator.get_state(),
            "class_generator": self.class_generator.get_state(),
            "view": self.view.state_dict() if isinstance(self.view, torch.nn.Module) else None,
            "rounds": self.rounds,
            "history": self.history.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`.

        Raises `WeightError` if it is of another weight or weighting, `InputError` if it is no such state.
        """
        missing = {"weighting", "generator", "class_generator", "view", "rounds", "history"} - set(state)
        if missing:
            raise InputError(f"this is no state of a Regularizer: it lacks {', '.join(sorted(missing))}.")
        self.weighting.load_state_dict(state["weighting"])
        self.generator.set_state(state["generator"].cpu())
        self.class_generator.set_state(state["class_generator"].cpu())
        if isinstance(self.view, torch.nn.Module) and state["view"] is not None:
            self.view.load_state_dict(state["view"])
        self.rounds = state["rounds"]
        self.history.load_state_dict(state["history"])
        self._reported = self.history.skipped

    def _checked(self, views: Tensor, labels: Tensor) -> Call:
        """A call on views and labels that CMI can be estimated on."""
        labels = torch.as_tensor(labels)
        check_labels(labels, len(views))
        if labels.device.type == "cpu":
            check_not_negative(labels)  # a wrong label is best said where it was given
        self.pool.check(views, self.input_space)
        if not self._probed:
            self.pool.probe(views, self.input_space, self.space)
            self._probed = True
        return Call(views.detach(), labels.detach())

    def _on_backward(self, call: Call, grad: Tensor) -> Tensor | None:
        """What to add to the host's gradient `grad` on this call's views; None for nothing."""
        if not self.enabled:
            return None
        if call.done:
            if call.acted:
                self._warn_once(
                    "walked again",
                    "a graph whose gradient already had CMI's in it was walked a second time; CMI counts once per call "
                    "of the layer, so this time it was not added. If the first walk was for a log only, or the host "
                    "steps repeatedly on one graph, call the layer anew for each gradient that images are to follow.",
                )
            return None
        if call.round is None:
            live = [found for ref in self._pending if (found := ref()) is not None]
            reached = [found for found in live if found is call or found.reached()]
            self._start_round(reached)
            self._pending = [weakref.ref(found) for found in live if found not in reached]
        return self._hand_out(call, grad)

    def _start_round(self, calls: list[Call]) -> None:
        """Estimate CMI on the views of all `calls` together and give each its slice of the gradient."""
        number = self.rounds
        factor = self.every * self._scheduled(number)
        if number % self.every or factor == 0:
            for call in calls:
                call.release()
            self.rounds += 1
            return
        views, labels = gather(calls)
        some = None if self.classes is None or self.weighting.lam is None else self._some_classes(labels)
        if some is None:
            cmi, grad, images = self._estimate(views, labels)
        else:
            cmi, grad, images = self._estimate_from(some, views, labels)
        if isinstance(self.weighting, Relative):
            self.weighting.open_round()
        finite = torch.isfinite(grad).all() & torch.isfinite(cmi)
        round_ = Round(number, factor, len(calls), images, cmi, finite, self.weighting.lam is None)
        for call, part in zip(calls, torch.split(grad, [len(call.views) for call in calls]), strict=True):
            call.round, call.grad = round_, part
        self.rounds += 1

    def _estimate(self, views: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int]:
        """CMI of `views`, its gradient, and how many images it was estimated on."""
        images = len(views) * self.views_per_image
        groups = group(labels.repeat(self.views_per_image), images, views.device)
        if groups.one_image_per_class:
            self._warn_once("one image per class", ONE_IMAGE_PER_CLASS)
        drawn = self.pool.draw(self.proxies_per_round, self.generator)
        augment = self._further_views if self.views_per_image > 1 else None
        self.pool.look_ahead(self.proxies_per_round, self.generator)
        return *cmi_gradient(drawn, views, groups, self._step, augment), images

    def _estimate_from(self, some: _Some, views: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int]:
        """The same from some of the classes' images: zero for the others, and right on average."""
        rows = some.rows.to(views.device)
        cmi, grad, images = self._estimate(views[rows], labels[some.rows])
        scattered = torch.zeros_like(views, dtype=grad.dtype).index_copy(0, rows, grad * some.factor)
        return cmi * some.factor, scattered, images

    def _some_classes(self, labels: Tensor) -> _Some | None:
        """Images of `self.classes` classes, drawn without replacement; None if that is all of them."""
        assert self.classes is not None
        present, of = torch.unique(labels, return_inverse=True)
        if len(present) <= self.classes:
            return None
        drawn = torch.randperm(len(present), generator=self.class_generator)[: self.classes]
        some = torch.isin(of, drawn.to(of.device)).nonzero().flatten()
        # A class's sum of divergences counts 1/n in CMI of all n images, but 1/m in CMI of the m drawn.
        return _Some(some, len(present) / self.classes * len(some) / len(labels))

    def _make_graphs(self) -> None:
        if isinstance(self._step, Graphs):
            self._step.make_wanted()

    def _further_views(self, images: Tensor) -> Tensor:
        assert self.view is not None
        return torch.cat([self.view(images) for _ in range(self.views_per_image)])

    def _scheduled(self, number: int) -> float:
        if self.schedule is None:
            return 1.0
        factor = self.schedule(number)
        if not (isinstance(factor, int | float) and math.isfinite(factor) and factor >= 0):
            raise WeightError(f"the schedule gave {factor!r} for round {number}, expected a finite number >= 0.")
        return float(factor)

    def _hand_out(self, call: Call, grad: Tensor) -> Tensor | None:
        """This call's share of its round, lambda included; closes the round at its last call."""
        round_, delta = call.round, call.grad
        call.release()
        if round_ is None or delta is None:
            return None
        call.acted = True
        scale = 1.0 if self.scale is None else float(self.scale())
        if round_.calibrating and isinstance(self.weighting, Relative):
            self.weighting.observe(_squared_norm(grad) / scale**2, _squared_norm(delta))
        lam = self.weighting.so_far
        extra = (delta * (lam * round_.factor * scale)).to(grad.dtype)
        # Looked at last, when nothing more can overflow, and chosen on the device: no GPU need be waited for.
        round_.finite = round_.finite & torch.isfinite(extra).all()
        extra = torch.where(round_.finite, extra, 0.0)
        round_.open_calls -= 1
        if round_.open_calls == 0:
            self._close(round_, lam)
        return extra

    def _close(self, round_: Round, lam: float) -> None:
        if round_.calibrating and isinstance(self.weighting, Relative):
            self.weighting.close_round()
            if self.weighting.lam is not None:
                self.announce(
                    f"ddplug: lambda = {self.weighting.lam:.6g} from now on (weight {self.weight}, measured over "
                    f"the first {round_.number + 1} rounds; CMI {round_.cmi.item():.4g} nats)"
                )
        read = self.history.append(round_.number, lam * round_.factor, round_.images, round_.cmi, round_.finite)
        if read and self.history.skipped > self._reported:
            self._reported = self.history.skipped
            self._warn_once(
                "not finite",
                f"CMI's gradient was not finite in round {round_.number}; such rounds are left out and counted "
                "(history.skipped). If they keep coming, look at the images' range and input space, at lambda, and at "
                "the proxies.",
            )

    def _warn_once(self, about: str, text: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            warnings.warn(text, DDPlugWarning, stacklevel=2)


@dataclass
class _ToPool:
    """Brings images into the pool's space; apart from the regulariser, which would else be kept alive by its step."""

    pool: ProxyPool
    space: AnySpace | None

    def __call__(self, images: Tensor) -> Tensor:
        return self.pool.prepare(images, self.space)


class _Some(NamedTuple):
    """Images that stand for all, and what their CMI is to be multiplied by for that."""

    rows: Tensor
    factor: float


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a whole number >= 1, got {value!r}.")
    return value


def _squared_norm(gradient: Tensor) -> float:
    return gradient.detach().double().square().sum().item()
