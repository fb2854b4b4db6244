"""CMI around centroids that are not the batch's own: running means, or those of real images.

A host that recovers images class by class, or one image of each class at a time, never has two images of a class in a
batch, so that CMI within the batch is 0. Around a stored centroid R_y the quantity is

    (1/n) * sum_s KL(P_s || R_y(s)) = CMI of the batch + sum_y (n_y/n) * KL(Q_y || R_y),

Q_y being the batch's own centroids: never less than the batch's CMI, and equal to it where R_y = Q_y, with the same
gradient, as Q_y minimises a class's mean KL. Its derivative is dz_s = (1/(n T)) * P_s * (log P_s - log R_y - KL_s).
"""

from __future__ import annotations

import copy
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ddplug.errors import InputError
from ddplug.objectives.base import Groups, Objective
from ddplug.objectives.cmi import ConditionalMutualInformation, check_temperature, log_centroids, log_probabilities
from ddplug.objectives.real import Real, RealObjective

Centroids = Literal["batch", "running", "real"]

MOMENTUM = 0.1
"""Part of a running mean that a round renews."""


def around(objective: Objective, centroids: Centroids) -> Objective:
    """CMI around the `centroids` that are meant; `InputError` for another term around anything but the batch's."""
    if centroids not in get_args(Centroids):
        raise InputError(f"unknown centroids={centroids!r}, expected {', '.join(map(repr, get_args(Centroids)))}.")
    if centroids == "batch":
        return objective
    if not isinstance(objective, ConditionalMutualInformation):
        raise InputError(
            f"centroids={centroids!r} is of CMI, and the term is {objective.name!r}; leave one of them out."
        )
    kind = AroundRunning if centroids == "running" else AroundReal
    return kind(objective.temperature)


def kl_around(features: Tensor, groups: Groups, log_r: Tensor, temperature: float) -> Tensor:
    """Mean over images of KL(P_s || R_y(s)), in nats, a scalar; `log_r` (c, d) are the logs of R by `groups`."""
    log_p = log_probabilities(features, temperature)
    return (log_p.exp() * (log_p - log_r[groups.index])).sum() / len(features)


class AroundReal(RealObjective):
    """CMI around the centroids of real images under the same proxy, of which every proxy sees one fixed sample.

    Args:
        temperature: T > 0 in softmax(features / T).
    """

    name, label, unit = "cmi around real centroids", "CMI around real centroids", "nats"
    additive_over_classes = True
    keeps_real = True

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = check_temperature(temperature)
        self._log_r: Tensor | None = None

    def against(self, real: Real) -> AroundReal:
        """Bound to the centroids of `real`."""
        bound = super().against(real)
        bound._log_r = log_centroids(log_probabilities(real.features, self.temperature), real.groups)
        bound._real = Real(real.features[:0], real.groups)  # the features have served
        return bound

    def __call__(self, features: Tensor, groups: Groups) -> Tensor:
        """The mean divergence, a scalar."""
        rows = self.real.rows(groups)
        assert self._log_r is not None
        return kl_around(features, groups, self._log_r[rows], self.temperature)

    def settings(self) -> dict[str, Any]:
        """The temperature, and which centroids."""
        return {"temperature": self.temperature, "centroids": "real"}


class AroundRunning(Objective):
    """CMI around running means of P by class, kept for every proxy by its name.

    A class's mean begins with the first batch that has it, around whose own centroid that batch is; after each round
    it moves by `momentum` towards the batch's.

    Args:
        temperature: T > 0 in softmax(features / T).
        momentum: part of the mean that a round renews, in (0, 1].
    """

    name, label, unit = "cmi around running centroids", "CMI around running centroids", "nats"
    additive_over_classes = True

    def __init__(self, temperature: float = 1.0, momentum: float = MOMENTUM) -> None:
        if not 0 < momentum <= 1:
            raise InputError(f"the momentum of running centroids must be in (0, 1], got {momentum}.")
        self.temperature, self.momentum = check_temperature(temperature), momentum
        self._means: dict[str, dict[int, Tensor]] = {}
        self._proxy = ""

    def of_proxy(self, name: str) -> AroundRunning:
        """The same term, and the same means, under the proxy of that name."""
        found = copy.copy(self)
        found._proxy = name
        return found

    def __call__(self, features: Tensor, groups: Groups) -> Tensor:
        """The mean divergence, a scalar."""
        return kl_around(features, groups, self._log_r(features.detach(), groups), self.temperature)

    def saw(self, features: Tensor, groups: Groups) -> None:
        """Move the means of the classes of a round."""
        held = self._means.get(self._proxy, {})
        batch = self._own(features, groups).exp()
        moved = {
            label: mean if label not in held else held[label].to(mean) * (1 - self.momentum) + mean * self.momentum
            for label, mean in zip(groups.classes.tolist(), batch, strict=True)
        }
        self._means[self._proxy] = {**held, **moved}  # replaced, never written to

    def state(self) -> dict[str, Any]:
        """The means, (classes, d), and their classes, by proxy."""
        return {
            name: {"classes": torch.tensor(list(held)), "means": torch.stack(list(held.values())).cpu()}
            for name, held in self._means.items()
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on with the means of a `state`."""
        self._means.clear()
        for name, held in state.items():
            self._means[name] = dict(zip(held["classes"].tolist(), held["means"], strict=True))

    def settings(self) -> dict[str, Any]:
        """The temperature, which centroids, and how fast they move."""
        return {"temperature": self.temperature, "centroids": "running", "momentum": self.momentum}

    def _own(self, features: Tensor, groups: Groups) -> Tensor:
        return log_centroids(log_probabilities(features, self.temperature), groups)

    def _log_r(self, features: Tensor, groups: Groups) -> Tensor:
        """Logs of the means of the classes of `groups`; the batch's own where there is none yet."""
        own, held = self._own(features, groups), self._means.get(self._proxy, {})
        rows = [
            held[label].to(mine).log() if label in held else mine
            for label, mine in zip(groups.classes.tolist(), own, strict=True)
        ]
        return torch.stack(rows)
