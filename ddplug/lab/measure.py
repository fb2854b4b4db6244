"""Measuring a set under a pool: CMI, NCMI and every class's own, averaged over the pool's proxies."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddplug.datasets.by_class import ByClass
from ddplug.datasets.images import ImageData
from ddplug.datasets.spaces import AnySpace
from ddplug.errors import ProxyError
from ddplug.lab.meaning import seen_by
from ddplug.proxies.doubts import check_range
from ddplug.proxies.pool import ProxyPool
from ddplug.proxies.representations import PLURAL, Representation, check_representation
from ddplug.terms.base import Term, group
from ddplug.terms.cmi import check_temperature, class_sums
from ddplug.terms.real import Real
from ddplug.terms.separation import Separation, check_separation, class_separation

if TYPE_CHECKING:
    from ddplug.datasets.synthetic import SyntheticSet  # brings safetensors along


@dataclass(frozen=True)
class Measurement:
    """Measurement of a set under a pool. Information is in nats; the means are over proxies."""

    images: int
    proxies: int
    representation: Representation
    temperature: float
    cmi: float
    cmi_std: float
    """Standard deviation between proxies; 0 for one."""
    separation_name: Separation
    """What `separation` and `ncmi` are made with; see `ddplug.terms.separation.class_separation`."""
    separation: float | None
    """None if there is only one class."""
    ncmi: float | None
    """CMI / separation."""
    per_class: dict[int, float]
    """CMI of each class by its label."""
    recognised: float | None
    """Share of images, in [0, 1], whose largest logit is that of their class; None if proxies know fewer classes."""
    confidence: float | None
    """Mean probability of an image's class, in [0, 1], or None likewise."""

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)


@torch.no_grad()
def measure(
    proxies: object,
    images: Tensor,
    labels: Tensor,
    *,
    representation: Representation = "logit",
    temperature: float = 1.0,
    separation: Separation = "cross_entropy",
    input_space: AnySpace | str | None = None,
) -> Measurement:
    """CMI, NCMI and per-class CMI of `images` (n, c, h, w) with `labels` (n,), under every proxy of a pool.

    By default CMI is that of a history, unless the weighting was "absolute", which is of features. Raises what
    `ddplug.CMI` raises; measures sets of one image per class too, whose CMI is 0.
    """
    pool = ProxyPool.of(proxies)
    check_separation(separation)
    check_temperature(temperature)
    groups = group(labels, len(images), images.device)
    several = len(groups.classes) > 1
    sums, separations, recognised = [], [], []
    for features in _features(pool, images, representation, input_space):
        sums.append(class_sums(features, groups, temperature))
        if several:
            separations.append(class_separation(features, labels, kind=separation, temperature=temperature))
        if representation == "logit":
            recognised.append(_recognised(features, labels))
    known = _means(recognised) if recognised else recognition(pool, images, labels, input_space)
    by_proxy = torch.stack(sums).sum(1) / len(images)
    per_class = torch.stack(sums).mean(0) / groups.counts
    gamma = torch.stack(separations) if several else None
    return Measurement(
        images=len(images),
        proxies=len(pool),
        representation=representation,
        temperature=temperature,
        cmi=by_proxy.mean().item(),
        cmi_std=by_proxy.std().item() if len(pool) > 1 else 0.0,
        separation_name=separation,
        separation=gamma.mean().item() if gamma is not None else None,
        ncmi=(by_proxy / gamma).mean().item() if gamma is not None else None,
        per_class=dict(zip(groups.classes.tolist(), per_class.tolist(), strict=True)),
        recognised=known[0],
        confidence=known[1],
    )


@torch.no_grad()
def recognition(
    pool: ProxyPool, images: Tensor, labels: Tensor, space: AnySpace | str | None
) -> tuple[float | None, float | None]:
    """`Measurement.recognised` and `Measurement.confidence` of images (n, c, h, w) with labels (n,)."""
    return _means([_recognised(logits, labels) for logits in _features(pool, images, "logit", space)])


def _means(recognised: list[Tensor]) -> tuple[float | None, float | None]:
    share, confidence = (None if math.isnan(mean) else mean for mean in torch.stack(recognised).mean(0).tolist())
    return share, confidence


def _recognised(logits: Tensor, labels: Tensor) -> Tensor:
    """The share of images of the right largest logit, and the mean probability of the class, (2,); NaN if unknown."""
    if logits.shape[1] <= int(labels.max()):
        return logits.new_full((2,), math.nan)
    own = logits.softmax(1).gather(1, labels[:, None].long())
    return torch.stack([(logits.argmax(1) == labels).to(logits).mean(), own.mean()])


@torch.no_grad()
def measure_term(
    term: Term,
    pool: ProxyPool,
    synthetic: SyntheticSet,
    data: ImageData | None = None,
    *,
    representation: str = "logit",
) -> float:
    """The mean of a term of a set over a pool's proxies, in the unit of the term.

    A term that compares with real images is given some of `data`'s training images. A term that is defined on one
    representation is measured on that one. Raises what `measure` raises.
    """
    how = check_representation(term.representation or representation)
    images = synthetic.images
    seen = seen_by(pool, synthetic, data=data).space
    space = pool.derived_space(seen)
    groups = group(synthetic.classes, len(images), images.device)
    features = _features(pool, images, how, space)
    if not term.needs_real or data is None:
        values = [term(each, groups) for each in features]
    else:
        real, labels = some_real(data, seen or pool.info.space or data.space)
        others = group(labels, len(real), images.device)
        pairs = zip(features, _features(pool, real.to(images), how, space), strict=True)
        values = [term.against(Real(theirs, others))(each, groups) for each, theirs in pairs]
    return torch.stack(values).mean().item()


REAL_PER_CLASS = 100
"""Real images of a class that a set is compared with when a term is measured that compares."""


def some_real(data: ImageData, space: AnySpace) -> tuple[Tensor, Tensor]:
    """The first training images of every class of `data`, (m, c, h, w) in `space`, and their labels (m,)."""
    chosen = ByClass(data.train_labels).first(REAL_PER_CLASS)
    return data.space.convert(data.train_images[chosen], space), data.train_labels[chosen]


def _features(
    pool: ProxyPool, images: Tensor, representation: Representation, input_space: AnySpace | str | None
) -> Iterator[Tensor]:
    """Yield every proxy's features of the images, (n, d), in float64: terms are differences of close numbers."""
    found = pool.space_of(input_space)
    check_representation(representation)
    pool.check(images, found)
    check_range(pool, images, found)
    for proxy in pool:
        features = pool.features(proxy, images, found, representation)
        if not torch.isfinite(features).all():
            raise ProxyError(
                f"proxy '{proxy.name}' gives {PLURAL[representation]} that are not finite for this set. Check "
                "its images for NaN, and its input space against the pool's."
            )
        yield features.double()
