"""Writes a small expert buffer in the layout of MTT and DATM, with networks of ours, for their loops to read.

    python tests/upstream/make_buffer.py DATA FOLDER [EXPERTS] [EPOCHS]

DATA is a folder with CIFAR-10 in torchvision's layout, or in that of the tests. The experts, of model ConvNetW32, go to
FOLDER/CIFAR10_NO_ZCA/ConvNetW32. Unlike the hosts' own scripts it copies every snapshot, so it also works without CUDA.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from ddplug.datasets.images import ImageData, load
from ddplug.networks.training import fit
from ddplug.networks.zoo import build, seeded


def make_buffer(data: ImageData, folder: Path, *, experts: int = 2, epochs: int = 3) -> Path:
    """Train the experts and write the file; the folder that it is in."""

    def copied(network: nn.Module) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in network.parameters()]

    trajectories = []
    for seed in range(experts):
        with seeded(seed):
            network = build("convnet", num_classes=len(data.class_names), width=32)
        snapshots = [copied(network)]
        for epoch in range(epochs):
            fit(network, data.train_images, data.train_labels, epochs=1, momentum=0.0, weight_decay=0.0, batch_size=64,
                seed=1000 * seed + epoch)  # fmt: skip
            snapshots.append(copied(network))
        trajectories.append(snapshots)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(trajectories, folder / "replay_buffer_0.pt")
    return folder


if __name__ == "__main__":
    from drive import no_md5  # beside this file

    no_md5()
    source, target, *counts = sys.argv[1:]
    sizes = dict(zip(("experts", "epochs"), map(int, counts), strict=False))
    print(make_buffer(load("cifar10", source), Path(target) / "CIFAR10_NO_ZCA" / "ConvNetW32", **sizes))
