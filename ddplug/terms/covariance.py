"""Matching each class's covariance of local features to that of real images (IID, arXiv 2404.00563)."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from ddplug.errors import InputError
from ddplug.terms.base import Groups, register
from ddplug.terms.real import RealTerm


@register("covariance")
class Covariance(RealTerm):
    """Mean over classes of the squared Frobenius distance between the real and the synthetic covariance.

    A class's covariance is the mean over its images of sum_p d_p d_p^T, d_p being the image's channels at position p
    less their mean over the class. The publication takes the sum over classes, times 0.01: a lambda of 0.01 times the
    number of classes here, on a ConvNet's features with as many `positions` as its last maps have. Features without
    positions, such as logits, are one position. Memory grows with images times the square of the channels.

    Args:
        positions: spatial positions that the features of a channel, which follow each other, are of.
    """

    label = "covariance distance"
    unit = "features to the fourth"
    min_per_class = 2

    def __init__(self, positions: int = 1) -> None:
        if isinstance(positions, bool) or not isinstance(positions, int) or positions < 1:
            raise InputError(f"positions must be a whole number >= 1, got {positions!r}.")
        self.positions = positions

    def __call__(self, features: Tensor, groups: Groups) -> Tensor:
        """The mean squared distance, a scalar."""
        real = self.real
        target = self._of(real.features, real.groups)[real.rows(groups)]
        return (self._of(features, groups) - target).square().sum((1, 2)).mean()

    def _of(self, features: Tensor, groups: Groups) -> Tensor:
        """Every class's covariance, (c, channels, channels)."""
        if features.shape[1] % self.positions:
            raise InputError(
                f"positions={self.positions} does not divide the {features.shape[1]} features of an image; give the "
                "number of positions of the maps that they are flattened from, 1 for logits."
            )
        centred = features - groups.mean(features)[groups.index]
        local = rearrange(centred, "n (channel p) -> n channel p", p=self.positions)
        products = torch.einsum("ncp,ndp->ncd", local, local)
        return groups.sum(products) / rearrange(groups.counts.to(features), "c -> c 1 1")
