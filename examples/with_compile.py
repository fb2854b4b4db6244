"""A trainer through `torch.compile`: attached to the compiled module, with the same gradient as uncompiled.

    python examples/with_compile.py [--backend eager|inductor] [--steps 40] [--weight 1]

The layer itself is left out of what is compiled: a graph ends before it and another begins behind it.
"inductor", torch's default, needs a C++ compiler. Needs `pip install 'ddplug[demo]'`.
"""

import argparse

import torch
from torch import Tensor, nn

import ddplug
from ddplug import datasets, networks, training

parser = argparse.ArgumentParser()
parser.add_argument("--backend", default="eager")
parser.add_argument("--steps", type=int, default=40)
parser.add_argument("--weight", type=float, default=1)
args = parser.parse_args()

data = datasets.load("digits")
torch.manual_seed(0)
proxy = networks.build("convnet", num_classes=10, channels=1, size=[8, 8], width=16)
training.fit(proxy, data.train_images, data.train_labels, epochs=5, lr=0.05, batch_size=64, seed=0)
measure = ddplug.CMI(proxy, "logit")  # which says more than the features of so small a network
real = torch.stack([data.train_images[data.train_labels == c].mean(0) for c in range(10)])


class Distillation(nn.Module):
    """Matches the mean picture of each class. It knows nothing of ddplug."""

    def __init__(self) -> None:
        super().__init__()
        images, labels = datasets.random_real(data, ipc=5, generator=torch.Generator().manual_seed(0))
        self.images = nn.Parameter(images)
        self.register_buffer("labels", labels)

    def augment(self, images: Tensor) -> Tensor:
        return images.roll(1, 3)

    def forward(self) -> Tensor:
        return (self.augment(self.images).unflatten(0, (10, 5)).mean(1) - real).square().sum()


def distil(weight: float, compiled: bool) -> Tensor:
    """The gradient that the last of the steps went by."""
    module = Distillation()
    trainer = torch.compile(module, backend=args.backend) if compiled else module
    optimizer = torch.optim.SGD([module.images], lr=0.5)
    with ddplug.attach(trainer, weight, proxies=proxy, representation="logit") as handle:
        for _ in range(args.steps):
            optimizer.zero_grad()
            trainer().backward()
            optimizer.step()
    cmi = measure(module.images, module.labels).item()
    kind = "compiled" if compiled else "plain"
    print(f"weight {weight:g}, {kind}: {handle.regularizer.rounds} rounds, CMI {cmi:.1e} nats")
    return module.images.grad


distil(0, compiled=True)
plain = distil(args.weight, compiled=False)
compiled = distil(args.weight, compiled=True)
difference = ((compiled - plain).norm() / plain.norm()).item()
print(f"after {args.steps} steps the two gradients differ by {difference:.1e} of their norm")
