"""A host of one's own: an adapter for a loop that somebody else wrote, found by `ddplug.attach` through its name.

In a package of yours the adapter is announced in its pyproject.toml,

    [project.entry-points."ddplug.adapters"]
    pixels = "my_package.adapters:Pixels"

and users write `ddplug.attach(trainer, weight=0.5)` without knowing where the images pass. Here it is registered by
hand. CMI is that of the logits, which says more than that of the features about so small a network.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

import ddplug
from ddplug import adapters, datasets, networks
from ddplug.attaching.hooks import intercept
from ddplug.networks import training


class PixelMatching:
    """The loop: matches the mean picture of each class. It knows nothing of ddplug."""

    def __init__(self, data: datasets.ImageData, ipc: int) -> None:
        self.real, self.real_labels = data.train_images, data.train_labels
        start, self.classes = datasets.random_real(data, ipc, torch.Generator().manual_seed(0))
        self.pixels = start.requires_grad_()
        self.optimizer = torch.optim.SGD([self.pixels], lr=0.02)

    def wobble(self, which: torch.Tensor) -> torch.Tensor:
        """The images number `which`, a little shifted: what this loop has for an augmentation."""
        return self.pixels[which].roll(1, 3)

    def step(self) -> float:
        """One step over all classes."""
        loss = torch.zeros(())
        for c in range(10):
            views = self.wobble((self.classes == c).nonzero().flatten())
            loss = loss + (views.mean(0) - self.real[self.real_labels == c].mean(0)).square().sum()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.item()


class Pixels:
    """The adapter: how to recognise the loop, where its views pass, and which labels they have."""

    def recognises(self, host: object) -> bool:
        """Is it one of these loops? Must be cheap and change nothing."""
        return isinstance(host, PixelMatching)

    def install(self, host: Any, regularizer: ddplug.Regularizer) -> Callable[[], None]:
        """Put the layer on what `wobble` returns; what is returned takes it away again."""

        def after(args: tuple[Any, ...], kwargs: dict[str, Any], views: torch.Tensor) -> torch.Tensor:
            return regularizer(views, host.classes[args[0]])

        return intercept(host, "wobble", after=after)


def main() -> None:
    """Distil handwritten digits with and without CMI."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=30)
    steps = parser.parse_args().steps
    adapters.register("pixels")(Pixels)
    data = datasets.load("digits")
    proxy = networks.build("convnet", num_classes=10, channels=1, size=[8, 8], width=16)
    training.fit(proxy, data.train_images, data.train_labels, epochs=20, lr=0.05, batch_size=64, seed=0)
    for weight in (0, 0.5):
        trainer = PixelMatching(data, ipc=5)
        with ddplug.attach(trainer, weight, proxies=proxy, representation="logit"):
            for _ in range(steps):
                trainer.step()
        print(f"weight {weight}: CMI {ddplug.CMI(proxy, 'logit')(trainer.pixels, trainer.classes).item():.4f} nats")


if __name__ == "__main__":
    main()
