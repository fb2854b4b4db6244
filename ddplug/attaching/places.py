"""Places for a regulariser in a foreign trainer: their search and their use.

A place is a description and an `install(regularizer)` that returns what undoes it.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from ddplug.attaching.held import Held
from ddplug.attaching.hooks import Arguments, Undo, callables, intercept, resolve, signature_of
from ddplug.attaching.images import Images, leaves_in
from ddplug.attaching.labels import (
    Labelled,
    LabelReader,
    Labels,
    argument_of,
    label_argument,
    require_labels,
    spread,
)
from ddplug.core.regularizer import Regularizer
from ddplug.errors import DDPlugError, HostError

AUGMENTATIONS = ("augment", "augmentation", "aug", "diff_augment", "DiffAugment", "diffaug", "augment_fn", "aug_fn")
LOSSES = ("loss", "loss_fn", "compute_loss", "matching_loss", "distillation_loss", "calc_loss", "get_loss")
IMAGES = (
    "synthetic", "syn", "images_syn", "image_syn", "img_syn", "syn_images", "syn_image", "syn_img", "synthetic_images",
    "views", "images", "imgs", "image", "img", "x",
)  # fmt: skip
On = Literal["output", "argument"]
Views = Literal["host", "clean"]

ImagesGiven = str | Tensor | Sequence[Tensor] | None
"""What `attach(images=...)` takes: the synthetic images, or the name of an argument or attribute."""

Place = tuple[str, Callable[[Regularizer], Undo]]


def find_place(
    trainer: object,
    *,
    at: str | None = None,
    on: On | None = None,
    images: ImagesGiven = None,
    labels: Labels | None = None,
    views: Views = "host",
    augment: Callable[[Tensor], Tensor] | None = None,
) -> Place:
    """The place that `attach`'s arguments mean, by name and ready to install; `HostError` if there is none."""
    if isinstance(trainer, type):
        raise HostError(
            f"got the class {trainer.__name__}, expected an instance of it or a module: attach once it is made."
        )
    if on is not None and on not in get_args(On):
        raise HostError(f"unknown on={on!r}, expected 'output' (an augmentation) or 'argument' (a loss).")
    if views not in get_args(Views):
        raise HostError(f"unknown views {views!r}, expected 'host' (what the host matches on) or 'clean'.")
    if isinstance(trainer, Optimizer):
        if augment is not None:
            raise HostError("an optimizer has no augmentation to replace; attach to the trainer, at='augment'.")
        return _optimizer_place(trainer, labels)
    if at is not None:
        owner, name = resolve(trainer, at)
        on = on or ("argument" if name in LOSSES or images is not None else "output")
        return _callable_place(trainer, owner, name, on, images, labels, views, augment)
    problems = []
    for name in (*AUGMENTATIONS, *LOSSES):
        if callable(getattr(trainer, name, None)):
            default: On = "argument" if name in LOSSES else "output"
            try:
                place = _callable_place(trainer, trainer, name, on or default, images, labels, views, augment)
            except HostError as error:
                problems.append(f"  {name}: {error}")
                continue
            if name in LOSSES and problems:  # it may be the classifier's own, and never see the images
                problems.append(f"  {name}: not taken, as there is an augmentation; at='{name}' if it sees the images")
                continue
            return place
    kind = trainer.__name__ if isinstance(trainer, types.ModuleType) else type(trainer).__name__
    found = "\n".join(problems) if problems else f"  none of these; it has: {', '.join(callables(trainer)) or 'none'}"
    raise HostError(
        f"no place for the regulariser was found in {kind}. Looked for an augmentation ({', '.join(AUGMENTATIONS)}), "
        f"a loss ({', '.join(LOSSES)}), a torch optimizer, and a host that an adapter knows. Found:\n{found}\n"
        "Say where: attach(..., at='NAME', labels='NAME'), or put the layer into the loop by hand: "
        "views = ddplug.Regularizer(proxies, weight)(views, labels)."
    )


def _callable_place(
    trainer: object,
    owner: object,
    name: str,
    on: On,
    images: ImagesGiven,
    labels: Labels | None,
    views: Views,
    augment: Callable[[Tensor], Tensor] | None,
) -> Place:
    signature = signature_of(getattr(owner, name))
    host = Held(trainer)
    require_labels(signature, labels, host, name)
    where = f"{type(owner).__name__}.{name}"
    parameter = images if isinstance(images, str) and argument_of(signature, (images,)) else None
    given = None if images is None or parameter else partial(_named_images, host, images)
    layer = _AtCalls(LabelReader(Images(host, given), labels, host, where), signature, labels)
    if on == "argument" and (augment is not None or views == "clean"):
        raise HostError(
            f"{name} is attached to as a loss, which has no augmentation to replace and sees no clean images; attach "
            "to the augmentation (at='augment'), or to the optimizer of the images for clean ones."
        )
    if on == "output" and augment is None and views == "host":
        return where, lambda regularizer: intercept(owner, name, after=partial(layer.on_result, regularizer))

    # Everything else has to do with the images that go in: as a loss's argument, unaugmented, or to be augmented by us.
    argument = parameter or argument_of(signature, IMAGES)
    if argument is None or signature is None or (on == "argument" and isinstance(images, str) and not parameter):
        wanted = f"an argument '{images}'" if images else f"an image argument ({', '.join(IMAGES)})"
        raise HostError(f"'{name}{signature or ''}' has not {wanted}; name it with images='...'.")

    def before(regularizer: Regularizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        bound = signature.bind(*args, **kwargs)
        if isinstance(passed := bound.arguments.get(argument), Tensor):
            bound.arguments[argument] = layer.on_images(regularizer, passed, args, kwargs)
        return bound.args, bound.kwargs

    if augment is None:
        return where, lambda regularizer: intercept(owner, name, before=partial(before, regularizer))

    def instead(regularizer: Regularizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        clean: Tensor = signature.bind(*args, **kwargs).arguments[argument]
        if views == "clean":
            return augment(layer.on_images(regularizer, clean, args, kwargs))
        return layer.on_images(regularizer, clean, args, kwargs, augment(clean))

    return where, lambda regularizer: intercept(owner, name, instead=partial(instead, regularizer))


def _named_images(host: Held, images: Any) -> list[Tensor]:
    """The tensors that `images=` names or is."""
    found = host.get(images) if isinstance(images, str) else images
    leaves = leaves_in(found)
    if not leaves:
        raise HostError(
            f"images={images if isinstance(images, str) else type(images).__name__!r} holds no leaf tensors that need "
            "a gradient. Pass the synthetic images, a tensor or a list of tensors, or the name of an attribute."
        )
    return leaves


class _AtCalls:
    """Puts the synthetic images of a callable's calls through the regulariser."""

    def __init__(self, labels: LabelReader, signature: inspect.Signature | None, given: Labels | None) -> None:
        self._labels, self._signature = labels, signature
        self._argument = label_argument(signature, given)

    def on_images(
        self,
        regularizer: Regularizer,
        images: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        views: Tensor | None = None,
    ) -> Tensor:
        """Regularise images that are an argument, or their views, row by row; returns them."""
        views = images if views is None else views
        labelled = self._labelled(regularizer, None, images, views, self._passed(args, kwargs))
        return views if labelled is None else through(regularizer, views, labelled)

    def on_result(self, regularizer: Regularizer, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        """Regularise the views that an augmentation returned, alone or among several things.

        Of several, the first are views, as is every other tensor of their shape that needs a gradient and did not go
        in.
        """
        argument, passed = _argument_images(args, kwargs), self._passed(args, kwargs)
        if isinstance(result, Tensor):
            labelled = self._labelled(regularizer, argument, result, result, passed)
            return result if labelled is None else through(regularizer, result, labelled)
        first = result[0] if isinstance(result, tuple | list) and len(result) > 0 else None
        if not isinstance(first, Tensor):
            raise HostError(
                f"the augmentation returned {type(result).__name__}, expected the views as a tensor, or first in a "
                "tuple."
            )
        if not regularizer.active or not torch.is_grad_enabled():
            return result
        went_in = {id(given) for given in (*args, *kwargs.values())}
        parts = {
            place: part
            for place, part in enumerate(result)
            if isinstance(part, Tensor)
            and part.requires_grad
            and (place == 0 or (part.shape[1:] == first.shape[1:] and id(part) not in went_in))
        }
        if not parts:
            self._labelled(regularizer, argument, first, first, passed)
            return result
        rest = list(result)
        for (place, part), labelled in zip(
            parts.items(), self._of_parts(regularizer, argument, list(parts.values()), passed), strict=True
        ):
            rest[place] = part if labelled is None else through(regularizer, part, labelled)
        return type(result)(*rest) if hasattr(result, "_fields") else type(result)(rest)

    def _of_parts(
        self, regularizer: Regularizer, argument: Tensor | None, parts: list[Tensor], passed: Any
    ) -> Sequence[Labelled | None]:
        """The labels of each of several batches of views: parts of all, else views of the same images."""
        if len(parts) > 1:
            together = torch.cat(parts)
            try:
                labelled = self._labelled(regularizer, argument, together, together, passed)
            except DDPlugError:
                labelled = None
            if labelled is not None and labelled.synthetic is None:
                return [Labelled(each) for each in torch.split(labelled.labels, [len(part) for part in parts])]
        return [self._labelled(regularizer, argument, part, part, passed) for part in parts]

    def _labelled(
        self, regularizer: Regularizer, argument: Tensor | None, images: Tensor, views: Tensor, passed: Any
    ) -> Labelled | None:
        """The labels of views that are regularised; None for real ones, which are noted."""
        if views.requires_grad and torch.is_grad_enabled() and regularizer.active:
            synthetic = argument is None or argument.requires_grad
            labelled = self._labels.read(argument, images, passed) if synthetic else None
            if labelled is not None:
                return labelled
        real = isinstance(passed, Tensor) and passed.ndim == 1 and regularizer.objective.needs_real
        regularizer.passed_by(views, passed if real else None)
        return None

    def _passed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value that the call passes as labels, None without."""
        if self._argument is None or self._signature is None:
            return None
        return self._signature.bind(*args, **kwargs).arguments.get(self._argument)


def through(regularizer: Regularizer, views: Tensor, labelled: Labelled) -> Tensor:
    """`views`, of which the synthetic ones went through the regulariser."""
    labels, index = labelled
    if index is None:
        return regularizer(views, labels)
    return views.index_copy(0, index, regularizer(views.index_select(0, index), labels))


def _argument_images(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The batch of images among arguments, if there is one: that which needs a gradient, or else any."""
    batches = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor) and each.ndim > 2]
    batches = [each for each in batches if each.is_floating_point()]
    needing = [each for each in batches if each.requires_grad]
    if len(needing) > 1:
        return None
    return next(iter(needing or batches), None)


def _optimizer_place(optimizer: Optimizer, labels: Labels | None) -> Place:
    """The clean images: CMI's gradient is added to theirs just before each step."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    leaves = _images_of(optimizer, [p for p in held if p.requires_grad])
    images = sum(len(leaf) for leaf in leaves)
    if labels is None or isinstance(labels, str):
        raise HostError(
            f"an optimizer does not know the labels of its {images} images; pass labels= as a tensor of shape "
            f"({images},), in the order of its tensors, or a function from the images to it."
        )
    if getattr(optimizer, "__ddplug_attached__", False):
        raise HostError("ddplug is already attached to this optimizer; detach() that handle first.")

    def add(regularizer: Regularizer) -> None:
        """Add CMI's gradient to the host's, which is complete."""
        shared = regularizer.processes.pooled
        # Those that it holds now: hosts replace their images, and add groups.
        leaves = _images_of(optimizer, [p for group in optimizer.param_groups for p in group["params"]])
        if all(leaf.grad is None for leaf in leaves) and not shared:
            return
        every = torch.cat([leaf.detach() for leaf in leaves])
        given = spread(labels(every) if callable(labels) else labels, len(every), "those given as labels=")
        grad = torch.cat([torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves])
        # Hosts that step one class at a time leave the others' gradient at zero: those images are not in this round.
        rows = grad.flatten(1).ne(0).any(1)
        if not rows.any() and not shared:  # else the round may be of other processes' images
            rows = torch.ones_like(rows)
        # Fused optimizers are given the scaled gradient, and undo the scaling themselves; maximising ones ascend.
        scale = getattr(optimizer, "grad_scale", None)
        factor = (1.0 if scale is None else float(scale)) * (-1.0 if _maximizes(optimizer, leaves[0]) else 1.0)
        extra = regularizer.added(every[rows], given.to(rows.device)[rows], grad[rows] / factor)
        if extra is not None:
            added = torch.zeros_like(grad)
            added[rows] = extra * factor
            with torch.no_grad():
                for leaf, part in zip(leaves, torch.split(added, [len(leaf) for leaf in leaves]), strict=True):
                    if leaf.grad is not None:
                        leaf.grad += part

    def before_step(regularizer: Regularizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        if not regularizer.active:
            return None
        # Lightning steps with a closure, always; the gradient is made inside, so it is added to when that returns.
        if callable(closure := kwargs.get("closure")):
            return args, {**kwargs, "closure": _then(closure, partial(add, regularizer))}
        if len(args) > 1 and callable(args[1]):  # the first is the optimizer itself
            return (args[0], _then(args[1], partial(add, regularizer)), *args[2:]), kwargs
        add(regularizer)
        return None

    def install(regularizer: Regularizer) -> Undo:
        optimizer.__dict__["__ddplug_attached__"] = True
        hook = optimizer.register_step_pre_hook(lambda _, args, kwargs: before_step(regularizer, args, kwargs))

        def undo() -> None:
            hook.remove()
            optimizer.__dict__.pop("__ddplug_attached__", None)

        return undo

    of = f"images {tuple(leaves[0].shape)}" if len(leaves) == 1 else f"{images} images in {len(leaves)} tensors"
    return f"{type(optimizer).__name__} of {of}", install


def _images_of(optimizer: Optimizer, tensors: list[Tensor]) -> list[Tensor]:
    """Those of `tensors` that are the synthetic images of `optimizer`; `HostError` if it holds others, too."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    leaves = [p for p in tensors if p.ndim == 4]
    if not leaves or len({leaf.shape[1:] for leaf in leaves}) > 1 or len(leaves) != len(held) > 1:
        raise HostError(
            f"the optimizer holds {len(leaves)} tensors that could be synthetic images (n, c, h, w), expected one, or "
            f"one per class and no others; its tensors have shapes {[tuple(p.shape) for p in held]}. Attach to the "
            "optimizer of the images."
        )
    return leaves


def _then(closure: Callable[[], Any], add: Callable[[], None]) -> Callable[[], Any]:
    """The closure of one step, followed by `add`; `HostError` if the optimizer asks for it once more."""
    evaluations = 0

    def evaluated() -> Any:
        nonlocal evaluations
        evaluations += 1
        if evaluations > 1:
            raise HostError(
                "this optimizer evaluates its closure several times a step, as LBFGS does to search along a line, and "
                "would compare losses that CMI is no part of. Take one that evaluates it once (SGD, Adam, ...), or add "
                "CMI to the loss: ddplug.CMI."
            )
        result = closure()
        add()
        return result

    return evaluated


def _maximizes(optimizer: Optimizer, leaf: Tensor) -> bool:
    return any(group.get("maximize") for group in optimizer.param_groups if any(p is leaf for p in group["params"]))
