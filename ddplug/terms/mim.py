"""Mutual information between synthetic and real features, by a contrastive bound (MIM4DD, arXiv 2312.16627)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from ddplug.errors import InputError
from ddplug.terms.base import Groups, register
from ddplug.terms.cmi import check_temperature
from ddplug.terms.real import RealTerm


@register("mim")
class MutualInformation(RealTerm):
    """NCE loss whose critic tells real images of the own class from others; minimising it raises a bound on I(S; R).

    With unit features f of a synthetic and r of a real image, h = exp(<f, r> / tau) / (exp(<f, r> / tau) + N / M), of M
    real images the N of other classes, the loss is the mean over synthetic images of
    -(mean over its class's real images of log h) - (sum over the N others of log(1 - h)), in nats. No code is public:
    the critic is the one of contrastive representation distillation (arXiv 1910.10699), which the paper builds on.

    Args:
        tau: temperature of the critic, > 0; 0.07 as there.
    """

    contrasts = True
    label = "MIM loss"
    unit = "nats"

    def __init__(self, tau: float = 0.07) -> None:
        self.tau = check_temperature(tau)

    def __call__(self, features: Tensor, groups: Groups) -> Tensor:
        """The loss, a scalar."""
        real, rows = self.real, self.real.rows(groups)
        if len(real.groups.classes) < 2:
            raise InputError(
                f"mim contrasts with real images of other classes, and all given are of class "
                f"{int(real.groups.classes[0])}; give real images of several classes."
            )
        scores = normalize(features, dim=-1, eps=1e-12) @ normalize(real.features, dim=-1, eps=1e-12).T / self.tau
        same = real.groups.index == rows[groups.index][:, None]
        positives = real.groups.counts[rows][groups.index].to(features)
        negatives = len(real.features) - positives
        # log h = logsigmoid(score - log(N / M)), and 1 - h turns the sign.
        margin = scores - (negatives / len(real.features)).log()[:, None]
        pull = torch.where(same, logsigmoid(margin), 0.0).sum(1) / positives
        push = torch.where(same, 0.0, logsigmoid(-margin)).sum(1)
        return -(pull + push).mean()
