"""A small distribution-matching trainer: DM ("Dataset Condensation with Distribution Matching", WACV 2023).

Every iteration draws a random, untrained ConvNet and a batch of real images, shows both sets to it under one and the
same augmentation, and moves the synthetic images so that each class's mean feature comes closer to the real one's.
It knows nothing of CMI: `ddplug.attach(trainer)` finds `augment` and its labels as it would in anybody's trainer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from einops import reduce
from torch import Tensor

from ddplug.augment.dsa import DSA
from ddplug.augment.params import Params
from ddplug.datasets.by_class import ByClass
from ddplug.datasets.images import ImageData, random_real
from ddplug.errors import InputError
from ddplug.networks.zoo import Network, build, seeded

Init = Literal["real", "noise"]


def check_init(init: str) -> str:
    """`init`, or `InputError` if images do not start like that."""
    if init not in get_args(Init):
        raise InputError(f"init must be {' or '.join(get_args(Init))}, got {init!r}.")
    return init


class DistributionMatching:
    """Distils `data` into `ipc` synthetic images per class, which start as random real ones, or as noise.

    Args:
        data: the real data.
        ipc: images per class.
        strategy: augmentations, for `ddplug.augment.DSA`; one of them is drawn per iteration, for both sets.
        batch_real: real images per class and iteration.
        lr: of the synthetic images (SGD with momentum 0.5, as published).
        architecture: of the random networks, a name for `ddplug.networks.build`.
        options: for the architecture, e.g. {"width": 64}.
        init: start of the images, "real" or "noise": standard normal numbers in the data's input space.
        seed: of all randomness in here, none of which is global.
        device: to run on.
    """

    def __init__(
        self,
        data: ImageData,
        ipc: int = 10,
        *,
        strategy: str = "color_crop_cutout_flip_scale_rotate",
        batch_real: int = 256,
        lr: float = 1.0,
        architecture: str = "convnet",
        options: dict[str, Any] | None = None,
        init: Init = "real",
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.data = data.to(device)
        self.ipc, self.batch_real, self.architecture, self.options = ipc, batch_real, architecture, options or {}
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)
        self.dsa = DSA(strategy, seed=seed)
        start, self.labels = random_real(self.data, ipc, self.generator)
        if check_init(init) == "noise":
            start = torch.randn(start.shape, generator=self.generator, dtype=torch.float32, device="cpu").to(start)
        self.images = start.clone().requires_grad_()
        self.optimizer = torch.optim.SGD([self.images], lr=lr, momentum=0.5)
        self.iteration = 0
        self._by_class = ByClass(self.data.train_labels, self.data.num_classes)

    def augment(self, images: Tensor, labels: Tensor, params: Params) -> Tensor:
        """Views of `images` under the iteration's augmentation; where a regulariser can be attached."""
        views: Tensor = self.dsa(images, params=params)
        return views

    def loss(self, embed: Callable[[Tensor], Tensor], real: Tensor, views: Tensor) -> Tensor:
        """Squared distance of the classes' mean features, summed over classes; both sets are sorted by class."""
        classes = self.data.num_classes
        with torch.no_grad():
            target = reduce(embed(real), "(c image) feature -> c feature", "mean", c=classes)
        mean = reduce(embed(views), "(c image) feature -> c feature", "mean", c=classes)
        return (target - mean).square().sum()

    def step(self) -> Tensor:
        """One iteration; returns the loss."""
        embed = self._random_network()
        real, real_labels = self._real_batch()
        params = self.dsa.draw(self.images)
        with torch.no_grad():
            real_views = self.augment(real, real_labels, params)
        loss = self.loss(embed, real_views, self.augment(self.images, self.labels, params))
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.iteration += 1
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a continued run: the images, their optimizer, both generators, the iteration."""
        return {
            "images": self.images.detach().clone(),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "generator": self.generator.get_state(),
            "dsa": self.dsa.state_dict(),
            "iteration": self.iteration,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict` of a trainer of the same arguments, bit for bit; `InputError` for another's."""
        if missing := [name for name in self.state_dict() if name not in state]:
            raise InputError(f"this is no state of this trainer: it lacks {', '.join(missing)}.")
        if state["images"].shape != self.images.shape:
            raise InputError(
                f"this state is of {tuple(state['images'].shape)} images, expected {tuple(self.images.shape)}; load it "
                "into a trainer of the same data and images per class."
            )
        with torch.no_grad():
            self.images.copy_(state["images"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.generator.set_state(state["generator"].cpu())
        self.dsa.load_state_dict(state["dsa"])
        self.iteration = state["iteration"]

    def run(self, iterations: int, on_iteration: Callable[[int, Tensor], object] | None = None) -> Tensor:
        """`iterations` more steps; `on_iteration(done, loss)` is called after each. Returns the synthetic images."""
        for _ in range(iterations):
            loss = self.step()
            if on_iteration is not None:
                on_iteration(self.iteration, loss)
        return self.images.detach()

    def _random_network(self) -> Callable[[Tensor], Tensor]:
        channels, height, width = self.data.shape
        given = {"num_classes": self.data.num_classes, "channels": channels, "size": (height, width), **self.options}
        with seeded(int(torch.randint(2**62, (), generator=self.generator, device="cpu"))):
            network = build(self.architecture, **given)
        assert isinstance(network, Network)
        return network.to(self.images.device).requires_grad_(False).embed

    def _real_batch(self) -> tuple[Tensor, Tensor]:
        """`batch_real` images of every class, drawn with replacement, sorted by class, and their labels."""
        classes = torch.arange(self.data.num_classes, device=self.data.train_labels.device)
        chosen = self._by_class.draw(classes, self.batch_real, self.generator)
        return self.data.train_images[chosen], self.data.train_labels[chosen]
