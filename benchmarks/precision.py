"""Distance of the gradient in reduced precision from that in exact fp32.

    python benchmarks/precision.py --pool POOL --data cifar10 --data-path ... --out precision.json

Cosine and ratio of norms of CMI's gradient on real images, ten per class, under each network of a trained pool;
without --pool, under networks as they are before training and on noise, where ReLUs are hit hardest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import measuring
import torch
from torch import Tensor

from ddplug import datasets
from ddplug.core.options import Compute
from ddplug.core.step import PieceByPiece
from ddplug.networks.precision import Precision
from ddplug.proxies.pool import Proxy, ProxyPool
from ddplug.terms.base import group
from ddplug.terms.cmi import CMI

REDUCED: tuple[Precision, ...] = ("auto", "bf16")


def gradient(proxy: Proxy, images: Tensor, labels: Tensor, precision: Precision) -> Tensor:
    """CMI's gradient on the images, flattened, float64."""
    step = PieceByPiece("feature", CMI(), lambda views: views, Compute(precision=precision))
    return step(proxy, images, group(labels, len(images), images.device))[1].double().flatten()


def main(given: Sequence[str] | None = None) -> None:
    """Print the table, and write it as JSON if asked to."""
    parser = measuring.arguments(__doc__)
    parser.add_argument("--pool", type=Path)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-path", type=Path)
    options = parser.parse_args(given)
    device = measuring.start(options)
    if options.pool:
        pool, data = ProxyPool.load(options.pool), datasets.load(options.data, options.data_path)
        first = [(data.train_labels == label).nonzero()[:10, 0] for label in range(data.num_classes)]
        chosen = torch.cat(first)
        images, labels = data.train_images[chosen].to(device), data.train_labels[chosen].to(device)
    else:
        pool = measuring.random_pool(2)
        images, labels = measuring.random_images(100, device)
    pool.to(device)
    rows = []
    print(f"{'proxy':16}" + "".join(f"{name + ' cosine':>16}{'norm':>8}" for name in REDUCED))
    for proxy in pool:
        exact = gradient(proxy, images, labels, "exact")
        row: dict[str, dict[str, float]] = {}
        for precision in REDUCED:
            low = gradient(proxy, images, labels, precision)
            cosine = torch.cosine_similarity(low, exact, 0).item()
            row[precision] = {"cosine": cosine, "norm": (low.norm() / exact.norm()).item()}
        rows.append({"proxy": proxy.name, **row})
        figures = "".join(f"{row[name]['cosine']:16.6f}{row[name]['norm']:8.4f}" for name in REDUCED)
        print(f"{proxy.name:16}{figures}")
    measuring.write(options.out, device, trained=bool(options.pool), rows=rows)


if __name__ == "__main__":
    main()
