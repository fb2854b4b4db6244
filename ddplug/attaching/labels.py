"""Labels of the views at each call: they belong to the rows of the synthetic images that the views show."""

from __future__ import annotations

import inspect
import re
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from ddplug.attaching.held import Holder, all_items
from ddplug.attaching.images import Images, Shown, leaves_in
from ddplug.attaching.probes import labels_by_probes
from ddplug.attaching.rows import rows_in
from ddplug.core.autograd import stepped_by
from ddplug.errors import DDPlugError, HostError, InputError
from ddplug.terms.base import check_labels

LABELS = (
    "labels_syn", "label_syn", "lab_syn", "syn_labels", "syn_label", "synthetic_labels", "labels", "label", "targets",
    "target", "y",
)  # fmt: skip
LIKE_LABELS = re.compile(r"(^|_)(y|labs?|labels?|targets?|cls|class(es)?)(_|\d|$)", re.IGNORECASE)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

Labels = str | int | Tensor | Sequence[Any] | Callable[[Tensor], Tensor | int]
"""What `attach(labels=...)` takes: a name, one class for all, a tensor (n,), or a function of the views."""


class Labelled(NamedTuple):
    """The synthetic views of a call and their labels."""

    labels: Tensor
    synthetic: Tensor | None = None
    """Numbers of the views that are synthetic; None if all are."""


class one_class_per_call:  # noqa: N801, a function to its users
    """Labels for a host that takes one class after the other: each call on images that need a gradient is the next.

        ddplug.attach(main_script, labels=ddplug.one_class_per_call(10))

    Rows of the images keep the class of their first call, so that more calls on them, for a log, change nothing.

    Args:
        classes: how many there are, 0 to classes - 1, or their numbers in the order of the calls.
    """

    def __init__(self, classes: int | Sequence[int]) -> None:
        self.classes = list(range(classes)) if isinstance(classes, int) else [int(c) for c in classes]
        if not self.classes or min(self.classes) < 0:
            raise InputError(f"one class per call needs class numbers >= 0, or how many there are, got {classes!r}.")
        self.calls = 0
        """Calls that were a class's turn."""
        self._next = 0
        self._of_rows: Tensor | None = None
        self._complete = False

    def __call__(self, views: Tensor) -> int:
        """The class of this call."""
        self.calls += 1
        self._next += 1
        return self.classes[(self._next - 1) % len(self.classes)]

    def of(self, rows: Tensor, count: int, views: Tensor) -> Tensor | None:
        """Classes of all rows of the images after a call on `views`; None if `rows`, its own, have several.

        Rows that were in no call yet have class -1.
        """
        if self._of_rows is None or len(self._of_rows) != count:
            self._of_rows, self._complete = torch.full((count,), -1, device=rows.device), False
        self._of_rows = self._of_rows.to(rows.device)
        if not self._complete:
            known = self._of_rows[rows]
            known = known[known >= 0]
            if len(known) and bool((known != known[0]).any()):
                return self._of_rows if len(known) == len(rows) else None
            class_ = int(known[0]) if len(known) else self(views)
            if len(known) and self.calls >= len(
                self.classes
            ):  # after the first passage it may be the turn of this class
                self._next = self.classes.index(class_) + 1
            self._of_rows[rows] = class_
            self._complete = bool((self._of_rows >= 0).all())
        return self._of_rows

    def state_dict(self) -> dict[str, Any]:
        """Number of the calls and classes of the rows."""
        return {"calls": self.calls, "next": self._next, "of_rows": self._of_rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.calls, self._next, self._of_rows = int(state["calls"]), int(state["next"]), state["of_rows"]
        self._complete = False


ADVICE = (
    "Pass labels=: a tensor (n,) of one class for each image or for each view, the name of an attribute or argument, a "
    "function from the views to their labels, or ddplug.one_class_per_call(classes)."
)


class LabelReader:
    """Reads the labels of the views of each call.

    Args:
        images: the host's synthetic images.
        labels: as given to `attach`.
        host: what the host holds, by name.
        where: name of the place, for messages.
        advice: the way to name labels, for messages.
    """

    def __init__(self, images: Images, labels: Labels | None, host: Holder, where: str, advice: str = ADVICE) -> None:
        self._images, self._host, self._where, self._advice = images, host, where, advice
        self._given: Any = labels
        self._found: str | None = None
        self._compared: set[Any] = set()
        self._by_views = False
        """True once the name given had another length than the images: it is of the views."""
        self._by_images: tuple[weakref.ref[Tensor], Tensor] | None = None
        """The images and their labels at the first call that had as many views as there are images."""
        self.source = ""
        """Source of the last call's labels, for messages."""

    def read(self, argument: Tensor | None, views: Tensor, passed: Any) -> Labelled | None:
        """Return the labels of `views`, or None if these are real images.

        Args:
            argument: the images that the views are made of, None if unknown.
            views: (n, c, h, w).
            passed: value of the call's label argument, None without.
        """
        given = self._given
        if isinstance(given, str) and passed is not None:
            return self._of_views(passed, views, None, f"the argument '{given}'")
        if callable(given) and not isinstance(given, one_class_per_call):
            return self._of_views(given(views), views, None, "the function given as labels")
        shown = self._images.shown(argument, views)
        if shown is None:
            return None
        if isinstance(given, one_class_per_call):
            self.source = f"the number of the call, of {len(given.classes)}"
            if shown.rows is None:
                return self._of_views(given(views), views, shown, self.source)
            rows = shown.rows if shown.synthetic is None else shown.rows[shown.synthetic]
            if (by_row := given.of(rows, shown.count, views)) is None:
                raise HostError(
                    f"one_class_per_call: a call of {self._where} came on images of several classes, of which some "
                    f"were in no call before. {self._advice}"
                )
            return self._of_rows(by_row, shown, views)
        if given is None:
            return self._unnamed(shown, views, passed)
        source = f"`{given}`" if isinstance(given, str) else "the tensor given as labels"
        found = self._host.get(given) if isinstance(given, str) else given
        if found is None:
            raise HostError(f"{self._where} was called on synthetic images without '{given}'. {self._advice}")
        found = _tensor(found, source)
        if not self._by_views and found.ndim == 1 and len(found) == shown.count and shown.of_rows:
            if isinstance(given, str) and len(views) == shown.count:
                self._require_constant(found, shown.leaves[0], source)
            self.source = f"{source}, one for each image"
            return self._of_rows(spread(found, shown.count, source, self._advice), shown, views)
        self._by_views |= found.ndim == 1 and len(found) != shown.count
        return self._of_views(found, views, shown, source)

    def _require_constant(self, found: Tensor, leaf: Tensor, source: str) -> None:
        """Raise `HostError` if labels of the images, which may be of as many views, differ from an earlier call's."""
        first, self._by_images = self._by_images, (weakref.ref(leaf), found.detach().clone())
        if first is None or first[0]() is not leaf or ("changed", id(leaf)) in self._compared:
            return
        self._compared.add(("changed", id(leaf)))  # once, as it waits for the device
        if not torch.equal(first[1].cpu(), found.cpu()):
            raise HostError(
                f"{source} has {len(found)} labels at {self._where}, one for each image, but they are others than at "
                "the call before: they may be of the views, in the order of a batch of all images. Name the labels of "
                "the images, in the order of the images."
            )

    def _of_views(self, found: Any, views: Tensor, shown: Shown | None, source: str) -> Labelled:
        self.source = source
        synthetic = None if shown is None else shown.synthetic
        count = len(views) if synthetic is None else len(synthetic)
        return Labelled(spread(found, count, source, self._advice), synthetic)

    def _unnamed(self, shown: Shown, views: Tensor, passed: Any) -> Labelled:
        """Labels that the user did not name: of the rows, or else those that were passed to the call."""
        fits = isinstance(passed, Tensor) and passed.shape == (len(views),) and passed.dtype in INTEGERS
        found = self._of_host(shown.count) if shown.of_rows else None
        if found is None:
            if not fits:
                raise HostError(self._asks(shown, views))
            return self._of_views(passed, views, shown, "the labels passed to the call")
        self.source = f"`{self._found}`, one for each image"
        labelled = self._of_rows(found, shown, views)
        if fits and labelled.synthetic is None and views.shape not in self._compared:
            self._compared.add(views.shape)  # once, as it waits for the device
            if not torch.equal(labelled.labels.cpu(), passed.to("cpu", labelled.labels.dtype)):
                raise HostError(
                    f"the labels passed to {self._where} differ from '{self._found}', the labels of the images' rows. "
                    f"Name those that are meant. {self._advice}"
                )
        return labelled

    def _of_host(self, count: int) -> Tensor | None:
        """The host's labels of all rows: the integers that it holds under the name of labels."""
        if self._found is not None:
            with suppress(DDPlugError):
                held = class_numbers(self._host.get(self._found))
                if held is not None and len(held) == count:
                    return held
        found = held_labels(self._host, count, self._where, self._advice)
        self._found = None if found is None else found[0]
        return None if found is None else found[1]

    def _of_rows(self, by_row: Tensor, shown: Shown, views: Tensor) -> Labelled:
        by_row = by_row.to(shown.leaves[0].device)
        if shown.rows is None:
            labels = None if shown.mixed else labels_by_probes(views, shown.leaves, by_row)
            if labels is None:
                raise HostError(
                    f"the views of {self._where} are made of several images each, and not all of these have one label, "
                    "so the views have none. Attach before the images are mixed, or name the labels of the views. "
                    f"{self._advice}"
                )
            return Labelled(labels)
        synthetic = shown.synthetic
        return Labelled(by_row[shown.rows if synthetic is None else shown.rows[synthetic]], synthetic)

    def _asks(self, shown: Shown, views: Tensor) -> str:
        if not shown.of_rows:
            return (
                f"the labels of the {len(views)} views at {self._where} are unknown, as the rows of the synthetic "
                f"images that they show cannot be read: {shown.why}. {self._advice}"
            )
        others = [f"{name} {tuple(value.shape)}" for name, value in all_items(self._host) if _integers(value)]
        return (
            f"no labels for the {shown.count} synthetic images behind {self._where}: no integers ({shown.count},) of a "
            f"name like labels, targets or y were found. Integers of other names or lengths: "
            f"{', '.join(others[:6]) or 'none'}. {self._advice}"
        )


def held_labels(host: Holder, count: int, where: str, advice: str = ADVICE) -> tuple[str, Tensor] | None:
    """The labels of `count` images that a host holds, with their name; `HostError` if several differ."""
    return next(filter(None, (_chosen(group, count, where, advice) for group in host.groups())), None)


def _chosen(named: Iterable[tuple[str, Any]], count: int, where: str, advice: str) -> tuple[str, Tensor] | None:
    found: list[tuple[str, Tensor]] = []
    soft: tuple[str, Tensor] | None = None
    for name, value in named:
        if not LIKE_LABELS.search(name.rpartition(".")[2]):
            continue
        numbers = class_numbers(value)
        if numbers is not None and len(numbers) == count:
            found.append((name, numbers))
        elif soft is None and isinstance(value, Tensor) and value.ndim == 2 and len(value) == count:
            soft = name, value
    if soft is not None and (not found or soft[1].is_floating_point()):
        raise HostError(
            f"'{soft[0]}' {tuple(soft[1].shape)} may be soft or one-hot labels of the {count} synthetic images at "
            f"{where}, and CMI needs class numbers, one for each image. {advice}"
        )
    if not found:
        return None
    synthetic = [each for each in found if "syn" in each[0].lower()] or found
    name, labels = synthetic[0]
    if any(other is not labels and not torch.equal(other.cpu(), labels.cpu()) for _, other in synthetic):
        raise HostError(
            f"the labels of the {count} synthetic images at {where} may be {', '.join(each for each, _ in synthetic)}, "
            f"which differ. {advice}"
        )
    return name, labels


def check_given(labels: Any, source: str = "those given as labels=") -> None:
    """Raise `InputError` if labels are no class numbers, one for all or (n,)."""
    found = _tensor(labels, source)
    spread(found, len(found) if found.ndim else 1, source)


def require_labels(signature: inspect.Signature | None, labels: Labels | None, host: Holder, name: str) -> None:
    """Raise `HostError` if nothing can give the labels at the calls of `name`."""
    counts = _counts(host)
    if labels is not None and not isinstance(labels, str):
        return
    if label_argument(signature, labels) is not None:
        return
    if labels is not None:
        held = host.get(labels)
        if held is not None and not isinstance(held, str):
            check_given(held, f"`{labels}`")
            return
    elif any(
        (numbers := class_numbers(value)) is not None
        and LIKE_LABELS.search(held.rpartition(".")[2])
        and (not counts or len(numbers) in counts)
        for held, value in all_items(host)
    ):
        return
    raise HostError(
        f"no labels for '{name}{signature or ''}': looked for {labels or ', '.join(LABELS)} among its arguments "
        f"and for integers ({' or '.join(map(str, sorted(counts))) or 'n'},) of such a name on its owner. {ADVICE}"
    )


def stepped_in(items: Iterable[tuple[str, Any]]) -> set[int]:
    """Return the identities of the tensors that the optimizers among `items` step."""
    return {id(leaf) for _, value in items if isinstance(value, Optimizer) for leaf in stepped_by(value)}


def _counts(host: Holder) -> set[int]:
    """The numbers of the synthetic images that an optimizer of the host steps; empty if they are made later."""
    items = list(all_items(host))
    stepped = stepped_in(items)
    held = [
        leaves_in(value) for name, value in items if not isinstance(value, Optimizer) and not name.endswith(".weight")
    ]
    return {rows_in(*each) for each in held if each and all(leaf.ndim >= 4 and id(leaf) in stepped for leaf in each)}


def label_argument(signature: inspect.Signature | None, labels: Labels | None) -> str | None:
    """The name of the parameter that labels are passed by, if there is one."""
    wanted = (labels,) if isinstance(labels, str) else LABELS if labels is None else ()
    return argument_of(signature, wanted)


def spread(labels: Any, count: int, source: str, advice: str = ADVICE) -> Tensor:
    """`labels` of `count` views, one class number spread over all; the error for others says where they came from."""
    found = _tensor(labels, source)
    if found.ndim == 0:
        found = found.expand(count)
    try:
        check_labels(found, count)
    except InputError as error:
        raise InputError(f"{error} These labels are {source}. {advice}") from error
    return found


def _tensor(labels: Any, source: str) -> Tensor:
    try:
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{source} is {type(labels).__name__}, expected class numbers. {ADVICE}") from error


def argument_of(signature: inspect.Signature | None, names: tuple[str, ...]) -> str | None:
    """The first of `names` that is a parameter."""
    return next((name for name in names if signature is not None and name in signature.parameters), None)


def class_numbers(value: object) -> Tensor | None:
    """Class numbers (n,) that a tensor, an array or a list holds; None for anything else."""
    if isinstance(value, list | tuple) and value and all(type(each) is int for each in value):
        return torch.tensor(value, device="cpu")
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iu":
        return torch.from_numpy(value.astype(np.int64))
    return value if isinstance(value, Tensor) and _integers(value) else None


def _integers(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == 1 and value.dtype in INTEGERS
