"""Labels of the views at each call: they belong to the rows of the synthetic images that the views show."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddplug.attaching.held import Holder
from ddplug.attaching.images import Images, Shown
from ddplug.attaching.probes import labels_by_probes
from ddplug.errors import HostError, InputError
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
        self.of_rows: Tensor | None = None
        """Classes of the rows of the images, -1 for those that were not seen yet."""
        self._complete = False

    def __call__(self, views: Tensor) -> int:
        """The class of this call."""
        self.calls += 1
        return self.classes[(self.calls - 1) % len(self.classes)]

    def of(self, shown: Shown, views: Tensor) -> Tensor | None:
        """Classes of all rows after a call on `views`; None if the rows that they show are unknown."""
        if shown.rows is None:
            return None
        if self.of_rows is None or len(self.of_rows) != shown.count:
            self.of_rows, self._complete = torch.full((shown.count,), -1, device=shown.rows.device), False
        self.of_rows = self.of_rows.to(shown.rows.device)
        if not self._complete:
            known = self.of_rows[shown.rows] >= 0
            if not known.any():
                self.of_rows[shown.rows] = self(views)
                self._complete = bool((self.of_rows >= 0).all())
            elif not known.all():
                raise HostError(
                    "one_class_per_call: a call came on images of which some were in an earlier call and others in "
                    "none, so that their classes are unknown. Pass labels= as a tensor, one label for each image."
                )
        return self.of_rows

    def state_dict(self) -> dict[str, Any]:
        """Number of the calls and classes of the rows."""
        return {"calls": self.calls, "of_rows": self.of_rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.calls, self.of_rows = int(state["calls"]), state["of_rows"]
        self._complete = False


class LabelReader:
    """Reads the labels of the views of each call.

    Args:
        images: the host's synthetic images.
        labels: as given to `attach`.
        host: what the host holds, by name.
        where: name of the place, for messages.
    """

    def __init__(self, images: Images, labels: Labels | None, host: Holder, where: str) -> None:
        self._images, self._host, self._where = images, host, where
        named = labels is None or isinstance(labels, str) or callable(labels)
        self._given: Any = labels if named else torch.as_tensor(labels)
        self._found: str | None = None
        self._compared: set[Any] = set()

    def read(self, argument: Tensor | None, views: Tensor, passed: Any) -> Labelled | None:
        """Return the labels of `views`, or None if these are real images.

        Args:
            argument: the images that the views are made of, None if unknown.
            views: (n, c, h, w).
            passed: value of the call's label argument, None without.
        """
        given = self._given
        if isinstance(given, str) and passed is not None:
            return Labelled(spread(passed, len(views), f"the argument '{given}' of {self._where}"))
        if callable(given) and not isinstance(given, one_class_per_call):
            return Labelled(spread(given(views), len(views), "the function given as labels="))
        shown = self._images.shown(argument, views)
        if shown is None:
            return None
        if isinstance(given, one_class_per_call):
            if (by_row := given.of(shown, views)) is None:
                return Labelled(spread(given(views), len(views), "one_class_per_call"))
            return self._of_rows(by_row, shown, views)
        if given is None:
            return self._unnamed(shown, views, passed)
        source = f"the attribute '{given}'" if isinstance(given, str) else "the tensor given as labels="
        found = self._host.get(given) if isinstance(given, str) else given
        if found is None:
            raise HostError(
                f"{self._where} was called on synthetic images without '{given}'. Pass the labels there, or labels= "
                "as another name, a tensor, or a function of the views."
            )
        found = torch.as_tensor(found)
        if found.ndim == 1 and len(found) == shown.count and (shown.rows is not None or shown.by_probes):
            return self._of_rows(spread(found, shown.count, source), shown, views)
        return Labelled(spread(found, len(views), source))

    def _unnamed(self, shown: Shown, views: Tensor, passed: Any) -> Labelled:
        """Labels that the user did not name: of the rows, or else those that were passed to the call."""
        fits = isinstance(passed, Tensor) and passed.shape == (len(views),) and passed.dtype in INTEGERS
        found = None
        if shown.rows is not None or shown.by_probes:
            found = self._of_host(shown.count)
        if found is None and fits:
            return Labelled(passed)
        if found is None:
            raise HostError(self._asks(shown, views))
        labelled = self._of_rows(found, shown, views)
        if fits and labelled.synthetic is None and views.shape not in self._compared:
            self._compared.add(views.shape)  # once, as it waits for the device
            if not torch.equal(labelled.labels.cpu(), passed.to("cpu", labelled.labels.dtype)):
                raise HostError(
                    f"the labels passed to {self._where} differ from '{self._found}', the labels of the images' rows. "
                    "Say which are meant: labels='NAME', of the argument or of the attribute."
                )
        return labelled

    def _of_host(self, count: int) -> Tensor | None:
        """The host's labels of all rows: the integers that it holds under the name of labels."""
        if self._found is not None:
            held = class_numbers(self._host.get(self._found))
            if held is not None and len(held) == count:
                return held
        self._found, found = chosen_labels(self._host.items(), count, self._where)
        return found

    def _of_rows(self, by_row: Tensor, shown: Shown, views: Tensor) -> Labelled:
        by_row = by_row.to(shown.leaves[0].device)
        if shown.rows is None:
            labels = None if shown.mixed else labels_by_probes(views, shown.leaves, by_row)
            if labels is None:
                raise HostError(
                    f"the views of {self._where} are made of several images each, and not all of these have one label, "
                    "so the views have none. Attach before the images are mixed, or pass labels= as a function from "
                    "the views to their labels."
                )
            return Labelled(labels)
        if not shown.mixed:
            return Labelled(by_row[shown.rows])
        index = (shown.rows >= 0).nonzero().flatten()
        return Labelled(by_row[shown.rows[index]], index)

    def _asks(self, shown: Shown, views: Tensor) -> str:
        if shown.rows is None and not shown.by_probes:
            return (
                f"the labels of the {len(views)} views at {self._where} are unknown, as the rows of the synthetic "
                f"images that they show cannot be read: {shown.why}. Pass labels=, a function from the views to their "
                "labels."
            )
        others = [f"{name} {tuple(value.shape)}" for name, value in self._host.items() if _integers(value)]
        return (
            f"no labels for the {shown.count} synthetic images behind {self._where}: no integers ({shown.count},) of a "
            f"name like labels, targets or y were found. Integers of other names or lengths: "
            f"{', '.join(others[:6]) or 'none'}. Pass labels= (a name, a tensor, a function of the views, or "
            "ddplug.one_class_per_call(classes))."
        )


def chosen_labels(named: Iterable[tuple[str, Any]], count: int, where: str) -> tuple[str | None, Tensor | None]:
    """The labels of `count` images among what a host holds, and their name; `HostError` if several differ."""
    found: list[tuple[str, Tensor]] = []
    for name, value in named:
        if not LIKE_LABELS.search(name.rpartition(".")[2]):
            continue
        if isinstance(value, Tensor) and value.ndim == 2 and len(value) == count and value.is_floating_point():
            raise HostError(
                f"'{name}' {tuple(value.shape)} may be soft labels of the {count} synthetic images at {where}, and CMI "
                "needs class numbers. Pass labels=, a tensor of shape "
                f"({count},), one class for each image."
            )
        numbers = class_numbers(value)
        if numbers is not None and len(numbers) == count:
            found.append((name, numbers))
    if not found:
        return None, None
    synthetic = [each for each in found if "syn" in each[0].lower()] or found
    name, labels = synthetic[0]
    if any(other is not labels and not torch.equal(other.cpu(), labels.cpu()) for _, other in synthetic):
        raise HostError(
            f"the labels of the {count} synthetic images at {where} may be {', '.join(each for each, _ in synthetic)}, "
            f"which differ. Say which: labels='{name}', say."
        )
    return name, labels


def require_labels(signature: inspect.Signature | None, labels: Labels | None, host: Holder, name: str) -> None:
    """Raise `HostError` if nothing can give the labels at the calls of `name`."""
    if labels is not None and not isinstance(labels, str):
        return
    if label_argument(signature, labels) is not None:
        return
    if labels is not None:
        held = host.get(labels)
        if isinstance(held, Tensor | Sequence):
            return
    elif any(
        class_numbers(value) is not None and LIKE_LABELS.search(held.rpartition(".")[2]) for held, value in host.items()
    ):
        return
    raise HostError(
        f"no labels for '{name}{signature or ''}': looked for {labels or ', '.join(LABELS)} among its arguments "
        "and for integers of such a name on its owner. Pass labels= (a name, a tensor, a function of the views, or "
        "ddplug.one_class_per_call(classes))."
    )


def label_argument(signature: inspect.Signature | None, labels: Labels | None) -> str | None:
    """The name of the parameter that labels are passed by, if there is one."""
    wanted = (labels,) if isinstance(labels, str) else LABELS if labels is None else ()
    return argument_of(signature, wanted)


def spread(labels: Any, count: int, source: str) -> Tensor:
    """`labels` of `count` views, one class number spread over all; the error for others says where they came from."""
    found = torch.as_tensor(labels)
    if found.ndim == 0:
        found = found.expand(count)
    try:
        check_labels(found, count)
    except InputError as error:
        raise InputError(
            f"{error} These labels are {source}. Pass one label for each synthetic image, or a function from the views "
            "to their labels: labels=lambda views: ..."
        ) from error
    return found


def argument_of(signature: inspect.Signature | None, names: tuple[str, ...]) -> str | None:
    """The first of `names` that is a parameter."""
    return next((name for name in names if signature is not None and name in signature.parameters), None)


def class_numbers(value: object) -> Tensor | None:
    """Class numbers (n,) that a tensor, an array or a list holds; None for anything else."""
    if isinstance(value, list | tuple) and value and all(type(each) is int for each in value):
        return torch.tensor(value)
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iu":
        return torch.from_numpy(value.astype(np.int64))
    return value if isinstance(value, Tensor) and _integers(value) else None


def _integers(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == 1 and value.dtype in INTEGERS
