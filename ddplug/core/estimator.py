"""One estimate of the term and its gradient: the proxies, the classes and the further views that it is made on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddplug.core.real import RealBatch, RealImages
from ddplug.core.step import PieceByPiece, Reals
from ddplug.datasets.spaces import AnySpace
from ddplug.errors import InputError
from ddplug.proxies.pool import ProxyPool
from ddplug.terms.base import Groups, group
from ddplug.utils.digest import short_sha256


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
        pool: the proxies, of which `step.compute.draw` are drawn and averaged over.
        step: computes the term and its gradient under one proxy.
        count: views of every image that the estimate is made on.
        view: function that makes a view; None for the images themselves.
        seed: of our own generators, the only ones drawn from.
        real: the source of real images, for a term that compares with them.
    """

    def __init__(
        self,
        pool: ProxyPool,
        step: PieceByPiece,
        count: int,
        view: Callable[[Tensor], Tensor] | None,
        seed: int,
        real: RealImages | None,
    ) -> None:
        self.pool, self.step, self.count, self.view, self.real = pool, step, count, view, real
        self.term, self.compute, self.processes = step.term, step.compute, step.processes
        self.generator = torch.Generator().manual_seed(seed)
        # Another seed, so that the classes do not depend on the proxy drawn in the same round.
        self.class_generator = torch.Generator().manual_seed(seed + 0xC1A55E5)

    def __call__(
        self,
        views: Tensor,
        labels: Tensor,
        offered: Sequence[RealBatch | None],
        *,
        gradient: bool,
        all_classes: bool,
        measured: bool,
    ) -> Estimate:
        """The term of `views` (n, c, h, w) with class numbers `labels` (n,), and its gradient.

        Args:
            views: the images that the gradient is on.
            labels: their classes.
            offered: the real images that came along with each call.
            gradient: False for the value alone, on all classes.
            all_classes: True for an estimate on all classes, whatever `compute.classes` is.
            measured: True if lambda is measured from the gradient, which is zero where it is rounding errors alone.
        """
        some = self._some_classes(labels) if gradient and not all_classes else None
        if some is None:
            return self._of_all(views, labels, offered, gradient=gradient, measured=measured)
        rows = some.rows.to(views.device)
        found = self._of_all(views[rows], labels[some.rows], offered, gradient=True, measured=measured)
        assert found.grad is not None
        # Zero for the images of other classes, and right on average.
        scattered = torch.zeros_like(views, dtype=found.grad.dtype).index_copy(0, rows, found.grad * some.factor)
        return found._replace(value=found.value * some.factor, grad=scattered, drawn=some.drawn)

    def generators(self) -> dict[str, Tensor]:
        """The states of our own generators, by the name of the draw."""
        return {name: generator.get_state() for name, generator in self._generators().items()}

    def set_generators(self, states: Mapping[str, Tensor]) -> None:
        """Continue the draws of `generators()`."""
        for name, generator in self._generators().items():
            generator.set_state(states[name].cpu())

    def _generators(self) -> dict[str, torch.Generator]:
        own = {"proxies": self.generator, "classes": self.class_generator}
        return own if self.real is None else {**own, "real images": self.real.generator}

    def draws(self) -> dict[str, str]:
        """Return hashes of the next draws, which are the same in all processes of a run."""
        return {
            f"the {name} drawn": short_sha256([state.numpy().tobytes()]) for name, state in self.generators().items()
        }

    def state_dict(self) -> dict[str, Any]:
        """The generators, and the state of `view` if it has one."""
        view = self.view.state_dict() if isinstance(self.view, torch.nn.Module) else None
        return {"generators": self.generators(), "view": view}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the draws of a `state_dict`."""
        self.set_generators(state["generators"])
        if isinstance(self.view, torch.nn.Module) and state["view"] is not None:
            self.view.load_state_dict(state["view"])

    def _of_all(
        self, views: Tensor, labels: Tensor, offered: Sequence[RealBatch | None], *, gradient: bool, measured: bool
    ) -> Estimate:
        every, _ = self.processes.gather(labels.repeat(self.count))
        groups = group(every, len(every), views.device)
        proxies = self.pool.draw(self.compute.draw, self.generator)
        real = self._compared(views, labels, offered)
        # The host may be in autocast during its backward pass. Our passes are not.
        with torch.set_grad_enabled(gradient), torch.autocast(views.device.type, enabled=False):
            # In half precision a pixel's gradient, 1e-8 and less, would underflow before it is multiplied by lambda.
            leaf = (views if views.dtype == torch.float64 else views.float()).detach().requires_grad_(gradient)
            further = self._further_views(leaf) if self.view is not None and len(leaf) else None
            seen = (leaf if further is None else further).detach()
            if not gradient:
                values = [self.step.value(proxy, seen, groups, real) for proxy in proxies]
                return Estimate(torch.stack(values).mean(), None, len(every), groups)
            value, grad = self.step(proxies[0], seen, groups, real, measured=measured)
            for proxy in proxies[1:]:
                another, part = self.step(proxy, seen, groups, real, measured=measured)
                value, grad = value + another, grad + part
            value, grad = value / len(proxies), grad / len(proxies)
            if further is not None:
                (grad,) = torch.autograd.grad(further, leaf, grad)
        return Estimate(value, grad, len(every), groups)

    def _compared(self, views: Tensor, labels: Tensor, offered: Sequence[RealBatch | None]) -> Reals | None:
        """Return the real images for the step, in further views if the synthetic images are."""
        if self.real is None:
            return None
        given = self.real.of_round(offered, labels)
        if given is None:
            return None
        assert given.labels is not None
        if self.term.keeps_real:  # the same in all processes, and needed on the device once for each proxy
            return given.images, group(given.labels, len(given.images), views.device)
        images = given.images.to(views.device, views.dtype if views.dtype == torch.float64 else torch.float32)
        if self.view is not None and len(images):
            with torch.no_grad():
                images = self.view(images)
        every, _ = self.processes.gather(given.labels)
        return images, group(every, len(every), views.device)

    def _some_classes(self, labels: Tensor) -> _Some | None:
        """Return the images of `compute.classes` classes drawn without replacement; None for all classes."""
        if self.compute.classes is None:
            return None
        every, own = self.processes.gather(labels)
        present, of = torch.unique(every, return_inverse=True)
        if len(present) <= self.compute.classes:
            return None
        drawn = torch.randperm(len(present), generator=self.class_generator, device="cpu")[: self.compute.classes]
        of_drawn = torch.isin(of, drawn.to(of.device))
        some = of_drawn[own].nonzero().flatten()
        # A class's sum counts 1/n in the mean over all n images, but 1/m in that over the m drawn.
        part = self.compute.classes / len(present)
        return _Some(some, int(of_drawn.sum()) / len(every) / part, part)

    def _further_views(self, images: Tensor) -> Tensor:
        assert self.view is not None
        views = torch.cat([self.view(images) for _ in range(self.count)])
        expected = self.count * len(images)
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
