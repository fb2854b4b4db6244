"""Diversity: images of a class apart from each other and near real ones (DiRe, arXiv 2512.13083)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ddplug.errors import InputError
from ddplug.terms.base import Groups, register
from ddplug.terms.real import RealTerm


@register("diversity")
class Diversity(RealTerm):
    """Mean over classes of cosine * (mean |cos(f_i, f_j)| + mean |1 - cos(f_i, r_k)|) + euclidean * mean ||f_i - r_k||.

    f are a class's synthetic features, r its real ones; the first mean is over all n_y^2 ordered pairs, of which those
    of an image with itself count 0, the others over all pairs of a synthetic and a real image. The public code sums
    over classes, times 0.01, and leaves out pairs of a synthetic and a real image of the same number, which are pairs
    like any others here.

    Args:
        cosine: factor of both cosine parts; 1 as in the public code.
        euclidean: factor of the Euclidean part; 0.01 as there.
    """

    label = "diversity loss"
    unit = "(no unit)"
    min_per_class = 2

    def __init__(self, cosine: float = 1.0, euclidean: float = 0.01) -> None:
        if not (cosine >= 0 and euclidean >= 0 and 0 < cosine + euclidean < float("inf")):
            raise InputError(f"cosine and euclidean must be >= 0, finite and not both 0, got {cosine} and {euclidean}.")
        self.cosine, self.euclidean = cosine, euclidean

    def __call__(self, features: Tensor, groups: Groups) -> Tensor:
        """The loss, a scalar; small for images that differ among themselves and are like real ones."""
        real, rows = self.real, self.real.rows(groups)
        own, here = groups.by_class(features)
        others, there = (part[rows] for part in real.groups.by_class(real.features))
        directions = normalize(own, dim=-1, eps=1e-12), normalize(others, dim=-1, eps=1e-12)
        pairs = here[:, :, None] & here[:, None] & ~torch.eye(here.shape[1], dtype=torch.bool, device=here.device)
        among = torch.einsum("cid,cjd->cij", directions[0], directions[0]).abs() * pairs
        cross = here[:, :, None] & there[:, None]
        apart = (1 - torch.einsum("cid,cjd->cij", *directions)).abs() * cross
        squared = own.square().sum(-1)[:, :, None] + others.square().sum(-1)[:, None]
        squared = squared - 2 * torch.einsum("cid,cjd->cij", own, others)
        # An image that is the real one it started as is at distance 0, where there is no derivative: it counts as 0.
        distance = squared.clamp(min=1e-24).sqrt() * cross
        sizes, real_sizes = groups.counts.to(features), real.groups.counts[rows].to(features)
        by_class = self.cosine * among.sum((1, 2)) / sizes**2
        by_class = by_class + (self.cosine * apart + self.euclidean * distance).sum((1, 2)) / (sizes * real_sizes)
        return by_class.mean()
