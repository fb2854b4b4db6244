"""Class centralisation: the squared distance of features from their class's mean (IID, arXiv 2404.00563)."""

from __future__ import annotations

from torch import Tensor

from ddplug.terms.base import Groups, Term, register


@register("centralisation")
class Centralisation(Term):
    """Mean over images of ||f_s - mean of f over its class||^2.

    The publication takes the sum over all images, times 0.05: a lambda of 0.05 times the number of images here. Where
    P = softmax(f) is nearly uniform, CMI is close to this over 2 d for f less its mean over its d dimensions.
    """

    label = "class centralisation"
    unit = "squared features"
    min_per_class = 2
    additive_over_classes = True

    def __call__(self, features: Tensor, groups: Groups) -> Tensor:
        """The mean squared distance, a scalar."""
        return (features - groups.mean(features)[groups.index]).square().sum(-1).mean()

    def value_and_grad(self, features: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
        """In closed form: a class's mean minimises its own sum of squares, so its derivative cancels."""
        centred = features - groups.mean(features)[groups.index]
        return centred.square().sum(-1).mean(), centred * (2 / len(features))
