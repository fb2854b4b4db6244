"""Checks for a pool that does not match the first views."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, comb

import torch
from torch import Tensor

from ddplug.datasets.spaces import AnySpace, InputSpace, too_bright
from ddplug.errors import InputError
from ddplug.proxies.pool import ProxyPool
from ddplug.proxies.proxy import Proxy

FLOOR = 1 / 3
"""Test accuracy below which a warning is issued: 0 is guessing, 1 is always right."""
CALLS = 20
"""Calls whose views are compared with real images."""
SPREAD = 1.6
"""Ratio of the standard deviations of views and real images above which a warning is issued."""
SEEN, AT_ONCE, RARE = 256, 32, 0.01
"""Number of the first views that a proxy classifies, and in a batch; probability below which errors are no accident."""


def doubts(
    pool: ProxyPool, views: Tensor, labels: Tensor, space: AnySpace | None, *, from_noise: bool = False
) -> list[str]:
    """Return warnings about the pool and the first views; waits for the device.

    Args:
        pool: the proxies.
        views: (n, c, h, w), of a host whose input space is `space`; None if not given.
        labels: (n,) class numbers.
        from_noise: the images begin as noise, of which a proxy recognises nothing.
    """
    found = [text for text in (_taken_for_own(pool, views, space), _outputs(pool, labels), _accuracy(pool)) if text]
    # Each of these would explain that nothing is recognised.
    if not found and not from_noise and (text := _recognised(pool, views, labels, space)):
        found.append(text)
    return found


def check_range(pool: ProxyPool, images: Tensor, space: AnySpace | None) -> None:
    """Raise `InputError` if images cannot be in `space`, or without any in the pool's; reads values."""
    if text := too_bright(images, space or pool.info.space):
        raise InputError(text)
    if text := _range(pool, images, space):
        raise InputError(
            f"the images {text}. Say what the images are: input_space='unit' (for [0, 1]), 'normalized:cifar10' or the "
            "like; `space` of a SyntheticSet; or --input-space of a command."
        )


def _taken_for_own(pool: ProxyPool, views: Tensor, space: AnySpace | None) -> str | None:
    if text := too_bright(views, space or pool.info.space):
        return text
    text = _range(pool, views, space)
    if text is None:
        return None
    return (
        f"the first images {text}. Their normalisation is not given, so the pool's is assumed. If it is another one, "
        "pass input_space='unit' (for [0, 1]), 'normalized:cifar10' or the like, or --input-space on the command line."
    )


def _range(pool: ProxyPool, images: Tensor, space: AnySpace | None) -> str | None:
    own = pool.info.space
    if space is not None or own is None or not images.numel():
        return None
    least, most = (float(end) for end in torch.aminmax(images.detach()))
    wrong = least < -0.5 or most > 1.5 if own == InputSpace.unit(own.channels) else least >= 0 and most <= 1
    return f"run from {least:.3g} to {most:.3g}, and these proxies were trained on images {own}" if wrong else None


class Likeness:
    """Mean and standard deviation of the first views, against real images that they are taken to share a space with.

    An augmentation may shift all views of a call alike, so that only the mean over many calls says something.
    """

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self._seen: list[Tensor] = []
        self._views = 0

    def add(self, views: Tensor) -> str | None:
        """Note the views of a call; return a warning after the last of the first calls if they are unlike."""
        if len(self._seen) == CALLS:
            return None
        shown = views.detach().float()
        self._seen.append(torch.stack([shown.mean((0, 2, 3)), shown.std((0, 2, 3))]))
        self._views += len(shown)
        if len(self._seen) != CALLS:
            return None
        found, wide = torch.stack(self._seen).mean(0).cpu()
        each, std = self.like.float().mean((2, 3)).cpu(), self.like.float().std((0, 2, 3)).cpu()
        mean, chance = each.mean(0), 4 * each.std(0) / self._views**0.5
        near = (found - mean).abs() <= std / 2 + chance
        if bool((near & (wide < SPREAD * std) & (std < SPREAD * wide)).all()):
            return None
        said = [", ".join(f"{value:.2f}" for value in values) for values in (found, wide, mean, std)]
        return (
            f"the first images have mean ({said[0]}) and standard deviation ({said[1]}), and the real data, in the "
            f"space that they are taken to share, ({said[2]}) and ({said[3]}). If the host normalises otherwise, pass "
            "input_space=ddplug.InputSpace.normalized(mean, std); if its images begin as noise, all may be well."
        )


def _outputs(pool: ProxyPool, labels: Tensor) -> str | None:
    if pool.info.class_names is not None or not len(labels):
        return None
    known = [count for proxy in pool if (count := proxy.outputs) is not None]
    if not known or int(labels.max()) < max(known):
        return None
    return (
        f"got labels up to {int(labels.max())}, but the proxies tell {max(known)} classes apart. A proxy says "
        "nothing useful of classes it does not know; use proxies of the host's own data."
    )


def _accuracy(pool: ProxyPool) -> str | None:
    for proxy, accuracy, classes in _known(pool):
        least = 1 / classes + FLOOR * (1 - 1 / classes)
        if accuracy < least:
            return (
                f"proxy '{proxy.name}' is right on {accuracy:.1%} of its test images, where guessing is right on "
                f"{1 / classes:.1%}; expected {least:.1%} or more. CMI under networks that know so little says "
                "little: train them longer (`ddplug pretrain` with more --epochs)."
            )
    return None


def _recognised(pool: ProxyPool, views: Tensor, labels: Tensor, space: AnySpace | None) -> str | None:
    """Return a warning if a proxy that knows the data is right on less than half as many views as on test images."""
    known = next(_known(pool), None)
    if known is None or not len(views):
        return None
    proxy, accuracy, _ = known
    some = slice(None, None, ceil(len(views) / SEEN))
    with torch.no_grad():
        answers = pool.features(proxy, views.detach()[some], space, "logit", AT_ONCE).argmax(1)
    right, shown = int((answers == labels[some].to(answers.device)).sum()), len(answers)
    expected = accuracy / 2
    odds = sum(comb(shown, k) * expected**k * (1 - expected) ** (shown - k) for k in range(right + 1))
    if odds >= RARE:
        return None
    return (
        f"proxy '{proxy.name}', which is right on {accuracy:.1%} of its test images, takes {right} of {shown} of the "
        "first views for what their labels say. Either the labels count the classes in another order than the pool, or "
        "the images are in another input space (input_space=), or they begin as noise, where CMI pulls the images of a "
        "class together before they show anything of it: see docs/guide.md, images that begin as noise."
    )


def _known(pool: ProxyPool) -> Iterator[tuple[Proxy, float, int]]:
    """Yield proxies whose test accuracy is known, the accuracy, and the number of classes."""
    for proxy in pool:
        accuracy = proxy.record.get("test_accuracy")
        classes = len(pool.info.class_names) if pool.info.class_names is not None else proxy.outputs
        if isinstance(accuracy, float) and classes and classes > 1:
            yield proxy, accuracy, classes
