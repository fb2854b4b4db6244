"""NCMI as a term: CMI over the separation between classes, which shrinks classes and pushes them apart."""

from __future__ import annotations

from torch import Tensor

from ddplug.terms.base import Groups, register
from ddplug.terms.cmi import Softened, class_sums
from ddplug.terms.separation import Separation, check_separation, separation_of


@register("ncmi")
class NormalizedCMI(Softened):
    """CMI / Gamma, without unit: arXiv 2309.09123; as a training loss arXiv 2601.02543.

    A round of one class has no separation, and raises `InputError`.

    Args:
        temperature: T > 0 in softmax(features / T).
        separation: what Gamma is; see `ddplug.terms.separation.class_separation`.
    """

    label = "NCMI"
    unit = "(no unit)"
    min_per_class = 2

    def __init__(self, temperature: float = 1.0, separation: Separation = "cross_entropy") -> None:
        super().__init__(temperature)
        self.separation = check_separation(separation)

    def __call__(self, features: Tensor, groups: Groups) -> Tensor:
        """NCMI of `features` (n, d), a scalar."""
        cmi = class_sums(features, groups, self.temperature).sum() / len(features)
        return cmi / separation_of(features, groups, self.separation, self.temperature)
