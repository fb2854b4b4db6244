"""CMI around the centroids of real images, for hosts that never have two images of a class in a batch.

A host that recovers images class by class, or one image of each class at a time, never has two images of a class in a
batch, so that CMI within the batch is 0. Around a stored centroid R_y the quantity is

    (1/n) * sum_s KL(P_s || R_y(s)) = CMI of the batch + sum_y (n_y/n) * KL(Q_y || R_y),

Q_y being the batch's own centroids: never less than the batch's CMI, and equal to it where R_y = Q_y, with the same
gradient, as Q_y minimises a class's mean KL. Its derivative is dz_s = (1/(n T)) * P_s * (log P_s - log R_y - KL_s).
Centroids are stored as logs, as a mean of underflowed probabilities has none.
"""

from __future__ import annotations

from torch import Tensor

from ddplug.terms.base import Groups, register
from ddplug.terms.cmi import Softened, log_centroids, log_probabilities
from ddplug.terms.real import Real, RealTerm


@register("cmi_real")
class RealCentroids(Softened, RealTerm):
    """CMI around the centroids of real images under the same proxy, of which every proxy sees one fixed sample.

    Args:
        temperature: T > 0 in softmax(features / T).
    """

    label = "CMI around real centroids"
    unit = "nats"
    additive_over_classes = True
    keeps_real = True

    def __call__(self, features: Tensor, groups: Groups) -> Tensor:
        """The mean divergence, a scalar."""
        log_p = log_probabilities(features, self.temperature)
        return (log_p.exp() * (log_p - self.log_r(groups)[groups.index])).sum() / len(features)

    def value_and_grad(self, features: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
        """The same and its derivative in closed form, which is exactly 0 where every P is its class's centroid."""
        log_p = log_probabilities(features, self.temperature)
        p, log_ratio = log_p.exp(), log_p - self.log_r(groups)[groups.index]
        kl = (p * log_ratio).sum(-1, keepdim=True)
        return kl.sum() / len(features), p * (log_ratio - kl) / (len(features) * self.temperature)

    def against(self, real: Real) -> RealCentroids:
        """The same term, bound to the logs of the centroids of `real`, in the place of the features."""
        log_p = log_probabilities(real.features, self.temperature)
        return self.around(Real(log_centroids(log_p, real.groups), real.groups))

    def around(self, stored: Real) -> RealCentroids:
        """The same term, bound to the logs of centroids that are known already."""
        return super().against(stored)

    def log_r(self, groups: Groups) -> Tensor:
        """Logs of the real images' centroids, (c, d); `InputError` for a class without real images."""
        return self.real.features[self.real.rows(groups)]
