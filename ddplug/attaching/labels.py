"""Labels of the views at each call: where a user said they are, and a clear word if they do not fit."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ddplug.errors import AttachError, InputError
from ddplug.terms.base import check_labels

LABELS = (
    "labels_syn", "label_syn", "lab_syn", "syn_labels", "syn_label", "synthetic_labels", "labels", "label", "targets",
    "target", "y",
)  # fmt: skip

Labels = str | int | Tensor | Sequence[Any] | Callable[[Tensor], Tensor | int]
"""What `attach(labels=...)` takes: a name, one class for all, a tensor (n,), or a function of the views."""

LabelReader = Callable[[tuple[Any, ...], dict[str, Any], Tensor], Tensor]
"""From a call's arguments and the views to the labels (n,) of the views."""


class one_class_per_call:  # noqa: N801, a function to its users
    """Labels for a host that takes one class after the other: each call on images that ask for a gradient is the next.

        ddplug.attach(main_script, labels=ddplug.one_class_per_call(10))

    Args:
        classes: how many there are, 0 to classes - 1, or their numbers in the order of the calls.
    """

    def __init__(self, classes: int | Sequence[int]) -> None:
        self.classes = list(range(classes)) if isinstance(classes, int) else [int(c) for c in classes]
        if not self.classes or min(self.classes) < 0:
            raise InputError(f"one class per call needs class numbers >= 0, or how many there are, got {classes!r}.")
        self.calls = 0

    def __call__(self, views: Tensor) -> int:
        """The class of this call."""
        self.calls += 1
        return self.classes[(self.calls - 1) % len(self.classes)]


def label_reader(trainer: object, name: str, signature: inspect.Signature | None, labels: Labels | None) -> LabelReader:
    """Return the reader of the views' labels at each call of `name`; `AttachError` without a source."""
    if isinstance(labels, str) or labels is None:
        return _named(trainer, name, signature, (labels,) if labels else LABELS)
    if callable(labels):
        return fitting(lambda args, kwargs, views: labels(views), "the function given as labels=")
    given = torch.as_tensor(labels)
    return fitting(lambda args, kwargs, views: given, "the tensor given as labels=")


def _named(trainer: object, name: str, signature: inspect.Signature | None, wanted: tuple[str, ...]) -> LabelReader:
    argument = argument_of(signature, wanted)
    if argument is not None and signature is not None:

        def from_argument(args: tuple[Any, ...], kwargs: dict[str, Any], views: Tensor) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            value = bound.arguments[argument]
            if value is None:
                raise AttachError(
                    f"'{name}' was called on synthetic images without '{argument}'; pass the labels there, or tell "
                    "attach where they are: labels='ATTRIBUTE', a tensor, or a function of the views."
                )
            return value

        return fitting(from_argument, f"the argument '{argument}' of '{name}'")
    attribute = next((a for a in wanted if isinstance(getattr(trainer, a, None), Tensor)), None)
    if attribute is not None:
        return fitting(
            lambda args, kwargs, views: getattr(trainer, attribute),
            f"the attribute '{attribute}' of {type(trainer).__name__}",
        )
    raise AttachError(
        f"no labels for '{name}{signature or ''}': looked for {', '.join(wanted)} among its arguments and for a tensor "
        f"of such a name on {type(trainer).__name__}. Pass labels= (a name, a tensor, a function of the views, or "
        "ddplug.one_class_per_call(classes))."
    )


def real_label_reader(
    signature: inspect.Signature | None, labels: Labels | None
) -> Callable[[tuple[Any, ...], dict[str, Any]], Tensor | None]:
    """Return the reader of a real batch's labels at a call: from the argument that has them, if one has.

    Whatever else tells synthetic images' labels tells nothing of real ones; None leaves them to the views that follow.
    """
    wanted = (labels,) if isinstance(labels, str) else LABELS if labels is None else ()
    argument = argument_of(signature, wanted)

    def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        if argument is None or signature is None:
            return None
        found = signature.bind(*args, **kwargs).arguments.get(argument)
        return found if isinstance(found, Tensor) and found.ndim == 1 else None

    return read


def fitting(read: Callable[[tuple[Any, ...], dict[str, Any], Tensor], Any], source: str) -> LabelReader:
    """`read`, with one class number spread over all views, and an error that says where the labels came from."""

    def reader(args: tuple[Any, ...], kwargs: dict[str, Any], views: Tensor) -> Tensor:
        found = torch.as_tensor(read(args, kwargs, views))
        if found.ndim == 0:
            found = found.expand(len(views))
        try:
            check_labels(found, len(views))
        except InputError as error:
            raise InputError(
                f"{error} These labels are {source}. If the host comes with a part of its images at a time, one class "
                "say, pass a function from the views to their labels: labels=lambda views: ..., or "
                "labels=ddplug.one_class_per_call(classes)."
            ) from error
        return found

    return reader


def argument_of(signature: inspect.Signature | None, names: tuple[str, ...]) -> str | None:
    """The first of `names` that is a parameter."""
    return next((name for name in names if signature is not None and name in signature.parameters), None)
