"""Where a regulariser can go in a trainer that is not ours: how such a place is found, and how it is used.

A place is a description and an `install(regularizer)` that returns what undoes it.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from ddplug.cmi import check_labels
from ddplug.errors import AttachError
from ddplug.hooks import Arguments, Undo, callables, intercept, resolve, signature_of
from ddplug.regularizer import Regularizer

AUGMENTATIONS = ("augment", "augmentation", "aug", "diff_augment", "DiffAugment", "diffaug", "augment_fn", "aug_fn")
LOSSES = ("loss", "loss_fn", "compute_loss", "matching_loss", "distillation_loss", "calc_loss", "get_loss")
IMAGES = (
    "synthetic", "syn", "images_syn", "image_syn", "img_syn", "syn_images", "syn_image", "syn_img", "synthetic_images",
    "views", "images", "imgs", "image", "img", "x",
)  # fmt: skip
LABELS = (
    "labels_syn", "label_syn", "lab_syn", "syn_labels", "syn_label", "synthetic_labels", "labels", "label", "targets",
    "target", "y",
)  # fmt: skip

On = Literal["output", "argument"]
Views = Literal["host", "clean"]
Labels = str | Tensor | Callable[[Tensor], Tensor]


Place = tuple[str, Callable[[Regularizer], Undo]]


def find_place(
    trainer: object,
    *,
    at: str | None = None,
    on: On | None = None,
    images: str | None = None,
    labels: Labels | None = None,
    views: Views = "host",
    augment: Callable[[Tensor], Tensor] | None = None,
) -> Place:
    """The place that `attach`'s arguments mean, by name and ready to install; `AttachError` if there is none."""
    if isinstance(trainer, type):
        raise AttachError(
            f"got the class {trainer.__name__}, expected an instance of it or a module: attach once it is made."
        )
    if on is not None and on not in get_args(On):
        raise AttachError(f"unknown on={on!r}, expected 'output' (an augmentation) or 'argument' (a loss).")
    if not (labels is None or isinstance(labels, str) or callable(labels)):
        labels = torch.as_tensor(labels)
    if views not in get_args(Views):
        raise AttachError(f"unknown views {views!r}, expected 'host' (what the host matches on) or 'clean'.")
    if isinstance(trainer, Optimizer):
        if augment is not None:
            raise AttachError("an optimizer has no augmentation to replace; attach to the trainer, at='augment'.")
        return _optimizer_place(trainer, labels)
    if at is not None:
        owner, name = resolve(trainer, at)
        on = on or ("argument" if name in LOSSES or images is not None else "output")
        return _callable_place(trainer, owner, name, on, images, labels, views, augment)
    problems = []
    for name in (*AUGMENTATIONS, *LOSSES):
        if callable(getattr(trainer, name, None)):
            try:
                default: On = "argument" if name in LOSSES else "output"
                return _callable_place(trainer, trainer, name, on or default, images, labels, views, augment)
            except AttachError as error:
                problems.append(f"  {name}: {error}")
    kind = trainer.__name__ if isinstance(trainer, types.ModuleType) else type(trainer).__name__
    found = "\n".join(problems) if problems else f"  none of these; it has: {', '.join(callables(trainer)) or 'none'}"
    raise AttachError(
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
    images: str | None,
    labels: Labels | None,
    views: Views,
    augment: Callable[[Tensor], Tensor] | None,
) -> Place:
    signature = signature_of(getattr(owner, name))
    read_labels = _label_reader(trainer, name, signature, labels)
    where = f"{type(owner).__name__}.{name}"
    if on == "argument" and (augment is not None or views == "clean"):
        raise AttachError(
            f"{name} is attached to as a loss, which has no augmentation to replace and sees no clean images; attach "
            "to the augmentation (at='augment'), or to the optimizer of the images for clean ones."
        )
    if on == "output" and augment is None and views == "host":

        def after(regularizer: Regularizer, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
            return _regularize_result(regularizer, read_labels, args, kwargs, result)

        return where, lambda regularizer: intercept(owner, name, after=partial(after, regularizer))

    # Everything else has to do with the images that go in: as a loss's argument, unaugmented, or to be augmented by us.
    argument = _argument(signature, (images,) if images else IMAGES)
    if argument is None or signature is None:
        wanted = f"an argument '{images}'" if images else f"an image argument ({', '.join(IMAGES)})"
        raise AttachError(f"'{name}{signature or ''}' has not {wanted}; name it with images='...'.")

    def before(regularizer: Regularizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments.get(argument)
        if isinstance(given, Tensor) and given.requires_grad:
            bound.arguments[argument] = regularizer(given, read_labels(args, kwargs, given))
        return bound.args, bound.kwargs

    if augment is None:
        return where, lambda regularizer: intercept(owner, name, before=partial(before, regularizer))

    def instead(regularizer: Regularizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        given: Tensor = signature.bind(*args, **kwargs).arguments[argument]
        if views == "clean" and given.requires_grad:
            given = regularizer(given, read_labels(args, kwargs, given))
        augmented = augment(given)
        if views == "host" and augmented.requires_grad:
            augmented = regularizer(augmented, read_labels(args, kwargs, augmented))
        return augmented

    return where, lambda regularizer: intercept(owner, name, instead=partial(instead, regularizer))


def _regularize_result(
    regularizer: Regularizer,
    read_labels: Callable[[tuple[Any, ...], dict[str, Any], Tensor], Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    result: Any,
) -> Any:
    """The layer on the views that an augmentation returned, alone or as the first of several things."""
    several = isinstance(result, tuple | list) and len(result) > 0
    views = result[0] if several else result
    if not isinstance(views, Tensor):
        raise AttachError(
            f"the augmentation returned {type(result).__name__}, expected the views as a tensor, or first in a tuple."
        )
    if not views.requires_grad:
        return result
    views = regularizer(views, read_labels(args, kwargs, views))
    if not several:
        return views
    rest = (views, *result[1:])
    return type(result)(*rest) if hasattr(result, "_fields") else type(result)(rest)


LabelReader = Callable[[tuple[Any, ...], dict[str, Any], Tensor], Tensor]


def _label_reader(
    trainer: object, name: str, signature: inspect.Signature | None, labels: Labels | None
) -> LabelReader:
    """How to get the labels of the views at each call: from an argument, an attribute, a tensor or a function."""
    if isinstance(labels, Tensor):
        return lambda args, kwargs, views: labels
    if callable(labels):
        return lambda args, kwargs, views: labels(views)
    wanted = (labels,) if labels else LABELS
    argument = _argument(signature, wanted)
    if argument is not None and signature is not None:

        def from_argument(args: tuple[Any, ...], kwargs: dict[str, Any], views: Tensor) -> Tensor:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            value = bound.arguments[argument]
            if value is None:
                raise AttachError(
                    f"'{name}' was called on synthetic images without '{argument}'; pass the labels there, or tell "
                    "attach where they are: labels='ATTRIBUTE', a tensor, or a function of the views."
                )
            return torch.as_tensor(value)

        return from_argument
    attribute = next((a for a in wanted if isinstance(getattr(trainer, a, None), Tensor)), None)
    if attribute is not None:
        return lambda args, kwargs, views: torch.as_tensor(getattr(trainer, attribute))
    raise AttachError(
        f"no labels for '{name}{signature or ''}': looked for {', '.join(wanted)} among its arguments and for a tensor "
        f"of such a name on {type(trainer).__name__}. Pass labels= (a name, a tensor, or a function of the views)."
    )


def _argument(signature: inspect.Signature | None, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if signature is not None and name in signature.parameters), None)


def _optimizer_place(optimizer: Optimizer, labels: Labels | None) -> Place:
    """The clean images: CMI's gradient is added to theirs just before each step."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    leaves = [p for p in held if p.ndim == 4 and p.requires_grad]
    if len(leaves) != 1:
        raise AttachError(
            f"the optimizer holds {len(leaves)} tensors that could be synthetic images (n, c, h, w), expected one; its "
            f"tensors have shapes {[tuple(p.shape) for p in held]}. Attach to the optimizer of the images."
        )
    leaf = leaves[0]
    if not (isinstance(labels, Tensor) or callable(labels)):
        raise AttachError(
            f"an optimizer does not know the labels of its {len(leaf)} images; pass labels= as a tensor of shape "
            f"({len(leaf)},) or a function from the images to it."
        )
    if getattr(optimizer, "__ddplug_attached__", False):
        raise AttachError("ddplug is already attached to this optimizer; detach() that handle first.")

    def before_step(regularizer: Regularizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not regularizer.active:
            return
        if any(callable(given) for given in (*args[1:], kwargs.get("closure"))):
            raise AttachError(
                "this optimizer is stepped with a closure, inside which the gradient is made, so nothing can be added "
                "before the step. Attach to the augmentation or the loss instead: at='...'."
            )
        if leaf.grad is None:
            return
        every = labels if isinstance(labels, Tensor) else labels(leaf.detach())
        check_labels(every, len(leaf))
        # Hosts that step one class at a time leave the others' gradient at zero: those images are not in this round.
        rows = leaf.grad.flatten(1).ne(0).any(1)
        if not rows.any():
            rows = torch.ones_like(rows)
        # Fused optimizers are given the scaled gradient, and undo the scaling themselves; maximising ones ascend.
        scale = getattr(optimizer, "grad_scale", None)
        factor = (1.0 if scale is None else float(scale)) * (-1.0 if _maximizes(optimizer, leaf) else 1.0)
        extra = regularizer.added(leaf.detach()[rows], every.to(rows.device)[rows], leaf.grad[rows] / factor)
        if extra is not None:
            with torch.no_grad():
                leaf.grad[rows] += extra * factor

    def install(regularizer: Regularizer) -> Undo:
        optimizer.__dict__["__ddplug_attached__"] = True
        hook = optimizer.register_step_pre_hook(lambda _, args, kwargs: before_step(regularizer, args, kwargs))

        def undo() -> None:
            hook.remove()
            optimizer.__dict__.pop("__ddplug_attached__", None)

        return undo

    return f"{type(optimizer).__name__} of images {tuple(leaf.shape)}", install


def _maximizes(optimizer: Optimizer, leaf: Tensor) -> bool:
    return any(group.get("maximize") for group in optimizer.param_groups if any(p is leaf for p in group["params"]))
