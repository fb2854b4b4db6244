"""The estimator: class-aware conditional mutual information of a set of features, in nats.

For features z_s of images s with class y, P_s = softmax(z_s / T) and the centroid Q_y = mean of P_s over class y,

    CMI = (1/n) * sum_s KL(P_s || Q_y(s)) = sum_y (n_y/n) * (H(Q_y) - mean_s H(P_s))        (arXiv 2412.09945)

Q_y is the minimiser of a class's mean KL, so its own derivative cancels and the gradient is closed-form:

    dCMI/dz_s = (1/(n T)) * P_s * (log P_s - log Q_y - KL_s)

Everything happens in log space and in fp32 or better, because peaked features overflow the naive formula into NaN.
No host, no proxy and no image is known here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ddplug.errors import InputError, caution
from ddplug.terms.base import Groups, Term, group, register, transformed


class Softened(Term):
    """Base of the terms of softmax(features / T).

    Args:
        temperature: T > 0.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = check_temperature(temperature)


@register("cmi")
class CMI(Softened):
    """CMI of features given the class, in nats, between 0 and min(mean over images of log n_y, log d).

    Args:
        temperature: T > 0 in softmax(features / T).
    """

    label = "CMI"
    unit = "nats"
    min_per_class = 2
    additive_over_classes = True

    def __call__(self, features: Tensor, groups: Groups) -> Tensor:
        """CMI of `features` (n, d), a scalar; differentiable twice."""
        return class_sums(features, groups, self.temperature).sum() / len(features)

    def value_and_grad(self, features: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
        """CMI and its derivative in closed form."""
        sums, derivative = closed_form(features, groups, self.temperature)
        return sums.sum() / len(features), derivative / len(features)


def cmi(features: Tensor, labels: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Conditional mutual information of `features` given the class, in nats: a scalar >= 0.

    Args:
        features: (n, d) penultimate features or logits, any floating dtype; half precision is computed in fp32.
        labels: (n,) integers >= 0, in any order; classes may have unequal sizes.
        temperature: T > 0 in softmax(features / T).

    Returns:
        A scalar tensor, fp32 (float64 for float64 features), between 0 and min(mean over images of log n_y, log d).
        Differentiable twice; the first derivative is the closed form of arXiv 2412.09945's objective (see the module).

    Raises:
        InputError: labels of another length, dtype or sign, an empty batch, features that are not finite, T <= 0.

    Warns:
        DDPlugWarning: every class has one image, so the value is identically 0.
    """
    groups = checked(features, labels, temperature)
    term = CMI(temperature)
    if groups.one_image_per_class:
        caution(term.too_few)
    return term(features, groups)


def check_temperature(temperature: float) -> float:
    """`temperature` as it is, or `InputError` unless it is finite and > 0."""
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature must be > 0 and finite, got {temperature}.")
    return temperature


def class_sums(features: Tensor, groups: Groups, temperature: float) -> Tensor:
    """Sum of KL(P_s || Q_y) over each class's images, (c,) in nats; differentiable twice. Checks nothing."""
    if transformed():  # of which a function of ours has no rules
        return closed_form(features, groups, temperature)[0].clamp(min=0)
    sums: Tensor = _ClassSums.apply(features, groups.index, groups.counts, temperature)[0]
    return sums


def closed_form(features: Tensor, groups: Groups, temperature: float) -> tuple[Tensor, Tensor]:
    """(c,) class sums of KL and the (n, d) derivative of their total with respect to `features`. Checks nothing."""
    log_p = log_probabilities(features, temperature)
    p = log_p.exp()
    shifted, log_totals, _ = _log_totals(log_p, groups)
    # log(P / Q), but for the log of the class's size, which is one number per image and cancels in the derivative.
    log_ratio = shifted - log_totals.index_select(0, groups.index)
    kl = (p * log_ratio).sum(-1)
    sums = groups.sum(kl)
    sizes = groups.counts.to(kl)
    derivative = p * (log_ratio - kl[:, None])
    return sums + sizes * sizes.log(), derivative if temperature == 1 else derivative / temperature


class _ClassSums(torch.autograd.Function):
    """`closed_form`'s sums, with its derivative instead of autograd's walk back through softmax and centroids."""

    @staticmethod
    def forward(features: Tensor, index: Tensor, counts: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        sums, derivative = closed_form(features, Groups(counts, index, counts), temperature)
        # Rounding can leave a class that is all alike at -1e-8; the quantity itself cannot be negative.
        return sums.clamp(min=0), derivative

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        features, index, counts, ctx.temperature = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(features, index, counts, output[1])

    @staticmethod
    def backward(ctx: Any, grad_sums: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        features, index, counts, derivative = ctx.saved_tensors
        if torch.is_grad_enabled():
            # Somebody will differentiate again: redo the closed form where autograd can see it.
            _, derivative = closed_form(features, Groups(counts, index, counts), ctx.temperature)
        return (grad_sums[index, None] * derivative).to(features.dtype), None, None, None


def checked(features: Tensor, labels: Tensor, temperature: float) -> Groups:
    """The images of `labels` (n,) by class, or `InputError` where no term of `features` (n, d) can be computed."""
    if not isinstance(features, Tensor) or features.ndim != 2 or not features.is_floating_point():
        raise InputError(
            f"features must be a floating-point tensor of shape (n, d), got {getattr(features, 'dtype', '')} "
            f"{type(features).__name__} of shape {tuple(getattr(features, 'shape', ()))}; flatten each image's "
            "features first."
        )
    check_temperature(temperature)
    groups = group(labels, len(features), features.device)
    if not torch.isfinite(features).all():
        bad = int((~torch.isfinite(features)).any(-1).sum())
        raise InputError(
            f"features of {bad} of {len(features)} images are not finite (NaN or infinity). Look at the images and at "
            "the network they come from: a diverged proxy, an overflow in half precision, or images in the wrong "
            "input space."
        )
    return groups


def log_probabilities(features: Tensor, temperature: float) -> Tensor:
    """Log softmax(features / T), (n, d), in fp32 or better whatever comes in."""
    wide = features if features.dtype == torch.float64 else features.float()
    return torch.log_softmax(wide if temperature == 1 else wide / temperature, -1)


def _log_totals(log_p: Tensor, groups: Groups) -> tuple[Tensor, Tensor, Tensor]:
    """A log-sum-exp over each class, in its parts: log P less its class's maximum (n, d), log of sums, maxima (c, d).

    Shifting by the class's own maximum keeps the log of an underflowed sum finite. There are no more passes over the
    tables by class than needed: with as many classes as images they are as large as the features.
    """
    rows = groups.index[:, None].expand_as(log_p)
    top = log_p.new_full((len(groups.counts), log_p.shape[-1]), -torch.inf)
    top = top.scatter_reduce_(0, rows, log_p.detach(), "amax")
    shifted = log_p - top.index_select(0, groups.index)
    return shifted, groups.sum(shifted.exp()).log_(), top


def log_centroids(log_p: Tensor, groups: Groups) -> Tensor:
    """Log of each class's mean probabilities, (c, d)."""
    _, log_totals, top = _log_totals(log_p, groups)
    return log_totals + top - groups.counts.to(log_p).log()[:, None]
