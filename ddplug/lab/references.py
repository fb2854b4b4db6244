"""References: real images in the place of distilled ones, judged like any set and paired by seed.

- `random`: as many random training images of every class, a draw per seed.
- `kmeans`: of every class, the images nearest to the centres of k-means, in the space of the pixels;
  `kmeans:PROXY` in the features of a proxy of the regulariser's pool, by its name.
- `start`: the images that our own trainer starts from, as they are before distilling.
"""

from __future__ import annotations

import importlib.util
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddplug.datasets.images import ImageData, random_real
from ddplug.datasets.synthetic import SyntheticSet, load_set, save_set
from ddplug.errors import DataError, InputError
from ddplug.lab.own_trainer import DONE, set_name, write_done
from ddplug.proxies.pool import Proxy, ProxyPool

KINDS = ("random", "kmeans", "start")
_RANDOM = 0x5EED_0000
"""Added to the seed of a random reference, or it would be where our trainer starts."""


@dataclass(frozen=True)
class Reference:
    """One way to choose real images."""

    kind: str
    proxy: str | None = None
    """In whose features k-means is made; None for pixels."""

    @property
    def name(self) -> str:
        """Name in files and tables, e.g. "kmeans-resnet18-0"."""
        return self.kind if self.proxy is None else f"{self.kind}-{re.sub(r'[^A-Za-z0-9_.+-]', '-', self.proxy)}"


@dataclass(frozen=True)
class ReferenceRun:
    """A reference and a seed."""

    reference: Reference
    seed: int

    @property
    def name(self) -> str:
        """Name in files, e.g. "random-seed0"."""
        return f"{self.reference.name}-seed{self.seed}"

    def described(self) -> dict[str, Any]:
        """Return the entry of `compare.json`, without the sets."""
        return {
            "name": self.name, "arm": self.reference.name, "weight": None, "views": None, "seed": self.seed,
        }  # fmt: skip


def read_references(text: str) -> list[Reference]:
    """The references of a command line, "random,kmeans,kmeans:PROXY"; `InputError` for anything else."""
    found: dict[str, Reference] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        kind, colon, proxy = part.partition(":")
        if kind not in KINDS or (colon and (kind != "kmeans" or not proxy)):
            raise InputError(f"references are {', '.join(KINDS)} or kmeans:PROXY, by commas, got {part!r}.")
        reference = Reference(kind, proxy or None)
        found.setdefault(reference.name, reference)
    return list(found.values())


def check_references(references: Sequence[Reference], host: str, pool: ProxyPool) -> None:
    """Raise for references that could not be made, before anything is done.

    `InputError` for the start of a host, which is not known, and for a proxy that is not in the pool; `DataError` where
    scikit-learn is missing.
    """
    for reference in references:
        if reference.kind == "start" and host != "own":
            raise InputError(f"what {host} starts from is not known; leave start out, or take random.")
        if reference.kind == "kmeans" and importlib.util.find_spec("sklearn") is None:
            raise DataError("k-means needs scikit-learn, which is not installed: pip install 'ddplug[demo]'.")
        if reference.proxy is not None:
            _proxy(reference.proxy, pool)


def make_reference(run: ReferenceRun, like: Path, folder: Path, data: ImageData, pool: ProxyPool) -> None:
    """Leave in `folder` the set and `distilled.json`, or do nothing if that is there.

    `like` is a distilled set: as many images per class are chosen. Raises `InputError` if its classes differ in size.
    """
    if (folder / DONE).is_file():
        return
    began = time.perf_counter()
    counts = torch.bincount(load_set(like).classes, minlength=data.num_classes).tolist()
    if len(set(counts)) != 1:
        raise InputError(
            f"references have as many images of every class, and the set in '{like}' has {min(counts)} to "
            f"{max(counts)}; leave the references out."
        )
    images, labels = _chosen(run, counts[0], data, pool)
    save_set(SyntheticSet(images, labels, data.space, data.name), folder / set_name(0))
    times = {"seconds": time.perf_counter() - began, "extra_memory": None}
    write_done(folder, [{"iteration": 0, "lambda": None, "share": None, "times": times}], 0)


def _chosen(run: ReferenceRun, ipc: int, data: ImageData, pool: ProxyPool) -> tuple[Tensor, Tensor]:
    """Images (classes * ipc, c, h, w) sorted by class, and their labels."""
    seed = run.seed if run.reference.kind == "start" else _RANDOM + run.seed
    images, labels = random_real(data, ipc, torch.Generator().manual_seed(seed))  # refuses classes that are too small
    if run.reference.kind != "kmeans":
        return images, labels
    chosen = []
    for label in range(data.num_classes):
        members = (data.train_labels == label).nonzero().flatten()
        features = _features(data.train_images[members], run.reference.proxy, data, pool)
        chosen.append(members[nearest(features, centres(features, ipc, run.seed)).to(members.device)])
    indices = torch.cat(chosen)
    return data.train_images[indices], data.train_labels[indices]


def centres(features: Tensor, count: int, seed: int) -> Tensor:
    """The centres (count, d) of k-means of `features`, (n, d), by scikit-learn from the start that `seed` draws."""
    from sklearn.cluster import KMeans

    fitted = KMeans(n_clusters=count, n_init=1, random_state=seed).fit(features.numpy())
    return torch.from_numpy(fitted.cluster_centers_).to(features)


def nearest(features: Tensor, points: Tensor) -> Tensor:
    """Return, for each of `points`, (k, d), in turn, the nearest row of `features`, (n, d); no row twice."""
    distances = torch.cdist(features, points)
    chosen: list[int] = []
    for centre in range(len(points)):
        distances[chosen, centre] = torch.inf
        chosen.append(int(distances[:, centre].argmin()))
    return torch.tensor(chosen, device="cpu")


@torch.no_grad()
def _features(images: Tensor, proxy: str | None, data: ImageData, pool: ProxyPool) -> Tensor:
    """(n, d) on the CPU: the pixels, or what a proxy makes of them."""
    if proxy is None:
        return images.flatten(1).float().cpu()
    return pool.features(_proxy(proxy, pool), images, data.space).float().cpu()


def _proxy(name: str, pool: ProxyPool) -> Proxy:
    for proxy in pool.proxies:
        if proxy.name == name:
            return proxy
    known = ", ".join(proxy.name for proxy in pool.proxies)
    raise InputError(f"there is no proxy called {name!r} in the pool to make k-means in; it has {known}.")
