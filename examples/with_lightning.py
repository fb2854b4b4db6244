"""A LightningModule that distils, with `lightning.Trainer` in charge of the loop and the optimizer.

    python examples/with_lightning.py [--at module|fit|configure] [--steps 40] [--weight 1]

"module" attaches to the module before `fit`: the layer goes on what its `augment` returns. The other two attach to the
optimizer of the images, in a hook of the module's own: "fit" to what Lightning makes of it, "configure" to itself.
Needs `pip install lightning 'ddplug[demo]'`.
"""

import argparse

import lightning
import torch
from torch.utils.data import DataLoader

import ddplug
from ddplug import datasets, networks, training
from ddplug.augment import DSA

parser = argparse.ArgumentParser()
parser.add_argument("--at", choices=["module", "fit", "configure"], default="module")
parser.add_argument("--steps", type=int, default=40)
parser.add_argument("--weight", type=float, default=1)
args = parser.parse_args()

data = datasets.load("digits")
torch.manual_seed(0)
proxy = networks.build("convnet", num_classes=10, channels=1, size=[8, 8], width=16)
training.fit(proxy, data.train_images, data.train_labels, epochs=5, lr=0.05, batch_size=64, seed=0)
options = {"proxies": proxy, "representation": "logit"}  # logits say more than the features of so small a network
measure = ddplug.CMI(proxy, "logit")
real = torch.stack([data.train_images[data.train_labels == c].mean(0) for c in range(10)])


class Distillation(lightning.LightningModule):
    """Matches the mean picture of each class. It need know of ddplug only where it attaches by itself."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        images, labels = datasets.random_real(data, ipc=5, generator=torch.Generator().manual_seed(0))
        self.images = torch.nn.Parameter(images)
        self.register_buffer("labels", labels)
        self.draw, self.weight, self.handle = DSA("crop_scale_rotate", seed=0), weight, None

    def augment(self, images: torch.Tensor) -> torch.Tensor:
        return self.draw(images)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        views = self.augment(self.images)
        return (views.unflatten(0, (10, 5)).mean(1) - batch[0]).square().sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD([self.images], lr=0.5)
        if args.at == "configure":
            self.handle = ddplug.attach(optimizer, self.weight, labels=self.labels, augment="none", **options)
        return optimizer

    def on_fit_start(self) -> None:
        if args.at == "fit":  # self.optimizers() is a LightningOptimizer by now
            self.handle = ddplug.attach(self.optimizers(), self.weight, labels=self.labels, augment="none", **options)


for weight in (0, args.weight):
    module = Distillation(weight)
    start = measure(module.images, module.labels).item()
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    trainer = lightning.Trainer(accelerator="cpu", max_steps=args.steps, max_epochs=-1, **quiet)
    if args.at == "module":
        module.handle = ddplug.attach(module, weight, **options)
    trainer.fit(module, DataLoader(real[None]))
    handle, end = module.handle, measure(module.images, module.labels).item()
    handle.detach()
    rounds = handle.regularizer.rounds
    print(f"weight {weight:g}: {rounds} rounds, CMI {start:.1e} -> {end:.1e} nats")
