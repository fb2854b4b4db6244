"""Spread: Kullback-Leibler divergence between the images of a class, maximised (arXiv 2412.04748)."""

from __future__ import annotations

from torch import Tensor

from ddplug.terms.base import Groups, register
from ddplug.terms.cmi import Softened, log_probabilities


@register("spread")
class Spread(Softened):
    """Minus the mean over images of KL(P_i || P_j), averaged over the other images j of its class, in nats: <= 0.

    Minimising it pushes a class's images apart, the opposite of CMI. The publication (Decomposed Distribution Matching)
    takes nearest neighbours in the place of all other images.

    Args:
        temperature: T > 0 in softmax(features / T).
    """

    label = "spread"
    unit = "nats"
    min_per_class = 2
    additive_over_classes = True

    def __call__(self, features: Tensor, groups: Groups) -> Tensor:
        """Minus the spread, a scalar, in time linear in the number of images."""
        log_p = log_probabilities(features, self.temperature)
        p, sizes = log_p.exp(), groups.counts.to(log_p)
        own = groups.sum((p * log_p).sum(-1))
        # Sum over all pairs of a class; an image with itself adds 0.
        pairs = sizes * own - (groups.sum(p) * groups.sum(log_p)).sum(-1)
        return -(pairs / (sizes - 1).clamp(min=1)).sum() / len(features)
