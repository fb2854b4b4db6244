"""Writes down what becomes of the synthetic images of any script; not a test, but a part of the world of `drive.py`."""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

SMALLEST = 8
"""Pixels on a side of the smallest image; kernels of convolutions have fewer."""


def like_images(tensor: Tensor) -> bool:
    return tensor.ndim >= 4 and tensor.shape[-3] in (1, 3) and min(tensor.shape[-2:]) >= SMALLEST


def cmi_gradient(network: torch.nn.Module, views: Tensor, labels: Tensor, real: Tensor | None = None) -> Tensor:
    """The gradient of CMI on the views, written down from its definition, in double precision.

    `real` are the centroids by class of real images (classes, d), around which it is then.
    """
    views = views.detach().double().requires_grad_()
    log = torch.log_softmax(network(views), dim=1)
    total = torch.zeros((), dtype=torch.float64)
    for label in labels.unique():
        part = log[labels == label]
        centroid = part.exp().mean(0) if real is None else real[label]
        total = total + (part.exp() * (part - centroid.log())).sum()
    (gradient,) = torch.autograd.grad(total / len(views), views)
    return gradient


class Watch:
    """Writes down the first steps of the images, and ends the program after some.

    The images are all tensors of the first optimizer that has nothing but images.

    Args:
        file: where it is written.
        steps: number of steps whose images and gradients are kept.
        stop: number of steps after which the program ends, successfully.
        pool: folder of a pool of one proxy, for CMI's own gradient at the first step; None without.
        apart: True if each call of the layer is a round of its own.
        images: an expression for the images of the set, evaluated in the host's functions at the end; by default what
            the optimizer steps.
        real: a file of the centroids of real images, for CMI around them.
        accumulated: True to keep the gradient as a backward pass left it, which the host may change before the step.
    """

    def __init__(
        self,
        file: str,
        stop: int,
        steps: int = 1,
        pool: str | None = None,
        apart: bool = False,
        images: str = "",
        accumulated: bool = False,
        real: str | None = None,
    ) -> None:
        self._file, self._stop, self._steps, self._apart, self._images = file, stop, steps, apart, images
        self._accumulated = accumulated
        self._real = None if real is None else torch.load(real)
        self._leaves: list[Tensor] = []
        self._left: list[Tensor] = []
        self._kept: list[dict[str, list[Tensor]]] = []
        self._views: list[tuple[Tensor, Tensor]] = []
        self._cmi: list[Tensor] | None = None
        self._labels: Tensor | None = None
        self._count = 0
        self._network: torch.nn.Module | None = None
        self._watch_optimizers()
        if pool is not None:
            self._watch_layer(pool)

    def _watch_optimizers(self) -> None:
        made, watch = Optimizer.__init__, self

        def init(optimizer: Any, *args: Any, **kwargs: Any) -> None:
            made(optimizer, *args, **kwargs)
            held = [each for group in optimizer.param_groups for each in group["params"]]
            if not watch._leaves and all(map(like_images, held)):
                watch._leaves = held
                if watch._accumulated:
                    watch._left = [torch.zeros_like(leaf) for leaf in held]
                    for number, leaf in enumerate(held):
                        leaf.register_post_accumulate_grad_hook(
                            lambda leaf, number=number: watch._left.__setitem__(number, leaf.grad.clone())
                        )

        Optimizer.__init__ = init  # type: ignore[method-assign]
        for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
            if "step" in vars(kind):
                kind.step = self._stepping(kind.step)  # type: ignore[method-assign, assignment]

    def _stepping(self, stepped: Any) -> Any:
        def step(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            first = optimizer.param_groups[0]["params"][0]
            if self._leaves and first is self._leaves[0]:
                if self._count == self._stop:
                    self._save()
                    raise SystemExit(0)
                if self._count < self._steps:
                    images = [leaf.detach().clone() for leaf in self._leaves]
                    grads = self._left or [leaf.grad for leaf in self._leaves]
                    self._kept.append({"images": images, "grad": [each.detach().clone() for each in grads]})
                self._count += 1
                self._views.clear()
            return stepped(optimizer, *args, **kwargs)

        return step

    def _save(self) -> None:
        last = [leaf.detach().clone() for leaf in self._leaves]
        made = self._made() if self._images else torch.cat([each.reshape(-1, *each.shape[-3:]) for each in last])
        seen = {"steps": self._kept, "count": self._count, "last": last, "images": made.detach().cpu()}
        torch.save({**seen, "cmi": self._cmi, "labels": self._labels}, self._file)

    def _made(self) -> Tensor:
        """The images that the host makes of what is stepped."""
        frame = sys._getframe(1)
        while frame.f_back is not None:
            frame = frame.f_back
            try:
                with torch.no_grad():
                    return eval(self._images, {**frame.f_globals, **frame.f_locals})  # type: ignore[no-any-return]
            except NameError:
                continue
        raise AssertionError(f"no function knows {self._images}")

    def _watch_layer(self, pool: str) -> None:
        from ddplug import ProxyPool, Regularizer
        from ddplug.augment import DSA

        (proxy,) = ProxyPool.load(pool).proxies
        network = copy.deepcopy(proxy.network).double().eval()
        called, added, drawn = Regularizer.__call__, Regularizer.added, DSA.draw
        watch, draws = self, []

        def call(regularizer: Any, views: Tensor, labels: Any, **more: Any) -> Tensor:
            if watch._count == 0 and views.requires_grad:
                watch._views.append((views, torch.as_tensor(labels).cpu().clone()))
                watch._look(network)
            return called(regularizer, views, labels, **more)

        def draw(augment: Any, images: Tensor) -> Any:
            draws.append((augment, drawn(augment, images)))
            return draws[-1][1]

        def add(regularizer: Any, images: Tensor, labels: Tensor, grad: Tensor) -> Tensor | None:
            draws.clear()
            result = added(regularizer, images, labels, grad)
            if watch._count == 0 and draws:
                augment, params = draws[-1]
                with torch.enable_grad():
                    leaf = images.clone().requires_grad_()
                    views = augment(leaf, params=params)
                    (mine,) = torch.autograd.grad(
                        views, leaf, cmi_gradient(network, views, labels, watch._real).to(views.dtype)
                    )
                watch._labels, watch._cmi = labels.cpu(), [mine.reshape(watch._leaves[0].shape)]
            return result

        Regularizer.__call__, Regularizer.added, DSA.draw = call, add, draw  # type: ignore[method-assign, assignment]

    def _look(self, network: torch.nn.Module) -> None:
        """CMI's gradient on the images, through the host's own way to the views so far."""
        self._labels = torch.cat([labels for _, labels in self._views])
        group = self._views[-1:] if self._apart else self._views  # earlier graphs are freed where rounds are apart
        if self._cmi is None or not self._apart:
            self._cmi = [torch.zeros_like(leaf) for leaf in self._leaves]
        views, labels = (torch.cat(part) for part in zip(*group, strict=True))
        of_views = cmi_gradient(network, views, labels, self._real)
        parts = of_views.to(group[0][0].dtype).split([len(views) for views, _ in group])
        for (views, _), part in zip(group, parts, strict=True):
            got = torch.autograd.grad(views, self._leaves, part, retain_graph=True, allow_unused=True)
            for total, more in zip(self._cmi, got, strict=True):
                total += 0 if more is None else more
