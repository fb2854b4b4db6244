"""Judging a set: a fresh network is trained on it and tested on real images.

`ddplug evaluate`, comparisons and the demo all judge by `Recipe.judge`. They differ in one thing, where the numbers of
the augmentation are drawn from: `DSAViews` or `DSAPerNetwork`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ddplug.augment.dsa import DSA
from ddplug.datasets.images import ImageData
from ddplug.errors import InputError
from ddplug.networks.libraries import LIBRARIES
from ddplug.networks.training import Augment, accuracy, fit
from ddplug.networks.zoo import build, seeded
from ddplug.proxies.pretrain import MIRRORED

STANDARD_LR = 0.01


@dataclass(frozen=True)
class DSAViews:
    """DSA as hosts use it in evaluation: one operation per batch, and each image its own numbers.

    Call it as `views(images, generator)` on (n, c, h, w). Everything is drawn from the generator, of which a call
    takes one number: `ddplug evaluate` passes the one that also shuffles the images. Raises `InputError` for an unknown
    strategy.
    """

    strategy: str = "color_crop_cutout_flip_scale_rotate"

    def __post_init__(self) -> None:
        DSA(self.strategy)  # complains of what it does not know

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Views (n, c, h, w) of images (n, c, h, w)."""
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        views: Tensor = DSA(self.strategy, siamese=False, seed=seed)(images)
        return views

    def of_network(self, seed: int) -> Augment:
        """The augmentation of the network with that seed: the same for all."""
        return self


@dataclass(frozen=True)
class DSAPerNetwork(DSAViews):
    """The same augmentation, drawn from a generator of its own that has the network's seed, as comparisons draw it.

    Both are draws from one distribution. Which of them is taken decides the numbers, so that neither can be given up
    without making finished records those of another rule.
    """

    def of_network(self, seed: int) -> Augment:
        """A new augmentation with that seed, which counts on from batch to batch."""
        dsa = DSA(self.strategy, siamese=False, seed=seed)
        return lambda images, generator: dsa(images)


STANDARD_VIEWS = DSAViews()


def usual_strategy(dataset: str) -> str:
    """DSA's operations that judge a set of `dataset`: images are mirrored where the proxies' are in their training."""
    return f"color_crop_cutout_{'flip_' if dataset in MIRRORED else ''}scale_rotate"


@dataclass(frozen=True)
class Recipe:
    """Training recipe of the networks that judge a set; defaults are standard for up to 50 images per class.

    SGD with momentum 0.9 and weight decay 5e-4; `ddplug.networks.training.fit` says when the rate is divided by ten.
    """

    epochs: int = 1000
    lr: float = STANDARD_LR
    batch_size: int = 256
    augment: Augment | None = STANDARD_VIEWS

    def judge(
        self,
        images: Tensor,
        labels: Tensor,
        data: ImageData,
        make: Callable[[], nn.Module],
        *,
        seed: int,
        on_epoch: Callable[[nn.Module, int, float], object] | None = None,
    ) -> float:
        """The accuracy, in [0, 1], on all of `data`'s test images of a fresh network trained on a set.

        Args:
            images: (n, c, h, w), in `data.space`, on the device to train on.
            labels: int64 (n,), or probabilities, float (n, classes).
            data: the real images.
            make: builds the network.
            seed: of its weights, of the order of the images, and of the augmentation.
            on_epoch: called after each epoch with the network, the epochs done and the mean loss of the last.

        Raises `InputError` if the set does not fit `data`, and what `make` and `fit` raise.
        """
        check_fits(images, labels, data)
        with seeded(seed):
            net = make().to(images.device)
        augment = self.augment.of_network(seed) if isinstance(self.augment, DSAViews) else self.augment
        fit(
            net, images, labels, epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, augment=augment, seed=seed,
            on_epoch=None if on_epoch is None else partial(on_epoch, net),
        )  # fmt: skip
        return accuracy(net, data.test_images, data.test_labels)


def check_fits(images: Tensor, labels: Tensor, data: ImageData) -> None:
    """Raise `InputError` if images (n, c, h, w) with hard or soft labels are not of the shape and classes of `data`."""
    if tuple(images.shape[1:]) != data.shape:
        raise InputError(
            f"images of shape {tuple(images.shape)} do not fit {data.name}, whose images are {data.shape}. "
            "Name the data set that the set was distilled from."
        )
    classes = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1 if len(labels) else 0
    if (labels.ndim == 2 and classes != data.num_classes) or classes > data.num_classes:
        raise InputError(f"labels for {classes} classes do not fit {data.name}, which has {data.num_classes}")


def resolve(name: str) -> str:
    """The name that `build` knows an architecture by: ConvNet is convnet."""
    return name if name.startswith(LIBRARIES) else name.strip().lower()


def maker(name: str, data: ImageData, options: dict[str, Any]) -> Callable[[], nn.Module]:
    """A function that builds a network of that architecture for the images and classes of `data`."""
    channels, height, width = data.shape
    own = {"channels": channels, "size": (height, width)}
    return lambda: build(resolve(name), num_classes=data.num_classes, **own, **options)
