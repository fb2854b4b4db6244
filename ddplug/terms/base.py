"""Terms of the objective: their interface, their names, and images grouped by class.

A term is a function of the features of a batch and of the classes of its images. To add one, derive from `Term`,
define `__call__`, and register it:

    @register("compactness")
    class Compactness(Term):
        unit = "squared features"

        def __call__(self, features, groups):
            centroids = groups.mean(features)
            return (features - centroids[groups.index]).square().sum(-1).mean()

`ddplug.attach(trainer, term="compactness")` then regularises by it. A term that compares with real images derives from
`ddplug.terms.RealTerm`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoints, entry_points
from typing import Any, TypeVar

import torch
from torch import Tensor

from ddplug.errors import InputError


class Term:
    """A term that is added to a host's loss: a function of features (n, d) and their classes to a scalar.

    Instances are compared by what they compute: two of one name and the same options are one term.
    """

    name: str = ""
    label: str = ""
    """Its name in messages and tables; by default `name`."""
    unit: str = ""
    """Of its values, for tables and axes."""
    min_per_class: int = 1
    """Least number of images of a class for which the term is not constant."""
    additive_over_classes: bool = False
    """True for a mean over images of something that depends on the image's own class only, so that some classes can
    stand for all (`classes=m`)."""
    needs_real: bool = False
    """True if it compares with real images; see `ddplug.terms.real`."""
    contrasts: bool = False
    """True if it also needs real images of other classes than those of the round."""
    keeps_real: bool = False
    """True if these are one fixed sample of the data, so that being bound to it once for each proxy is enough."""
    representation: str | None = None
    """The one representation that it is defined on; None if any will do."""

    def __call__(self, features: Tensor, groups: Groups) -> Tensor:
        """The term of `features` (n, d), in float32 or float64, a scalar; differentiable twice."""
        raise NotImplementedError(f"the term '{self.name or type(self).__name__}' has no __call__(features, groups).")

    def value_and_grad(self, features: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
        """The term and its derivative (n, d); by autograd, unless a term knows its closed form."""
        with torch.enable_grad():
            leaf = features.detach().requires_grad_()
            value = self(leaf, groups)
            (grad,) = torch.autograd.grad(value, leaf)
        return value.detach(), grad

    def settings(self) -> dict[str, Any]:
        """Its options by name, which a measured lambda depends on: the arguments that it keeps under their names."""
        return {name: vars(self)[name] for name in inspect.signature(type(self)).parameters if name in vars(self)}

    @property
    def too_few(self) -> str:
        """The warning if every class has fewer than `min_per_class` images."""
        few = "exactly one image" if self.min_per_class == 2 else f"fewer than {self.min_per_class} images"
        return (
            f"every class has {few} here. {self.label} compares the images of a class: that part of it is 0, and so is "
            "its gradient. Use more images per class; or several views of every image (views=4, --views-per-image 4); "
            "or CMI around the centroids of real images (term='cmi_real', data=; --term cmi_real --data)."
        )

    def against(self, real: Any) -> Term:
        """The term bound to real images, if it compares with them; see `ddplug.terms.real`."""
        return self

    def describe(self, value: float) -> str:
        """Its value in words, for messages."""
        return f"{self.label} {value:.4g} {self.unit}"


AnyTerm = TypeVar("AnyTerm", bound=type[Term])

_TERMS: dict[str, type[Term]] = {}


def register(name: str) -> Callable[[AnyTerm], AnyTerm]:
    """Class decorator: make a term known under `name`, a word of letters, digits and underscores.

    Raises `InputError` for an invalid name, or one that another term has.
    """
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        raise InputError(f"a term's name is a word of letters, digits and underscores, got {name!r}.")

    def add(term: AnyTerm) -> AnyTerm:
        if _TERMS.get(name, term) is not term:
            raise InputError(f"there already is a term named '{name}'; choose another name.")
        term.name, term.label = name, term.label or name
        _TERMS[name] = term
        return term

    return add


def terms() -> list[str]:
    """The names of all terms, those of installed packages among them."""
    return sorted({*_TERMS, *_of_packages().names})


def _of_packages() -> EntryPoints:
    """Return the terms of installed packages, from the group "ddplug.terms"."""
    return entry_points(group="ddplug.terms")


def single(name: object, **options: Any) -> Term:
    """The term of that one name, with those of `options` that it takes; `InputError` for an unknown name."""
    if isinstance(name, str) and name not in _TERMS:
        for announced in _of_packages().select(name=name):
            register(name)(announced.load())
    if not isinstance(name, str) or name not in _TERMS:
        raise InputError(
            f"unknown term {name!r}, expected one of {', '.join(map(repr, terms()))}, a sum such as "
            "'cmi+0.3*proxy_ce', or an instance of a class derived from ddplug.terms.Term."
        )
    known = inspect.signature(_TERMS[name]).parameters
    return _TERMS[name](**{option: value for option, value in options.items() if option in known})


@dataclass(frozen=True)
class Groups:
    """Images grouped by class, in a form that needs no loop over classes."""

    classes: Tensor
    """(c,) the labels present, ascending."""
    index: Tensor
    """(n,) int64, the row of `classes` that each image belongs to."""
    counts: Tensor
    """(c,) int64, images per class."""

    @property
    def one_image_per_class(self) -> bool:
        """True if no class has a second image."""
        return len(self.classes) == len(self.index)

    def fewer_than(self, images: int) -> bool:
        """Return True if every class has fewer images; waits for the device if `images` is above 2."""
        if images <= 2:
            return images == 2 and self.one_image_per_class
        return bool((self.counts < images).all())

    def sum(self, values: Tensor) -> Tensor:
        """Sum of the rows of `values`, (n, ...), over each class: (c, ...)."""
        return values.new_zeros(len(self.counts), *values.shape[1:]).index_add_(0, self.index, values)

    def mean(self, values: Tensor) -> Tensor:
        """Mean of the rows of `values`, (n, d), over each class: (c, d)."""
        return self.sum(values) / self.counts.to(values)[:, None]

    def by_class(self, values: Tensor, fill: float = 0.0) -> tuple[Tensor, Tensor]:
        """The rows of `values`, (n, d), as a table (c, k, d), k the largest class's size, and which are there, (c, k).

        Smaller classes are filled up with `fill`. Waits for the device.
        """
        order = self.index.argsort(stable=True)
        of = self.index[order]
        place = torch.arange(len(order), device=of.device) - (self.counts.cumsum(0) - self.counts)[of]
        there = torch.zeros(len(self.counts), int(self.counts.max()), dtype=torch.bool, device=of.device)
        there[of, place] = True
        table = values.new_full((*there.shape, *values.shape[1:]), fill).index_put((of, place), values[order])
        return table, there


def transformed() -> bool:
    """Return True within torch.func's transforms or forward-mode differentiation."""
    return bool(torch._C._are_functorch_transforms_active()) or torch.autograd.forward_ad._current_level >= 0


def batched(tensor: Tensor) -> bool:
    """Return True if torch.vmap runs over `tensor`."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        if torch._C._functorch.is_batchedtensor(tensor):
            return True
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return False


def group(labels: Tensor, rows: int, device: torch.device | str) -> Groups:
    """Group `rows` images by `labels`, (rows,) of any integer dtype; raises `InputError` for invalid labels.

    Classes may have any sizes, any names (non-negative integers) and any order.
    """
    labels = labels if isinstance(labels, Tensor) else torch.as_tensor(labels, device="cpu")
    check_labels(labels, rows)
    # Where the labels are: on a GPU the number of classes is waited for, which labels on the CPU spare us.
    classes, index, counts = torch.unique(labels.to(torch.int64), return_inverse=True, return_counts=True)
    check_not_negative(classes[:1])
    return Groups(*(part.to(device, non_blocking=True) for part in (classes, index, counts)))


def check_not_negative(labels: Tensor) -> None:
    """Raise `InputError` if one of `labels` is below 0; waits for the device they are on."""
    if (labels < 0).any():
        raise InputError(
            f"labels must be class numbers >= 0, got {int(labels.min())}. Images without a class (often marked -1) "
            "have no centroid: leave them out."
        )


def check_labels(labels: Tensor, rows: int) -> None:
    """Raise `InputError` unless `labels` is a (rows,) tensor of an integer dtype and rows > 0; reads no value."""
    if rows == 0:
        raise InputError("got an empty batch (0 images), expected at least one image: nothing has no value.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        hint = "labels.argmax(1)" if labels.ndim == 2 and labels.shape[1] > 1 else "labels.flatten().long()"
        raise InputError(
            f"labels must be integers (one class number per image), got {labels.dtype} of shape "
            f"{tuple(labels.shape)}. If they are soft or learned, pass the class each image was made for, e.g. {hint}."
        )
    if labels.ndim != 1 or len(labels) != rows:
        raise InputError(
            f"got labels of shape {tuple(labels.shape)} for {rows} images, expected shape ({rows},): "
            "one label per image (per view, if every image has several)."
        )
