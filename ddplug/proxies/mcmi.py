"""MCMI: fine-tuning a network so that its outputs keep more of what distinguishes images of one class.

Maximum-CMI estimation of the Bayes posterior (arXiv 2401.08732) maximises log-likelihood and CMI together,

    loss = mean over the batch of -log P_s[y_s] - weight * KL(P_s || Q_y(s)),      P_s = softmax(logits of s),

around centroids Q_y, the means of P over a class's training images, which are held for an epoch. The publication's
teachers took a weight of 0.15, and serve as teachers of soft labels; see `ddplug.lab.relabel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddplug.datasets.images import ImageData
from ddplug.errors import InputError
from ddplug.networks.training import logits_of
from ddplug.terms.base import group
from ddplug.terms.cmi import cmi, log_centroids

SAMPLE = 10_000
"""Training images at most that centroids are made of, spread evenly over the data set."""
RATE = 0.1
"""Of the training's initial learning rate, where fine-tuning begins."""


@dataclass
class MaximumCMI:
    """Cross-entropy less `weight` times CMI around the epoch's centroids, in nats; a loss for `fit`.

    Raises `InputError` for a weight that is not in [0, 1): with 1 and more, the loss has no lower bound.
    """

    weight: float
    _log_centroids: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.weight < 1:
            raise InputError(
                f"the weight of MCMI must be in [0, 1), got {self.weight}; 0.15 is the publication's. From 1 on, the "
                "loss of an image that is classified wrongly has no lower bound."
            )

    @torch.no_grad()
    def begin_epoch(self, net: nn.Module, images: Tensor, labels: Tensor) -> None:
        """Make the centroids of `images` (n, c, h, w) with `labels` (n,) as `net` sees them now."""
        step = -(-len(images) // SAMPLE)
        logits, some = logits_of(net, images[::step]), labels[::step]
        groups = group(some, len(some), logits.device)
        # Uniform where none of a class's images is in the sample.
        found = logits.new_zeros(logits.shape[1], logits.shape[1]).log_softmax(1)
        found[groups.classes] = log_centroids(logits.log_softmax(1), groups)
        self._log_centroids = found

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of `logits` (n, classes) with `labels` (n,), a scalar."""
        loss = F.cross_entropy(logits, labels)
        if self.weight == 0 or self._log_centroids is None:
            return loss
        log_p = logits.log_softmax(1)
        kl = (log_p.exp() * (log_p - self._log_centroids[labels])).sum(1).mean()
        return loss - self.weight * kl


def judged(net: nn.Module, data: ImageData) -> dict[str, float]:
    """Accuracy in [0, 1] and CMI of logits in nats, on `data`'s test images."""
    logits = logits_of(net, data.test_images)
    labels = data.test_labels.to(logits.device)
    right = int((logits.argmax(1) == labels).sum())
    return {"test_accuracy": right / len(labels), "cmi": cmi(logits, labels).item()}


def settings_of(weight: float | None, epochs: int | None, trained: int, start: str | None) -> Mapping[str, Any]:
    """Return the fine-tuning entries of a pool's recipe, if any; `InputError` for invalid ones.

    `trained` are the epochs before it, `start` the digest of the pool whose networks it begins with, if it does.
    """
    if weight is None:
        if epochs is not None or start is not None:
            raise InputError("mcmi_epochs and start are of a fine-tuning: give its weight, mcmi=0.15 say (0 is plain).")
        return {}
    MaximumCMI(weight)
    epochs = max(1, trained // 4) if epochs is None else epochs
    if epochs < 1:
        raise InputError(f"mcmi_epochs must be at least 1, got {epochs}.")
    return {"mcmi": {"weight": float(weight), "epochs": epochs, "start": start}}
