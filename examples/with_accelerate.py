"""A loop under Hugging Face Accelerate, with gradient accumulation: each step adds up two passes of five classes each.

    python examples/with_accelerate.py [--layer] [--steps 40] [--weight 1]

Attached to the optimizer that Accelerate has prepared, CMI's gradient on the images comes in where that really steps,
so nothing else need be said. With --layer the layer is in the loop, where it sees the augmented views, and the passes
of one step are made one round.
Needs `pip install accelerate 'ddplug[demo]'`.
"""

import argparse

import torch
from accelerate import Accelerator

import ddplug
from ddplug import datasets, networks, training
from ddplug.augment import DSA

parser = argparse.ArgumentParser()
parser.add_argument("--layer", action="store_true", help="the layer in the loop, instead of attaching")
parser.add_argument("--steps", type=int, default=40)
parser.add_argument("--weight", type=float, default=1)
args = parser.parse_args()

data = datasets.load("digits")
torch.manual_seed(0)
proxy = networks.build("convnet", num_classes=10, channels=1, size=[8, 8], width=16)
training.fit(proxy, data.train_images, data.train_labels, epochs=5, lr=0.05, batch_size=64, seed=0)
measure = ddplug.CMI(proxy, "logit")  # which says more than the features of so small a network
means = [data.train_images[data.train_labels == c].mean(0) for c in range(10)]
halves = [range(5), range(5, 10)]


def distil(weight: float) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=len(halves))
    images, labels = datasets.random_real(data, ipc=5, generator=torch.Generator().manual_seed(0))
    images, labels = images.to(accelerator.device).requires_grad_(), labels.to(accelerator.device)
    optimizer = accelerator.prepare(torch.optim.SGD([images], lr=0.5))
    augment = DSA("crop_scale_rotate", seed=0)
    start = measure(images, labels).item()

    def rows_of(classes: range) -> torch.Tensor:
        return torch.isin(labels, torch.tensor(classes))

    def loss_of(views: torch.Tensor, classes: range) -> torch.Tensor:
        """The distance of the mean picture of each class, of five images, from that of real ones."""
        return sum((v.mean(0) - means[c]).square().sum() for v, c in zip(views.split(5), classes, strict=True))

    if args.layer:
        regularizer = ddplug.Regularizer(proxy, weight, representation="logit")
        for _ in range(args.steps):
            with regularizer.round():  # CMI of the images of both passes, around common centroids
                for classes in halves:
                    with accelerator.accumulate():
                        rows = rows_of(classes)
                        views = regularizer(augment(images[rows]), labels[rows])
                        accelerator.backward(loss_of(views, classes))
            optimizer.step()  # after the block, at whose end CMI's gradient arrives
            optimizer.zero_grad()
    else:
        with ddplug.attach(
            optimizer, weight, proxies=proxy, labels=labels, augment="none", representation="logit"
        ) as handle:
            regularizer = handle.regularizer
            for _ in range(args.steps):
                for classes in halves:
                    with accelerator.accumulate():
                        accelerator.backward(loss_of(augment(images[rows_of(classes)]), classes))
                        optimizer.step()  # by Accelerate's doing, only after the last of the passes
                        optimizer.zero_grad()
    end = measure(images, labels).item()
    print(f"weight {weight:g}: {regularizer.rounds} rounds, CMI {start:.1e} -> {end:.1e} nats")


for weight in (0, args.weight):
    distil(weight)
