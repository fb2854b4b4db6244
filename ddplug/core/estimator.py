"""One estimate of the term and its gradient: the proxies, the classes and the further views that it is made on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddplug.core.real import RealBatch, RealImages
from ddplug.core.step import PieceByPiece, Reals, cmi_gradient
from ddplug.datasets.spaces import AnySpace
from ddplug.errors import InputError
from ddplug.proxies.pool import ProxyPool
from ddplug.terms.base import Groups, Term, group
from ddplug.utils.digest import short_sha256
from ddplug.utils.processes import SEPARATE, Processes


class Estimate(NamedTuple):
    """The result of an estimate."""

    value: Tensor
    """The term, a scalar in its own unit."""
    grad: Tensor | None
    """Its derivative on the views, (n, c, h, w), in fp32 or better; None for an estimate of the value alone."""
    images: int
    """The number of views, over all processes that have views of their own."""
    groups: Groups
    """The classes of those views."""
    drawn: float = 1.0
    """The part of the classes that the estimate was made on."""


class Estimator:
    """Estimates a term under proxies drawn from a pool.

    Args:
        pool: the proxies.
        step: computes the term and its gradient under one proxy.
        draw: proxies per estimate, averaged over.
        classes: classes per estimate, drawn anew each time, scaled so that the mean over all draws is the term of
            all of them; None for all.
        views_per_image: views of every image that the estimate is made on.
        view: function that makes such a view; None for the images themselves.
        seed: of our own generators, the only ones drawn from.
        processes: the processes whose images the term is computed on.
        real: the source of real images, for a term that compares with them.
    """

    def __init__(
        self,
        pool: ProxyPool,
        step: PieceByPiece,
        *,
        draw: int,
        classes: int | None,
        views_per_image: int,
        view: Callable[[Tensor], Tensor] | None,
        seed: int,
        processes: Processes = SEPARATE,
        real: RealImages | None = None,
    ) -> None:
        self.processes, self.real = processes, real
        self.pool, self.step, self.draw, self.classes = pool, step, draw, classes
        self.views_per_image, self.view = views_per_image, view
        self.generator = torch.Generator().manual_seed(seed)
        # Another seed, so that the classes do not depend on the proxy drawn in the same round.
        self.class_generator = torch.Generator().manual_seed(seed + 0xC1A55E5)

    @property
    def objective(self) -> Term:
        """The term that is estimated."""
        return self.step.objective

    def __call__(
        self,
        views: Tensor,
        labels: Tensor,
        *,
        all_classes: bool,
        measured: bool = False,
        offered: Sequence[RealBatch | None] = (),
    ) -> Estimate:
        """The term of `views` (n, c, h, w) with class numbers `labels` (n,), and its gradient.

        Args:
            views: the images that the gradient is on.
            labels: their classes.
            all_classes: True for an estimate on all classes, whatever `classes` is.
            measured: True if lambda is measured from the gradient; see `cmi_gradient`.
            offered: the real images that came along with each call.
        """
        some = None if self.classes is None or all_classes else self._some_classes(labels)
        if some is None:
            return self._of_all(views, labels, offered, measured=measured)
        rows = some.rows.to(views.device)
        found = self._of_all(views[rows], labels[some.rows], offered, measured=measured)
        assert found.grad is not None
        # Zero for the images of other classes, and right on average.
        scattered = torch.zeros_like(views, dtype=found.grad.dtype).index_copy(0, rows, found.grad * some.factor)
        return found._replace(value=found.value * some.factor, grad=scattered, drawn=some.drawn)

    def value(self, views: Tensor, labels: Tensor, offered: Sequence[RealBatch | None] = ()) -> Estimate:
        """The term of `views` without its gradient, which costs a forward pass only."""
        groups, images = self._groups(views, labels)
        with torch.no_grad(), torch.autocast(views.device.type, enabled=False):
            wide = views if views.dtype == torch.float64 else views.float()
            seen = self._further_views(wide) if self.view is not None and len(wide) else wide
            compared = self._compared(wide, labels, offered)
            values = [self.step.value(proxy, seen, groups, compared) for proxy in self._drawn()]
        return Estimate(torch.stack(values).mean(), None, images, groups)

    def generators(self) -> tuple[Tensor, ...]:
        """The states of our own generators."""
        return tuple(generator.get_state() for generator in self._generators().values())

    def set_generators(self, states: tuple[Tensor, ...]) -> None:
        """Continue the draws of `generators()`."""
        for generator, state in zip(self._generators().values(), states, strict=True):
            generator.set_state(state)

    def _generators(self) -> dict[str, torch.Generator]:
        """Return the generators by the name of the draw."""
        own = {"proxies": self.generator, "classes": self.class_generator}
        return own if self.real is None else {**own, "real images": self.real.generator}

    def draws(self) -> dict[str, str]:
        """Return hashes of the next draws, which are the same in all processes of a run."""
        found = self._generators().items()
        return {f"the {what} drawn": short_sha256([each.get_state().numpy().tobytes()]) for what, each in found}

    def state_dict(self) -> dict[str, Any]:
        """The generators, and the state of `view` if it has one."""
        return {
            "generator": self.generator.get_state(),
            "class_generator": self.class_generator.get_state(),
            **({} if self.real is None else {"real_generator": self.real.generator.get_state()}),
            "view": self.view.state_dict() if isinstance(self.view, torch.nn.Module) else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the draws of a `state_dict`."""
        self.generator.set_state(state["generator"].cpu())
        self.class_generator.set_state(state["class_generator"].cpu())
        if self.real is not None and "real_generator" in state:
            self.real.generator.set_state(state["real_generator"].cpu())
        if isinstance(self.view, torch.nn.Module) and state["view"] is not None:
            self.view.load_state_dict(state["view"])

    def _of_all(
        self, views: Tensor, labels: Tensor, offered: Sequence[RealBatch | None], *, measured: bool
    ) -> Estimate:
        groups, images = self._groups(views, labels)
        drawn = self._drawn()
        compared = self._compared(views, labels, offered)
        augment = self._further_views if self.view is not None and len(views) else None
        found = cmi_gradient(drawn, views, groups, self.step, augment, compared, measured=measured)
        return Estimate(*found, images, groups)

    def _groups(self, views: Tensor, labels: Tensor) -> tuple[Groups, int]:
        every, _ = self.processes.gather(labels.repeat(self.views_per_image))
        return group(every, len(every), views.device), len(every)

    def _compared(self, views: Tensor, labels: Tensor, offered: Sequence[RealBatch | None]) -> Reals | None:
        """Return the real images for the step, in further views if the synthetic images are."""
        if self.real is None:
            return None
        given = self.real.of_round(offered, labels)
        assert given.labels is not None
        if self.objective.keeps_real:  # the same in all processes, and needed on the device once for each proxy
            return given.images, group(given.labels, len(given.images), views.device)
        images = given.images.to(views.device, views.dtype if views.dtype == torch.float64 else torch.float32)
        if self.view is not None and len(images):
            with torch.no_grad():
                images = self.view(images)
        every, _ = self.processes.gather(given.labels)
        return images, group(every, len(every), views.device)

    def _drawn(self) -> list[Any]:
        return self.pool.draw(self.draw, self.generator)

    def _some_classes(self, labels: Tensor) -> _Some | None:
        """Return the images of `self.classes` classes drawn without replacement; None if these are all classes."""
        assert self.classes is not None
        every, own = self.processes.gather(labels)
        present, of = torch.unique(every, return_inverse=True)
        if len(present) <= self.classes:
            return None
        drawn = torch.randperm(len(present), generator=self.class_generator, device="cpu")[: self.classes]
        of_drawn = torch.isin(of, drawn.to(of.device))
        some = of_drawn[own].nonzero().flatten()
        # A class's sum counts 1/n in the mean over all n images, but 1/m in that over the m drawn.
        part = self.classes / len(present)
        return _Some(some, int(of_drawn.sum()) / len(every) / part, part)

    def _further_views(self, images: Tensor) -> Tensor:
        assert self.view is not None
        views = torch.cat([self.view(images) for _ in range(self.views_per_image)])
        expected = self.views_per_image * len(images)
        if len(views) != expected or views.requires_grad < images.requires_grad:
            raise InputError(
                f"the further views of {len(images)} images are {len(views)}, expected {expected} that depend "
                "differentiably on the images; look at make= of ddplug.Views."
            )
        return views


@dataclass
class ToPool:
    """Converts images to the pool's space; a class of its own, so that the step does not keep the regulariser alive."""

    pool: ProxyPool
    space: AnySpace | None

    def __call__(self, images: Tensor) -> Tensor:
        """Return `images` (n, c, h, w) in the pool's space."""
        return self.pool.prepare(images, self.space)

    def of_views(self) -> AnySpace | None:
        """Return the space of the views, which is the pool's unless another was given."""
        return self.space or self.pool.info.space


class _Some(NamedTuple):
    """The images of the drawn classes."""

    rows: Tensor
    factor: float
    """The factor that makes their term an unbiased estimate of the whole term."""
    drawn: float
    """The part of the classes that was drawn."""
