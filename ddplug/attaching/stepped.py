"""Regularisation where an optimizer steps the synthetic images: CMI's gradient is added just before each step.

Any loop has such a place, whatever its loss and its augmentation look like. The host's views do not pass it, so the
regulariser makes views of its own.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakIdKeyDictionary

from ddplug.attaching.held import Held, all_items
from ddplug.attaching.hooks import Arguments, Undo
from ddplug.attaching.images import leaves_in
from ddplug.attaching.labels import Labels, class_numbers, held_labels, spread, stepped_in
from ddplug.attaching.rows import rows_in
from ddplug.core.autograd import compares_losses, stepped_by
from ddplug.core.regularizer import Regularizer
from ddplug.errors import HostError, noted

Shape = tuple[int, ...]
SMALLEST = 6
"""Pixels on a side of the smallest image."""


class Found(NamedTuple):
    """Synthetic images that a trainer holds, and their labels, both by name."""

    images: str
    labels: str | None
    leaves: list[Tensor]


class Stepped:
    """The synthetic images that optimizers step.

    Args:
        leaves: returns the images among the tensors that an optimizer steps now, as hosts replace them.
        labels: returns their labels (n,) now, given the images (n, c, h, w).
        shape: (c, h, w) of one image, for leaves in which images are flat.
        optimizer: the one that steps them; None for any.
        known: optimizers that are known to step them.
    """

    def __init__(
        self,
        leaves: Callable[[Optimizer], list[Tensor]],
        labels: Callable[[Tensor], Any],
        shape: Shape | None = None,
        optimizer: Optimizer | None = None,
        known: Sequence[Optimizer] = (),
    ) -> None:
        self._leaves, self._labels, self._shape, self._optimizer = leaves, labels, shape, optimizer
        self._known = known
        self._added: Any = WeakIdKeyDictionary()
        """The gradient of each leaf after CMI's was added: a reference, its version, its values."""

    def install(self, regularizer: Regularizer) -> Undo:
        """Put the regulariser before the steps of the images; returns what takes it out."""

        def before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
            if not regularizer.active or not self._leaves(optimizer):
                return None
            add = partial(self._add, regularizer, optimizer)
            then = partial(_then, add=add, several=not compares_losses(optimizer))
            # Lightning steps with a closure, always; the gradient is made inside, so it is added to when that returns.
            if callable(closure := kwargs.get("closure")):
                return args, {**kwargs, "closure": then(closure)}
            if len(args) > 1 and callable(args[1]):  # the first is the optimizer itself
                return (args[0], then(args[1]), *args[2:]), kwargs
            add()
            return None

        for known in self._known:
            if hasattr(known, "first_step"):
                raise HostError(
                    f"{type(known).__name__} has a first_step, as SAM has: it perturbs the images along their gradient "
                    "before CMI's part is added. Attach where views pass: attach(trainer, at='NAME')."
                )
        if self._optimizer is None:
            return register_optimizer_step_pre_hook(before_step).remove
        optimizer = self._optimizer
        optimizer.__dict__[_MARK] = True
        hook = optimizer.register_step_pre_hook(before_step)

        def undo() -> None:
            hook.remove()
            optimizer.__dict__.pop(_MARK, None)

        return undo

    def _images(self, leaf: Tensor, shape: Shape | None) -> Tensor:
        """Images (n, c, h, w) of one leaf, which may be flat, or have more dimensions before the channels."""
        shape = tuple(leaf.shape[-3:]) if leaf.ndim > 3 else shape
        if shape is None or leaf.numel() != rows_in(leaf) * math.prod(shape):
            raise HostError(
                f"the leaf {tuple(leaf.shape)} that the optimizer steps holds no images of shape {shape}, as the real "
                "data have. If images are made of it, attach to what makes them: at='NAME' of that method or module."
            )
        return leaf.reshape(-1, *shape)

    @noted
    def _add(self, regularizer: Regularizer, optimizer: Optimizer) -> None:
        """Add CMI's gradient to the host's, which is complete."""
        leaves, shared = self._leaves(optimizer), regularizer.processes.pooled
        if all(leaf.grad is None for leaf in leaves) and not shared:
            return
        shape = self._shape or regularizer.pool.info.shape
        every = torch.cat([self._images(leaf.detach(), shape) for leaf in leaves])
        labels = spread(self._labels(every), len(every), "those of the images")
        grads = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        grad = torch.cat([self._images(each, shape) for each in grads])
        # Where each class has its optimizer, the others' images are not in this round.
        held = {id(each) for each in stepped_by(optimizer) if not self._has(each)}
        if not any(id(leaf) in held for leaf in leaves) and not shared:
            return
        own = torch.cat(
            [torch.full((rows_in(leaf),), id(leaf) in held, dtype=torch.bool, device=leaf.device) for leaf in leaves]
        )
        # Hosts that step one class at a time leave the others' gradient at zero: neither are those.
        rows = own & grad.flatten(1).ne(0).any(1)
        if not rows.any() and not shared:  # else the round may be of other processes' images
            rows = own
        # Fused optimizers are given the scaled gradient, and undo the scaling themselves; maximising ones ascend.
        scale = getattr(optimizer, "grad_scale", None)
        factor = (1.0 if scale is None else float(scale)) * (-1.0 if _maximizes(optimizer, leaves[0]) else 1.0)
        extra = regularizer.added(every[rows], labels.to(rows.device)[rows], grad[rows] / factor)
        if extra is None:
            return
        added = torch.zeros_like(grad)
        added[rows] = extra * factor
        parts = torch.split(added, [rows_in(leaf) for leaf in leaves])
        with torch.no_grad():
            for leaf, part in zip(leaves, parts, strict=True):
                if leaf.grad is not None and id(leaf) in held:
                    leaf.grad += part.reshape(leaf.shape)
                    self._added[leaf] = weakref.ref(leaf.grad), leaf.grad._version, leaf.grad.clone()

    def _has(self, leaf: Tensor) -> bool:
        """Return True if the leaf's gradient has CMI's already, from the step of another optimizer on it."""
        if leaf.grad is None or leaf not in self._added:
            return False
        grad, version, values = self._added[leaf]
        return grad() is leaf.grad and version == leaf.grad._version and torch.equal(values, leaf.grad)


_MARK = "__ddplug_attached__"


def of_optimizer(optimizer: Optimizer, images: Any, labels: Labels | None) -> tuple[str, Stepped]:
    """Return the place before the steps of `optimizer`, and its description.

    Args:
        optimizer: it holds the images.
        images: as given to `attach`; None if these are all that it holds.
        labels: as given to `attach`.

    Raises:
        HostError: it holds no images, or others beside them; labels are missing; it is attached to already.
    """
    held = _images_of(optimizer, images)
    count = rows_in(*held)
    if labels is None or isinstance(labels, str):
        raise HostError(
            f"an optimizer does not know the labels of its {count} images; pass labels= as a tensor of shape "
            f"({count},), in the order of its tensors, or a function from the images to it."
        )
    if getattr(optimizer, _MARK, False):
        raise HostError("ddplug is already attached to this optimizer; detach() that handle first.")
    of = f"images {tuple(held[0].shape)}" if len(held) == 1 else f"{count} images in {len(held)} tensors"
    given = labels if callable(labels) else lambda _: labels
    return f"{type(optimizer).__name__} of {of}", Stepped(
        partial(_images_of, images=images), given, optimizer=optimizer, known=[optimizer]
    )


def of_trainer(host: Held, images: Any, labels: Labels | None, shape: Shape | None) -> tuple[str, Stepped] | None:
    """Return the place before the steps of the images that a trainer holds, and its description.

    Images are leaf tensors with as many rows as there are labels: a tensor, a parameter, a list of leaves, an
    embedding, or what an optimizer holds. None if there are none.

    Args:
        host: the trainer.
        images: as given to `attach`.
        labels: as given to `attach`.
        shape: (c, h, w) of the real images, if known; others are no synthetic images.

    Raises:
        HostError: several tensors may be the images.
    """
    found = _candidates(host, images, labels, shape)
    if not found:
        if images is None or leaves_in(host.get(images) if isinstance(images, str) else images):
            _require_labelled(host, labels, shape)
        return None
    first = found[0]
    if len(found) > 1:
        raise HostError(
            f"several tensors may be the synthetic images: {', '.join(each.images for each in found)}. Say which: "
            f"images='{first.images}', say."
        )
    named = first.labels

    def leaves(optimizer: Optimizer) -> list[Tensor]:
        held = leaves_in(host.get(first.images) if images is None or isinstance(images, str) else images)
        stepped = {id(each) for each in stepped_by(optimizer)}
        return held if any(id(leaf) in stepped for leaf in held) else []

    def given(views: Tensor) -> Any:
        if named is not None:
            return host.get(named)
        return labels(views) if callable(labels) else labels

    ids = [id(leaf) for leaf in first.leaves]
    names = [
        name
        for name, value in all_items(host)
        if not isinstance(value, Optimizer) and [id(leaf) for leaf in leaves_in(value)] == ids
    ]
    shown = next(iter(names), first.images)
    of = " in ".join([*([f"{len(first.leaves)} tensors"] if len(first.leaves) > 1 else []), f"'{shown}'"])
    described = f"{tuple(first.leaves[0].shape)}, labels '{named}'" if named else f"{tuple(first.leaves[0].shape)}"
    known = [value for _, value in all_items(host) if isinstance(value, Optimizer) and leaves(value)]
    return f"the optimizer of {of} {described}", Stepped(leaves, given, shape, known=known)


def _candidates(host: Held, images: Any, labels: Labels | None, shape: Shape | None) -> list[Found]:
    """Return tensors that may be the synthetic images; those that an optimizer of the trainer holds, if any does."""
    items = list(all_items(host))
    named_images = [(images, host.get(images))] if isinstance(images, str) else [("images", images)]
    found: list[Found] = []
    for name, value in items if images is None else named_images:
        leaves = leaves_in(value)
        if not leaves or name.endswith((".weight", ".bias")) or not all(may_be_images(leaf, shape) for leaf in leaves):
            continue
        if any({id(leaf) for leaf in leaves} <= {id(leaf) for leaf in other.leaves} for other in found):
            continue
        count = rows_in(*leaves)
        named, given = (labels, host.get(labels)) if isinstance(labels, str) else (None, labels)
        if labels is None:
            named, given = held_labels(host, count, f"'{name}'") or (None, None)
        if (callable(given) and named is None) or _labels_of(given, count):
            found.append(Found(name, named, leaves))
    stepped = {id(leaf) for _, value in items if isinstance(value, Optimizer) for leaf in leaves_in(value)}
    held = [each for each in found if all(id(leaf) in stepped for leaf in each.leaves)]
    images_like = [each for each in held or found if all(leaf.ndim >= 4 for leaf in each.leaves)]
    return images_like or held or found  # of a matrix and images, as soft labels are beside these, the latter


def _labels_of(given: Any, count: int) -> bool:
    """Return True if labels, as given or as found under a name, are one for each of `count` images."""
    try:
        return given is not None and torch.as_tensor(given).shape == (count,)
    except (TypeError, ValueError, RuntimeError):
        return False


def _require_labelled(host: Held, labels: Labels | None, shape: Shape | None) -> None:
    """Raise `HostError` if the trainer holds what may be the synthetic images, but no labels of these."""
    stepped = stepped_in(all_items(host))
    for name, value in all_items(host):
        leaves = leaves_in(value)
        if not leaves or isinstance(value, Optimizer) or name.endswith((".weight", ".bias")):
            continue
        seen = f"'{name}' of shape {', '.join(map(str, sorted({tuple(leaf.shape) for leaf in leaves})))}"
        if not all(may_be_images(leaf, shape) for leaf in leaves):
            if len(leaves) == 1 and leaves[0].ndim == 2 and id(leaves[0]) in stepped:
                raise HostError(
                    f"an optimizer steps {seen}, which holds no images of shape {shape}, as the real data have. If "
                    "images are made of it, name the method or module that makes them, and their labels: at='NAME', "
                    "labels=..."
                )
            continue
        if shape is None and not all(id(leaf) in stepped for leaf in leaves):
            continue
        count = rows_in(*leaves)
        alike = [held for held, each in all_items(host) if class_numbers(each) is not None and len(each) == count]
        wanted = repr(labels) if isinstance(labels, str) else "labels, targets or y"
        raise HostError(
            f"{seen} may be the {count} synthetic images, but no integers ({count},) called {wanted} were found. Under "
            f"other names: {', '.join(alike) or 'none'}. Pass labels=: such a name, or a tensor ({count},) of the "
            "class of each image, in order."
        )


def may_be_images(leaf: Tensor, shape: Shape | None) -> bool:
    """Return True if `leaf` may hold images of `shape` (c, h, w), as rows of any shape."""
    if not leaf.is_floating_point():
        return False
    if shape is None:
        return leaf.ndim >= 4 or leaf.ndim == 2
    return leaf.shape[-3:] == shape or (leaf.ndim == 2 and leaf.shape[1] == math.prod(shape))


def stepped_images(optimizer: Optimizer, shape: tuple[int, ...] | None) -> list[Tensor]:
    """Return the images that `optimizer` steps: all its tensors but scalars and vectors, if they may be images."""
    large = [each for each in stepped_by(optimizer) if each.ndim > 1]
    return large if all(may_be_images(each, shape) for each in large) else []


def like_images(tensor: Tensor) -> bool:
    """Return True if `tensor` has the shape of images, (n, c, h, w) or with more dimensions before the channels."""
    return tensor.ndim >= 4 and tensor.shape[-3] < 5 and min(tensor.shape[-2:]) >= SMALLEST


def of_script(labels: Any, regularizer: Regularizer) -> Undo:
    """Put a regulariser before the steps of the images that functions of a script make; returns what takes it out.

    Args:
        labels: as given to `attach`, a tensor or a function.
        regularizer: its pool says which shape the images have.
    """
    shape = regularizer.pool.info.shape

    def images(optimizer: Optimizer) -> list[Tensor]:
        found = stepped_images(optimizer, shape)
        return found if shape is not None or all(map(like_images, found)) else []

    return Stepped(images, labels if callable(labels) else lambda _: labels, shape).install(regularizer)


def _images_of(optimizer: Optimizer, images: Any) -> list[Tensor]:
    """Return the synthetic images of `optimizer`; `HostError` if it holds others and `images` is not given."""
    held = stepped_by(optimizer)
    if images is not None and (given := leaves_in(images)):
        return given
    leaves = [p for p in held if p.ndim == 4]
    if not leaves or len({leaf.shape[1:] for leaf in leaves}) > 1 or len(leaves) != len(held) > 1:
        raise HostError(
            f"the optimizer holds {len(leaves)} tensors that could be synthetic images (n, c, h, w), expected one, or "
            f"one per class and no others; its tensors have shapes {[tuple(p.shape) for p in held]}. Attach to the "
            "optimizer of the images, or pass these: images=[...]."
        )
    return leaves


def _then(closure: Callable[[], Any], add: Callable[[], None], *, several: bool) -> Callable[[], Any]:
    """Return the closure of one step, followed by `add`; without `several`, a second call raises `HostError`."""
    evaluations = 0

    def evaluated() -> Any:
        nonlocal evaluations
        evaluations += 1
        if evaluations > 1 and not several:
            raise HostError(
                "this optimizer evaluates its closure several times a step, as LBFGS does to search along a line, and "
                "may compare losses that CMI is no part of. Take one that evaluates it once (SGD, Adam, ...), or add "
                "CMI to the loss: ddplug.CMI."
            )
        result = closure()
        add()
        return result

    return evaluated


def _maximizes(optimizer: Optimizer, leaf: Tensor) -> bool:
    return any(group.get("maximize") for group in optimizer.param_groups if any(p is leaf for p in group["params"]))
