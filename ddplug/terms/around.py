"""CMI around centroids that are not the batch's own: running means, or those of real images.

A host that recovers images class by class, or one image of each class at a time, never has two images of a class in a
batch, so that CMI within the batch is 0. Around a stored centroid R_y the quantity is

    (1/n) * sum_s KL(P_s || R_y(s)) = CMI of the batch + sum_y (n_y/n) * KL(Q_y || R_y),

Q_y being the batch's own centroids: never less than the batch's CMI, and equal to it where R_y = Q_y, with the same
gradient, as Q_y minimises a class's mean KL. Its derivative is dz_s = (1/(n T)) * P_s * (log P_s - log R_y - KL_s).
Centroids are stored as logs, as a mean of underflowed probabilities has none. `docs/recovery.md` says which ones when.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from ddplug.choices import Centroids as Centroids
from ddplug.errors import InputError
from ddplug.terms.base import Groups, Term
from ddplug.terms.cmi import ConditionalMutualInformation, check_temperature, log_centroids, log_probabilities
from ddplug.terms.real import Real, RealTerm

MOMENTUM = 0.001
"""Part of a running mean that a round renews, once the mean is of more rounds than 1 / MOMENTUM."""


def around(objective: Term, centroids: Centroids) -> Term:
    """CMI around the `centroids` that are meant; `InputError` for another term around anything but the batch's."""
    if centroids not in get_args(Centroids):
        raise InputError(f"unknown centroids={centroids!r}, expected {', '.join(map(repr, get_args(Centroids)))}.")
    if centroids == "batch":
        return copy.deepcopy(objective) if objective.remembers else objective  # what it keeps is its user's own
    if not isinstance(objective, ConditionalMutualInformation):
        raise InputError(
            f"centroids={centroids!r} is of CMI, and the term is {objective.name!r}; leave one of them out."
        )
    kind = AroundRunning if centroids == "running" else AroundReal
    return kind(objective.temperature)


class Around(Term):
    """CMI around stored centroids, wherever they come from."""

    unit = "nats"
    additive_over_classes = True
    temperature: float

    def log_r(self, features: Tensor, groups: Groups) -> Tensor:
        """Logs of the stored centroids of `groups`' classes, (c, d), for features (n, d)."""
        raise NotImplementedError

    def __call__(self, features: Tensor, groups: Groups) -> Tensor:
        """The mean divergence, a scalar."""
        log_p = log_probabilities(features, self.temperature)
        return (log_p.exp() * (log_p - self.log_r(features, groups)[groups.index])).sum() / len(features)

    def value_and_grad(self, features: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
        """The same and its derivative in closed form, which is exactly 0 where every P is its class's centroid."""
        log_p = log_probabilities(features, self.temperature)
        p, log_ratio = log_p.exp(), log_p - self.log_r(features, groups)[groups.index]
        kl = (p * log_ratio).sum(-1, keepdim=True)
        return kl.sum() / len(features), p * (log_ratio - kl) / (len(features) * self.temperature)


class AroundReal(Around, RealTerm):
    """CMI around the centroids of real images under the same proxy, of which every proxy sees one fixed sample.

    Args:
        temperature: T > 0 in softmax(features / T).
    """

    name, label = "cmi around real centroids", "CMI around real centroids"
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

    def log_r(self, features: Tensor, groups: Groups) -> Tensor:
        """Logs of the real images' centroids, (c, d); `InputError` for a class of which there are none."""
        rows = self.real.rows(groups)
        assert self._log_r is not None
        return self._log_r[rows]

    def settings(self) -> dict[str, Any]:
        """The temperature, and which centroids."""
        return {"temperature": self.temperature, "centroids": "real"}


@dataclass(frozen=True)
class Means:
    """Running means of P by class under one proxy. Its tensors are replaced, never written to."""

    classes: Tensor
    """(c,) int64, ascending."""
    logs: Tensor
    """(c, d), log of each mean."""
    rounds: Tensor
    """(c,) int64, how many rounds each is of."""

    def __post_init__(self) -> None:
        count = len(self.classes)
        shaped = self.classes.ndim == 1 and self.logs.ndim == 2 and len(self.logs) == count == len(self.rounds)
        if not shaped or self.rounds.ndim != 1 or not self.logs.is_floating_point():
            raise InputError("the running centroids of a state are not a table by class: the state is damaged.")

    def to(self, device: torch.device) -> Means:
        """The same on `device`."""
        return Means(self.classes.to(device), self.logs.to(device), self.rounds.to(device))

    def find(self, classes: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of `classes` (c,), and which of them are there; the others' rows mean nothing."""
        rows = torch.searchsorted(self.classes, classes).clamp(max=len(self.classes) - 1)
        return rows, self.classes[rows] == classes

    def moved(self, classes: Tensor, own: Tensor, momentum: float) -> Means:
        """With the means of `classes` (c,) moved towards a batch's centroids, whose logs are `own` (c, d)."""
        rows, known = self.find(classes)
        rounds = torch.where(known, self.rounds[rows], 0) + 1
        part = (1 / rounds.to(own)).clamp(min=momentum)[:, None]  # 1 for a new class, which begins with the batch's
        logs = torch.logaddexp(self.logs[rows] + torch.log1p(-part), own + part.log())
        every = torch.unique(torch.cat([self.classes, classes]))
        old, new = torch.searchsorted(every, self.classes), torch.searchsorted(every, classes)
        return Means(
            every,
            own.new_empty(len(every), own.shape[1]).index_copy_(0, old, self.logs).index_copy_(0, new, logs),
            rounds.new_empty(len(every)).index_copy_(0, old, self.rounds).index_copy_(0, new, rounds),
        )


class AroundRunning(Around):
    """CMI around running means of P by class, kept for every proxy by its weights.

    A class's mean begins with the first batch that has it, around whose own centroid that batch is. Each round then
    moves it towards the batch's, as much as makes it the mean over all rounds, and by `momentum` at least: a host that
    recovers one image after another takes hundreds of rounds for each, and the mean has to remember the earlier ones.

    Args:
        temperature: T > 0 in softmax(features / T).
        momentum: part of the mean that a round renews at least, in [0, 1]: 0 for the mean over all rounds, 1 for the
            last round alone.
    """

    name, label = "cmi around running centroids", "CMI around running centroids"
    remembers = True

    def __init__(self, temperature: float = 1.0, momentum: float = MOMENTUM) -> None:
        if not 0 <= momentum <= 1:
            raise InputError(f"the momentum of running centroids must be in [0, 1], got {momentum}.")
        self.temperature, self.momentum = check_temperature(temperature), momentum
        self._means: dict[str, Means] = {}
        self._proxy = ""

    def of_proxy(self, key: str) -> AroundRunning:
        """The same term, and the same means, under the proxy of that key."""
        found = copy.copy(self)
        found._proxy = key
        return found

    def log_r(self, features: Tensor, groups: Groups) -> Tensor:
        """Logs of the means of `groups`' classes, (c, d); the batch's own where there is none yet."""
        own, held = self._own(features, groups), self._held(features.device)
        if held is None:
            return own
        rows, known = held.find(groups.classes)
        return torch.where(known[:, None], held.logs[rows].to(own), own)

    def saw(self, features: Tensor, groups: Groups) -> None:
        """Move the means of the classes of a round; one whose features are not finite is left out, as ever."""
        if not torch.isfinite(features).all():
            return
        own, held = self._own(features.detach(), groups), self._held(features.device)
        first = Means(groups.classes, own, torch.ones_like(groups.counts))
        self._means[self._proxy] = first if held is None else held.moved(groups.classes, own, self.momentum)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """The means, the classes and the rounds that they are of, by proxy."""
        return {key: dict(vars(held)) for key, held in self._means.items()}

    def set_state(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Go on with the means of a `state`."""
        found = {key: Means(**held) for key, held in state.items()}
        self._means.clear()  # the one dictionary that the terms of all proxies share
        self._means.update(found)

    def settings(self) -> dict[str, Any]:
        """The temperature, which centroids, and how fast they move."""
        return {"temperature": self.temperature, "centroids": "running", "momentum": self.momentum}

    def _own(self, features: Tensor, groups: Groups) -> Tensor:
        return log_centroids(log_probabilities(features, self.temperature), groups)

    def _held(self, device: torch.device) -> Means | None:
        held = self._means.get(self._proxy)
        return None if held is None else held.to(device)
