"""Places for a regulariser in a foreign trainer: their search and their use.

A place is a description and an `install(regularizer)` that returns what undoes it.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from ddplug.attaching.hooks import Arguments, Undo, callables, intercept, resolve, signature_of
from ddplug.attaching.labels import LabelReader, Labels, argument_of, label_reader, real_label_reader
from ddplug.core.regularizer import Regularizer
from ddplug.errors import AttachError, InputError

AUGMENTATIONS = ("augment", "augmentation", "aug", "diff_augment", "DiffAugment", "diffaug", "augment_fn", "aug_fn")
LOSSES = ("loss", "loss_fn", "compute_loss", "matching_loss", "distillation_loss", "calc_loss", "get_loss")
IMAGES = (
    "synthetic", "syn", "images_syn", "image_syn", "img_syn", "syn_images", "syn_image", "syn_img", "synthetic_images",
    "views", "images", "imgs", "image", "img", "x",
)  # fmt: skip
On = Literal["output", "argument"]
Views = Literal["host", "clean"]

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
            default: On = "argument" if name in LOSSES else "output"
            try:
                place = _callable_place(trainer, trainer, name, on or default, images, labels, views, augment)
            except AttachError as error:
                problems.append(f"  {name}: {error}")
                continue
            if name in LOSSES and problems:  # it may be the classifier's own, and never see the images
                problems.append(f"  {name}: not taken, as there is an augmentation; at='{name}' if it sees the images")
                continue
            return place
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
    read_labels = label_reader(trainer, name, signature, labels)
    read_real = real_label_reader(signature, labels)
    where = f"{type(owner).__name__}.{name}"
    if on == "argument" and (augment is not None or views == "clean"):
        raise AttachError(
            f"{name} is attached to as a loss, which has no augmentation to replace and sees no clean images; attach "
            "to the augmentation (at='augment'), or to the optimizer of the images for clean ones."
        )
    if on == "output" and augment is None and views == "host":

        def after(regularizer: Regularizer, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
            return _regularize_result(regularizer, read_labels, read_real, args, kwargs, result)

        return where, lambda regularizer: intercept(owner, name, after=partial(after, regularizer))

    # Everything else has to do with the images that go in: as a loss's argument, unaugmented, or to be augmented by us.
    argument = argument_of(signature, (images,) if images else IMAGES)
    if argument is None or signature is None:
        wanted = f"an argument '{images}'" if images else f"an image argument ({', '.join(IMAGES)})"
        raise AttachError(f"'{name}{signature or ''}' has not {wanted}; name it with images='...'.")

    def before(regularizer: Regularizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments.get(argument)
        if isinstance(given, Tensor) and _wanted(regularizer, given, partial(read_real, args, kwargs)):
            bound.arguments[argument] = regularizer(given, read_labels(args, kwargs, given))
        return bound.args, bound.kwargs

    if augment is None:
        return where, lambda regularizer: intercept(owner, name, before=partial(before, regularizer))

    def instead(regularizer: Regularizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        given: Tensor = signature.bind(*args, **kwargs).arguments[argument]
        if views == "clean" and _wanted(regularizer, given, partial(read_real, args, kwargs)):
            given = regularizer(given, read_labels(args, kwargs, given))
        augmented = augment(given)
        if views == "host" and _wanted(regularizer, augmented, partial(read_real, args, kwargs)):
            augmented = regularizer(augmented, read_labels(args, kwargs, augmented))
        return augmented

    return where, lambda regularizer: intercept(owner, name, instead=partial(instead, regularizer))


def _wanted(regularizer: Regularizer, views: Tensor, labels: Callable[[], Tensor | None]) -> bool:
    """Return True if these views are regularised; else they are real, and `labels` are read if needed."""
    if views.requires_grad and torch.is_grad_enabled() and regularizer.active:
        return True
    regularizer.passed_by(views, labels() if regularizer.objective.needs_real else None)
    return False


def _regularize_result(
    regularizer: Regularizer,
    read_labels: LabelReader,
    read_real: Callable[[tuple[Any, ...], dict[str, Any]], Tensor | None],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    result: Any,
) -> Any:
    """The layer on the views that an augmentation returned, alone or among several things.

    Of several, the first are views, as is every other tensor of their shape that needs a gradient and did not go in.
    """
    if isinstance(result, Tensor):
        if not _wanted(regularizer, result, partial(read_real, args, kwargs)):
            return result
        return regularizer(result, read_labels(args, kwargs, result))
    first = result[0] if isinstance(result, tuple | list) and len(result) > 0 else None
    if not isinstance(first, Tensor):
        raise AttachError(
            f"the augmentation returned {type(result).__name__}, expected the views as a tensor, or first in a tuple."
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
        _wanted(regularizer, first, partial(read_real, args, kwargs))
        return result
    rest = list(result)
    for place, labels in zip(parts, _labels_of_parts(read_labels, args, kwargs, list(parts.values())), strict=True):
        rest[place] = regularizer(parts[place], labels)
    return type(result)(*rest) if hasattr(result, "_fields") else type(result)(rest)


def _labels_of_parts(
    read_labels: LabelReader, args: tuple[Any, ...], kwargs: dict[str, Any], parts: list[Tensor]
) -> Sequence[Tensor]:
    """The labels of each of several batches of views: parts of the labels of all, else the same for each."""
    if len(parts) > 1:
        try:
            together = read_labels(args, kwargs, torch.cat([part.detach() for part in parts]))
        except InputError:  # views of the same images
            return [read_labels(args, kwargs, part) for part in parts]
        return torch.split(together, [len(part) for part in parts])
    return [read_labels(args, kwargs, parts[0])]


def _optimizer_place(optimizer: Optimizer, labels: Labels | None) -> Place:
    """The clean images: CMI's gradient is added to theirs just before each step."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    leaves = _images_of(optimizer, [p for p in held if p.requires_grad])
    images = sum(len(leaf) for leaf in leaves)
    if labels is None or isinstance(labels, str):
        raise AttachError(
            f"an optimizer does not know the labels of its {images} images; pass labels= as a tensor of shape "
            f"({images},), in the order of its tensors, or a function from the images to it."
        )
    if getattr(optimizer, "__ddplug_attached__", False):
        raise AttachError("ddplug is already attached to this optimizer; detach() that handle first.")
    read_labels = label_reader(optimizer, "step", None, labels)

    def add(regularizer: Regularizer) -> None:
        """Add CMI's gradient to the host's, which is complete."""
        shared = regularizer.processes.pooled
        # Those that it holds now: hosts replace their images, and add groups.
        leaves = _images_of(optimizer, [p for group in optimizer.param_groups for p in group["params"]])
        if all(leaf.grad is None for leaf in leaves) and not shared:
            return
        every = torch.cat([leaf.detach() for leaf in leaves])
        given = read_labels((), {}, every)
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
    """Those of `tensors` that are the synthetic images of `optimizer`; `AttachError` if it holds others, too."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    leaves = [p for p in tensors if p.ndim == 4]
    if not leaves or len({leaf.shape[1:] for leaf in leaves}) > 1 or len(leaves) != len(held) > 1:
        raise AttachError(
            f"the optimizer holds {len(leaves)} tensors that could be synthetic images (n, c, h, w), expected one, or "
            f"one per class and no others; its tensors have shapes {[tuple(p.shape) for p in held]}. Attach to the "
            "optimizer of the images."
        )
    return leaves


def _then(closure: Callable[[], Any], add: Callable[[], None]) -> Callable[[], Any]:
    """The closure of one step, followed by `add`; `AttachError` if the optimizer asks for it once more."""
    evaluations = 0

    def evaluated() -> Any:
        nonlocal evaluations
        evaluations += 1
        if evaluations > 1:
            raise AttachError(
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
