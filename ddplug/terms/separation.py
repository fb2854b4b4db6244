"""Measures of a set: each class's own CMI, how far apart the classes are, and CMI in proportion to that (NCMI)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ddplug.errors import InputError
from ddplug.terms.base import Groups
from ddplug.terms.cmi import checked, class_sums, cmi, log_centroids, log_probabilities

Separation = Literal["cross_entropy", "kl", "centroid_kl"]


def cmi_per_class(features: Tensor, labels: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Each class's own CMI, mean over its images of KL(P_s || Q_y), in nats: (c,) in ascending order of the labels.

    Arguments and errors as for `cmi`, which is the mean of these weighted by the classes' sizes. Differentiable twice.
    """
    groups = checked(features, labels, temperature)
    return class_sums(features, groups, temperature) / groups.counts


def ncmi(
    features: Tensor, labels: Tensor, *, separation: Separation = "cross_entropy", temperature: float = 1.0
) -> Tensor:
    """CMI divided by a separation between classes (a scalar without unit; smaller: tighter and further apart).

    The literature divides by different things (arXiv 2309.09123, 2601.02543), so the divisor has a name: see
    `ddplug.terms.separation.class_separation`. Arguments and errors as there; differentiable.
    """
    gamma = class_separation(features, labels, kind=separation, temperature=temperature)
    return cmi(features, labels, temperature=temperature) / gamma


def class_separation(
    features: Tensor, labels: Tensor, *, kind: Separation = "cross_entropy", temperature: float = 1.0
) -> Tensor:
    """Separation of the classes in nats: a scalar, in time linear in the number of images.

    Args:
        features: (n, d), as for `cmi`.
        labels: (n,), at least two classes.
        kind: what is averaged. "cross_entropy": -sum P_i log P_j over ordered pairs of images i, j of different
            classes (the Gamma of arXiv 2309.09123, as a mean over those pairs); "kl": KL(P_i || P_j) over the same
            pairs; "centroid_kl": KL(Q_c || P_i) over pairs of a class c and an image i that is not of it.
        temperature: T > 0.

    Raises:
        InputError: as for `cmi`, or fewer than two classes, or an unknown kind.
    """
    groups = checked(features, labels, temperature)
    return separation_of(features, groups, check_separation(kind), temperature)


def separation_of(features: Tensor, groups: Groups, kind: Separation, temperature: float) -> Tensor:
    """`class_separation` of images that are grouped and checked."""
    if len(groups.classes) < 2:
        raise InputError(
            f"a separation between classes needs at least two classes, got only class {int(groups.classes[0])}."
        )
    wide = torch.float64 if features.dtype == torch.float64 else torch.float32
    log_p = log_probabilities(features.double(), temperature)
    p, counts = log_p.exp(), groups.counts.to(log_p)
    n = len(log_p)
    # Sums over pairs of *different* classes are all pairs minus the pairs within a class: no n x n table is needed.
    log_p_of_class = groups.sum(log_p)
    if kind == "centroid_kl":
        log_q = log_centroids(log_p, groups)
        q = log_q.exp()
        cross = (q * (log_p_of_class - log_p_of_class.sum(0))).sum()
        own = ((q * log_q).sum(-1) * (n - counts)).sum()
        return ((own + cross) / (n - counts).sum()).to(wide)
    p_of_class = groups.sum(p)
    pairs = n * n - (counts * counts).sum()
    cross = (p_of_class * log_p_of_class).sum() - (p.sum(0) * log_p.sum(0)).sum()
    if kind == "kl":
        cross = cross + ((p * log_p).sum(-1) * (n - counts)[groups.index]).sum()
    return (cross / pairs).to(wide)


def check_separation(kind: Separation) -> Separation:
    """Return `kind`; `InputError` unless it is the name of a separation."""
    if kind not in get_args(Separation):
        raise InputError(f"unknown separation {kind!r}, expected one of {', '.join(map(repr, get_args(Separation)))}.")
    return kind
