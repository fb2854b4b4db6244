"""Soft labels: what teachers say of a set's images, in the place of its labels."""

from __future__ import annotations

from dataclasses import replace

import torch

from ddplug.datasets.synthetic import SyntheticSet
from ddplug.errors import InputError
from ddplug.lab.meaning import seen_by
from ddplug.proxies.doubts import check_range
from ddplug.proxies.pool import ProxyPool
from ddplug.terms.cmi import check_temperature


@torch.no_grad()
def relabel(
    synthetic: SyntheticSet, teachers: ProxyPool, *, temperature: float = 1.0, batch_size: int = 256
) -> SyntheticSet:
    """The set with soft labels, float (n, classes): the mean over teachers of softmax(logits / T).

    Images stay as they are, and each keeps the class that it was made for. The computation is on the images' device.

    Raises:
        InputError: T <= 0, or teachers of fewer classes than the set has.
        InputError: the set's input space is not known, or cannot be converted to the teachers'.
        ProxyError: teachers of another data set.
    """
    check_temperature(temperature)
    if synthetic.dataset is not None:
        teachers.check_data(synthetic.dataset, because=f"the set was distilled from {synthetic.dataset}")
    space = teachers.derived_space(seen_by(teachers, synthetic).space)
    teachers.check(synthetic.images, space)
    check_range(teachers, synthetic.images, space)
    said = [
        teachers.features(teacher, synthetic.images, space, "logit", batch_size).double().div(temperature).softmax(1)
        for teacher in teachers
    ]
    labels, classes = torch.stack(said).mean(0), synthetic.classes
    if int(classes.max()) >= labels.shape[1]:
        raise InputError(
            f"the set has images of class {int(classes.max())}, and the teachers know {labels.shape[1]} classes; give "
            "teachers of the same data."
        )
    return replace(synthetic, labels=labels.float(), given_classes=classes)
