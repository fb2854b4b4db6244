"""Centroids of real images under the proxies of a pool, made in one pass over a data set of any size.

    add_centroids("pool", dataset)                                      # once; kept in the pool's folder
    ddplug.Regularizer("pool", 1, term="cmi_real", weighting="sustained")

Of every class only the sum of its images' probabilities is kept, as a log, so memory does not grow with the images and
no sum underflows.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from ddplug.datasets.images import ImageData
from ddplug.datasets.spaces import AnySpace, named_space
from ddplug.datasets.torch_sets import batches, fitting, space_of
from ddplug.errors import DataError, InputError
from ddplug.proxies.pool import ProxyPool
from ddplug.proxies.pool_files import write_centroids
from ddplug.proxies.representations import Representation
from ddplug.terms.base import group
from ddplug.terms.cmi import check_temperature, log_centroids, log_probabilities
from ddplug.terms.real import Real
from ddplug.utils.progress import Bars


def add_centroids(
    pool: ProxyPool | str | Path,
    data: ImageData | Dataset[object],
    *,
    representation: Representation = "logit",
    temperature: float = 1.0,
    space: AnySpace | str | None = None,
    batch_size: int = 256,
    workers: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> ProxyPool:
    """Compute the centroids R_y of real images under every proxy, for the term `cmi_real`.

    R_y is the mean of softmax(f(x) / T) over the images x of class y, and is kept as a log in float64.

    Args:
        pool: a pool, or its folder, into which the centroids are then written.
        data: an `ImageData`, whose training split is taken; or a map-style torch data set of (image, label) pairs, each
            of which is read once, random transforms left out.
        representation: f, logits or features.
        temperature: T.
        space: meaning of the images' numbers, if the `Normalize` among the transforms of `data` does not say.
        batch_size: images at a time.
        workers: processes that read images.
        device: to compute on.
        progress: show a progress bar.

    Returns:
        The pool, whose proxies have the centroids.

    Raises:
        DataError: data that have no numbered pairs, or images of several sizes.
        InputError: images whose space is not known, or labels that the pool does not have.
        ProxyError: images that the proxies do not take.
    """
    check_temperature(temperature)
    folder = None if isinstance(pool, ProxyPool) else Path(pool)
    pool = ProxyPool.of(pool)
    if isinstance(data, ImageData):
        space, data = data.space, TensorDataset(data.train_images, data.train_labels)
    own: AnySpace | None = None
    sums = [_Sums() for _ in pool]
    total, done = len(data), 0  # type: ignore[arg-type]
    with Bars(on=progress) as bars, torch.no_grad():
        try:
            for images, labels in batches(data, batch_size, workers):
                own = own or _space(pool, data, space, images)
                images, labels = images.to(device), labels.to(device)
                pool.check(images, own)
                pool.check_classes(labels)
                for proxy, of_proxy in zip(pool, sums, strict=True):
                    seen = proxy(pool.prepare(images, own), representation)
                    of_proxy.add(log_probabilities(seen.double(), temperature), labels)
                done += len(images)
                bars("centroids", done, total)
        except (TypeError, RuntimeError) as error:
            raise DataError(
                f"no images and labels could be read from {type(data).__name__} ({str(error).partition(chr(10))[0]}); "
                "expected (image, label) pairs of tensors of one size: in torchvision, transform=Compose([Resize(256), "
                "CenterCrop(224), ToTensor(), Normalize(mean, std)])."
            ) from error
    for proxy, of_proxy in zip(pool, sums, strict=True):
        proxy.centroids[representation, temperature] = of_proxy.centroids()
    if folder is not None:
        write_centroids(folder, pool.proxies)
    return pool


def _space(pool: ProxyPool, data: object, given: AnySpace | str | None, images: Tensor) -> AnySpace | None:
    """Return the space of `images`; None for a pool of unknown space, whose images are taken to be in it."""
    own = pool.info.space
    if own is None and given is None:
        return None
    if isinstance(given, str):
        return named_space(given, images.shape[1], own)
    found = given or fitting(space_of(data), images)
    if found is None:
        raise InputError(
            f"nothing says how the images of {type(data).__name__} are normalised. Pass space=, such as 'unit' or "
            "'normalized:cifar10'; or give the data set a transform that ends in torchvision's Normalize(mean, std)."
        )
    return found


class _Sums:
    """Logs of the sums of probabilities by class, and the numbers of images."""

    def __init__(self) -> None:
        self.logs = torch.empty(0, 0, dtype=torch.float32, device="cpu")
        self.counts = torch.empty(0, dtype=torch.float32, device="cpu")

    def add(self, log_p: Tensor, labels: Tensor) -> None:
        """Add images with log probabilities (n, d) and class numbers (n,)."""
        groups = group(labels, len(labels), log_p.device)
        new = int(groups.classes.max()) + 1 - len(self.counts)
        if new > 0:
            self.logs = torch.cat(
                [self.logs.to(log_p).view(-1, log_p.shape[1]), log_p.new_full((new, log_p.shape[1]), -torch.inf)]
            )
            self.counts = torch.cat([self.counts.to(groups.counts), groups.counts.new_zeros(new)])
        sums = log_centroids(log_p, groups) + groups.counts.to(log_p).log()[:, None]
        self.logs[groups.classes] = torch.logaddexp(self.logs[groups.classes], sums)
        self.counts[groups.classes] += groups.counts

    def centroids(self) -> Real:
        """The logs of the centroids, of the classes that have images."""
        classes = self.counts.nonzero().flatten().cpu()
        counts = self.counts.cpu()[classes]
        logs = self.logs.cpu()[classes] - counts.to(self.logs.dtype).log()[:, None]
        return Real.of_classes(logs, classes, counts)
