"""Places for a regulariser in a foreign trainer: their search and their use.

A place is a description and an `install(regularizer)` that returns what undoes it.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from ddplug.attaching.held import Held
from ddplug.attaching.hooks import Arguments, Undo, callables, intercept, refuse_class, resolve, signature_of
from ddplug.attaching.images import Images, leaves_in
from ddplug.attaching.labels import (
    Labelled,
    LabelReader,
    Labels,
    argument_of,
    label_argument,
    one_class_per_call,
    require_labels,
)
from ddplug.attaching.stepped import Shape, of_optimizer, of_script, of_trainer
from ddplug.core.autograd import uncompiled
from ddplug.core.regularizer import Regularizer
from ddplug.errors import DDPlugError, HostError, noted

AUGMENTATIONS = ("DiffAugment", "diff_augment", "diffaug", "augment", "augmentation", "aug", "augment_fn", "aug_fn")
"""Usual names; a script with several augments its real images for training by the others."""
LOSSES = ("loss", "loss_fn", "compute_loss", "matching_loss", "distillation_loss", "calc_loss", "get_loss")
IMAGES = (
    "synthetic", "syn", "images_syn", "image_syn", "img_syn", "syn_images", "syn_image", "syn_img", "synthetic_images",
    "views", "images", "imgs", "image", "img", "x",
)  # fmt: skip
Replacement = Callable[[Tensor], Tensor]
Augment = Literal["host", "none"] | Replacement
"""The views that are regularised: the host's, the images before its augmentation, or those of a replacement of it."""

ImagesGiven = str | Tensor | Sequence[Tensor] | None
"""What `attach(images=...)` takes: the synthetic images, or the name of an argument or attribute."""


class Place(NamedTuple):
    """A place for the regulariser."""

    where: str
    """Its description."""
    install: Callable[[Regularizer], Undo]
    """Puts the regulariser there, and returns what takes it out."""
    own_views: bool = False
    """True if the host's views do not pass it, so that the regulariser makes some."""


def find_place(
    trainer: object,
    *,
    at: str | None = None,
    images: ImagesGiven = None,
    labels: Labels | None = None,
    augment: Augment = "host",
    shape: Shape | None = None,
) -> Place:
    """The place that `attach`'s arguments mean, by name and ready to install; `HostError` if there is none.

    `shape` is (c, h, w) of the real images, if it is known.
    """
    refuse_class(trainer)
    if isinstance(trainer, Optimizer):
        where, stepped = of_optimizer(trainer, images, labels)
        return Place(where, stepped.install, own_views=True)
    if at is not None:
        return _callable_place(trainer, *resolve(trainer, at), images, labels, augment)
    problems = []
    for name in (*AUGMENTATIONS, *LOSSES):
        if callable(getattr(trainer, name, None)):
            try:
                place = _callable_place(trainer, trainer, name, images, labels, augment)
            except HostError as error:
                problems.append(f"  {name}: {error}")
                continue
            if name in LOSSES and problems:  # it may be the classifier's own, and never see the images
                problems.append(f"  {name}: not taken, as there is an augmentation; at='{name}' if it sees the images")
                continue
            return place
    if (stepped_images := of_trainer(Held(trainer), images, labels, shape)) is not None:
        where, stepped = stepped_images
        return Place(where, stepped.install, own_views=True)
    if images is not None and not problems:
        _named_images(Held(trainer), images)  # raises if there are none
    given = labels is not None and not isinstance(labels, str | one_class_per_call)
    if isinstance(trainer, types.ModuleType) and given and images is None and not problems:
        return Place(
            f"the steps of images by functions of {trainer.__name__}", partial(of_script, labels), own_views=True
        )
    kind = trainer.__name__ if isinstance(trainer, types.ModuleType) else type(trainer).__name__
    found = "\n".join(problems) if problems else f"  none of these; it has: {', '.join(callables(trainer)) or 'none'}"
    raise HostError(
        f"no place for the regulariser was found in {kind}. Looked for an augmentation ({', '.join(AUGMENTATIONS)}), "
        f"a loss ({', '.join(LOSSES)}), a torch optimizer, and a host that an adapter knows. Found:\n{found}\n"
        "Say where: attach(..., at='NAME', labels='NAME'), or put the layer into the loop by hand: "
        "views = ddplug.Regularizer(proxies, weight)(views, labels). If functions of a script make the images, "
        "`ddplug run --script FILE` finds them, and an imported script takes labels= as a tensor."
    )


def _callable_place(
    trainer: object, owner: object, name: str, images: ImagesGiven, labels: Labels | None, augment: Augment
) -> Place:
    """The place on what `owner.name` returns, or on its image argument: of a loss, or where `images` names one."""
    signature = signature_of(getattr(owner, name))
    host = Held(trainer)
    require_labels(signature, labels, host, name)
    where = f"{type(owner).__name__}.{name}"
    parameter = images if isinstance(images, str) and argument_of(signature, (images,)) else None
    given = None if images is None or parameter else partial(_named_images, host, images)
    if given is not None:
        given()  # so that its error comes now
    layer = AtCalls(LabelReader(Images(host, given), labels, host, where), signature, labels)
    is_loss = name in LOSSES or (parameter is not None and name not in AUGMENTATIONS)
    if is_loss and augment != "host":
        raise HostError(
            f"{name} is attached to as a loss, which has no augmentation to replace and sees no clean images; attach "
            "to the augmentation (at='augment'), or to the optimizer of the images for clean ones."
        )
    if not is_loss and augment == "host":
        return Place(where, lambda regularizer: intercept(owner, name, after=partial(layer.on_result, regularizer)))

    # Everything else has to do with the images that go in: as a loss's argument, unaugmented, or to be augmented by us.
    argument = parameter or argument_of(signature, IMAGES)
    if argument is None or signature is None:
        raise HostError(
            f"'{name}{signature or ''}' has no image argument ({', '.join(IMAGES)}); name it with images='...'."
        )

    def before(regularizer: Regularizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        bound = signature.bind(*args, **kwargs)
        if isinstance(passed := bound.arguments.get(argument), Tensor):
            bound.arguments[argument] = layer.on_images(regularizer, passed, args, kwargs)
        return bound.args, bound.kwargs

    if isinstance(augment, str):
        return Place(where, lambda regularizer: intercept(owner, name, before=partial(before, regularizer)))

    def instead(regularizer: Regularizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        clean: Tensor = signature.bind(*args, **kwargs).arguments[argument]
        return layer.on_images(regularizer, clean, args, kwargs, augment(clean))

    return Place(where, lambda regularizer: intercept(owner, name, instead=partial(instead, regularizer)))


def _named_images(host: Held, images: Any) -> list[Tensor]:
    """The tensors that `images=` names or is."""
    found = host.get(images) if isinstance(images, str) else images
    leaves = leaves_in(found)
    if not leaves:
        raise HostError(
            f"images={images if isinstance(images, str) else type(images).__name__!r} holds no leaf tensors that need "
            "a gradient. Pass the synthetic images, a tensor or a list of tensors, or the name of an attribute or an "
            "argument."
        )
    return leaves


class AtCalls:
    """Puts the synthetic images of a callable's calls through the regulariser.

    Args:
        labels: reads the labels of the calls.
        signature: of the callable, if it has one.
        given: the labels as given to `attach`.
        layer: takes the views instead of the regulariser itself.
    """

    def __init__(
        self,
        labels: LabelReader,
        signature: inspect.Signature | None,
        given: Labels | None,
        layer: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self._labels, self._signature, self._layer = labels, signature, layer
        self._argument = label_argument(signature, given)

    @uncompiled
    @noted
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
        return self._through(regularizer, views, labelled)

    @uncompiled
    @noted
    def on_result(self, regularizer: Regularizer, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        """Regularise the views that an augmentation returned, alone or among several things.

        Of several, the first images are views, as are all others of their shape that need a gradient and did not go in.
        """
        argument, passed = _argument_images(args, kwargs), self._passed(args, kwargs)
        parts = list(result) if isinstance(result, tuple | list) else [result]
        first = next(filter(_are_images, parts), None)
        if first is None:
            returned = f"a tensor {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            raise HostError(f"the augmentation returned {returned}, expected the views as a tensor, or in a tuple.")
        went_in = {id(given) for given in (*args, *kwargs.values())}
        views = {
            place: part
            for place, part in enumerate(parts)
            if part is first or (_are_images(part) and part.shape[1:] == first.shape[1:] and id(part) not in went_in)
        }
        if len(views) > 1:
            views = {place: part for place, part in views.items() if part.requires_grad} or {parts.index(first): first}
        for (place, part), labelled in zip(
            views.items(), self._of_parts(regularizer, argument, list(views.values()), passed), strict=True
        ):
            parts[place] = self._through(regularizer, part, labelled)
        if not isinstance(result, tuple | list):
            return parts[0]
        return type(result)(*parts) if hasattr(result, "_fields") else type(result)(parts)

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
        real = isinstance(passed, Tensor) and passed.ndim == 1 and regularizer.term.needs_real
        regularizer.passed_by(views, passed if real else None)
        return None

    def _passed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value that the call passes as labels, None without."""
        if self._argument is None or self._signature is None:
            return None
        return self._signature.bind(*args, **kwargs).arguments.get(self._argument)

    def _through(self, regularizer: Regularizer, views: Tensor, labelled: Labelled | None) -> Tensor:
        """`views`, of which the synthetic ones went through the layer."""
        layer = self._layer or regularizer
        if labelled is None:
            return views
        labels, synthetic = labelled
        if synthetic is None:
            return layer(views, labels)
        if regularizer.term.needs_real:
            real = torch.ones(len(views), dtype=torch.bool, device=views.device).index_fill(0, synthetic, False)
            regularizer.real.passed(views[real], None)
        return views.index_copy(0, synthetic, layer(views.index_select(0, synthetic), labels))


def _are_images(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim > 2 and value.is_floating_point()


def _argument_images(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The batch of images among arguments, if there is one: that which needs a gradient, or else any."""
    batches = [each for each in (*args, *kwargs.values()) if _are_images(each)]
    needing = [each for each in batches if each.requires_grad]
    if len(needing) > 1:
        return None
    return next(iter(needing or batches), None)
