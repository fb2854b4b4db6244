"""CMI and NCMI as metrics of torchmetrics: batch by batch, over processes, with memory that does not grow.

Both follow from four sums per class, of P, log P, P log P and images, so that any number of batches and processes give
what `ddplug.cmi` and `ddplug.terms.separation.ncmi` give for all features at once.

    metric = CMIMetric(num_classes=10).to(device)
    for images, labels in loader:
        metric.update(network(images), labels)
    print(metric.compute())
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddplug.errors import DataError, InputError
from ddplug.terms.base import check_labels
from ddplug.terms.cmi import check_temperature
from ddplug.terms.separation import Separation, check_separation

try:
    from torchmetrics import Metric
except ImportError as error:
    raise DataError("ddplug's metrics need torchmetrics, which is not installed: pip install 'ddplug[logs]'") from error


class CMIMetric(Metric):
    """CMI of all features since the last `reset`, in nats: a float64 scalar.

    Args:
        num_classes: labels are 0 to num_classes - 1.
        num_features: d of the features (n, d); None for logits, num_classes of them.
        temperature: T > 0 in softmax(features / T).
        options: of `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    counts: Tensor
    p: Tensor
    log_p: Tensor
    p_log_p: Tensor

    def __init__(
        self, num_classes: int, num_features: int | None = None, *, temperature: float = 1.0, **options: Any
    ) -> None:
        super().__init__(**options)
        self.num_classes, self.num_features = num_classes, num_features or num_classes
        self.temperature = check_temperature(temperature)
        # A MetricCollection shares the sums of metrics whose states are equal after the first batch.
        self.add_state("shared_by", torch.tensor(self.temperature, dtype=torch.float64), dist_reduce_fx="max")
        table = torch.zeros(self.num_classes, self.num_features, dtype=torch.float64)
        self.add_state("counts", torch.zeros(self.num_classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("p", table.clone(), dist_reduce_fx="sum")
        self.add_state("log_p", table.clone(), dist_reduce_fx="sum")
        self.add_state("p_log_p", torch.zeros(self.num_classes, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take in a batch: features (n, d), floats, and class numbers (n,), integers.

        Raises `InputError` for other shapes or types, and for classes out of range.
        """
        if features.ndim != 2 or features.shape[1] != self.num_features or not features.is_floating_point():
            raise InputError(
                f"expected features as floats (n, {self.num_features}), got {features.dtype} of shape "
                f"{tuple(features.shape)}. num_features says how many an image has."
            )
        if not len(features):  # as a process may have it that lacks a share of the last batch
            return
        check_labels(labels, len(features))
        labels = labels.to(torch.int64)
        if not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise InputError(
                f"got labels from {int(labels.min())} to {int(labels.max())}, expected 0 to {self.num_classes - 1}. "
                "num_classes says how many there are."
            )
        log_p = (features.detach().double() / self.temperature).log_softmax(1)
        p = log_p.exp()
        index = labels.to(features.device).long()
        self.counts.index_add_(0, index, torch.ones_like(index, dtype=torch.float64))
        self.p.index_add_(0, index, p)
        self.log_p.index_add_(0, index, log_p)
        self.p_log_p.index_add_(0, index, (p * log_p).sum(1))

    def compute(self) -> Tensor:
        """CMI in nats; `InputError` before the first image."""
        if not bool(self.counts.sum() > 0):
            raise InputError("CMI of no images is asked for; call update(features, labels) first.")
        return self._cmi()

    def _cmi(self) -> Tensor:
        """Sum over classes of KL(P || Q), over the images: negative entropies of the images less those of Q."""
        log_q = self._q().clamp_min(torch.finfo(torch.float64).tiny).log()
        return ((self.p_log_p.sum() - (self.p * log_q).sum()) / self.counts.sum()).clamp_min(0)

    def _q(self) -> Tensor:
        """The centroids (classes, features); zero for a class without images."""
        return self.p / self.counts.clamp_min(1)[:, None]


class NCMIMetric(CMIMetric):
    """CMI over a separation between classes, without unit; see `ddplug.terms.separation.ncmi`.

    Args:
        separation: what it is divided by, as in `ddplug.terms.separation.class_separation`.
        num_classes, num_features, temperature, options: as of `CMIMetric`.
    """

    def __init__(
        self, num_classes: int, num_features: int | None = None, *, separation: Separation = "cross_entropy",
        temperature: float = 1.0, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(num_classes, num_features, temperature=temperature, **options)
        check_separation(separation)
        self.separation = separation

    def compute(self) -> Tensor:
        """NCMI; `InputError` if fewer than two classes had images."""
        there = self.counts > 0
        if int(there.sum()) < 2:
            raise InputError("a separation between classes needs images of at least two classes; NCMI has seen fewer.")
        return self._cmi() / self._separation(there)

    def _separation(self, there: Tensor) -> Tensor:
        images = self.counts.sum()
        if self.separation == "centroid_kl":
            q, others = self._q()[there], images - self.counts[there]
            cross = (q * (self.log_p[there] - self.log_p.sum(0))).sum()
            own: Tensor = (-torch.special.entr(q).sum(1) * others).sum()
            return (own + cross) / others.sum()
        pairs = images.square() - self.counts.square().sum()
        cross = (self.p * self.log_p).sum() - (self.p.sum(0) * self.log_p.sum(0)).sum()
        if self.separation == "kl":
            cross = cross + (self.p_log_p * (images - self.counts)).sum()
        separation: Tensor = cross / pairs
        return separation
