"""Writes a part of CIFAR-10 in torchvision's layout, for the upstream code to read.

    python tests/upstream/make_data.py SOURCE FOLDER [PER_CLASS]

SOURCE is anything that `ddplug.datasets.load("cifar10", SOURCE)` takes. The md5 sums are not the original release's, so
a reader has to be told not to look at them.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import torch

from ddplug.datasets.images import load


def main(source: str, folder: str, per_class: int = 200) -> None:
    data = load("cifar10", source)
    out = Path(folder) / "cifar-10-batches-py"
    out.mkdir(parents=True, exist_ok=True)
    splits = (
        ("data_batch_{}", 5, data.train_images, data.train_labels, per_class),
        ("test_batch", 1, data.test_images, data.test_labels, max(10, per_class // 10)),
    )
    for name, parts, images, labels, count in splits:
        chosen = torch.cat([(labels == label).nonzero().flatten()[:count] for label in range(10)])
        chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))]
        pixels = (data.space.to_unit(images[chosen]) * 255).round().clamp(0, 255).byte().flatten(1)
        for number in range(parts):
            held = {"data": pixels[number::parts].numpy(), "labels": labels[chosen][number::parts].tolist()}
            (out / name.format(number + 1)).write_bytes(pickle.dumps(held))
    (out / "batches.meta").write_bytes(pickle.dumps({"label_names": list(data.class_names)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:4]))
