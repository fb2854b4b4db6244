"""The yardsticks: the published recipe of arXiv 2412.09945 in our own straightforward words, and the floor.

The recipe: at every step a network is built, the weights of one of the pool are read from its file, and the gradient of
CMI with respect to the images goes through softmax, class means and `kl_div` by autograd, the whole batch at once, in
train mode and fp32. Its weights are frozen here, as they are there; without that it would be half as slow again.

The floor: one bare forward and backward pass of one network with respect to its input.
"""

from __future__ import annotations

from pathlib import Path

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from ddplug.networks.precision import Precision, layers
from ddplug.networks.zoo import Network, build


class Recipe:
    """The published step on a folder of files, one state dictionary each."""

    def __init__(self, folder: Path, device: torch.device, classes: int = 10) -> None:
        self.files = sorted(folder.glob("*.pt"))
        self.device, self.classes, self.steps = device, classes, 0

    @staticmethod
    def save(networks: list[nn.Module], folder: Path) -> None:
        """Write the pool as the recipe reads it."""
        for number, network in enumerate(networks):
            torch.save(network.state_dict(), folder / f"{number:03d}.pt")

    def step(self, images: Tensor) -> Tensor:
        """Gradient of CMI on `images`, (n, c, h, w), which are sorted by class and balanced."""
        network = build("resnet18").to(self.device)
        assert isinstance(network, Network)
        file = self.files[self.steps % len(self.files)]
        network.load_state_dict(torch.load(file, map_location=self.device, weights_only=True))
        network.train().requires_grad_(False)
        self.steps += 1
        leaf = images.detach().requires_grad_()
        features = network.embed(leaf)
        centroids = reduce(F.softmax(features, 1), "(c image) d -> c 1 d", "mean", c=self.classes)
        log_p = rearrange(F.log_softmax(features, 1), "(c image) d -> c image d", c=self.classes)
        flat = rearrange(centroids.log().expand_as(log_p), "c image d -> (c image) d")
        loss = F.kl_div(flat, rearrange(log_p, "c image d -> (c image) d"), reduction="batchmean", log_target=True)
        return torch.autograd.grad(loss, leaf)[0]


def floor(network: nn.Module, images: Tensor, precision: Precision = "exact") -> Tensor:
    """The gradient of something that costs nothing, in the layers' precision."""
    assert isinstance(network, Network)
    leaf = images.detach().requires_grad_()
    with layers(images.device, precision):
        features = network.embed(leaf)
    return torch.autograd.grad(features, leaf, torch.ones_like(features))[0]
