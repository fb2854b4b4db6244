"""Images recovered from a trained network, one of each class at a time, with CMI around real centroids.

    python examples/recover_images.py [--weight 1] [--ipc 10] [--iterations 100]
    python examples/recover_images.py --data cifar10 --data-path FOLDER --proxies POOL --held-out POOL --teacher POOL

A loop such as SRe2L's: cross-entropy under the network, plus how far the batch's statistics are from those that its
batch norms have kept. No batch has two images of a class, so that CMI of a batch is 0; around the centroids of real
images it is not. Runs of one seed start from the same noise. Pools that are not given are trained on the
data, which is a matter of seconds for the digits (`pip install 'ddplug[demo]'`).
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ddplug
from ddplug.datasets.images import ImageData, load
from ddplug.lab.judging import Recipe, maker
from ddplug.lab.measure import measure
from ddplug.proxies.pretrain import pretrain

parser = argparse.ArgumentParser()
parser.add_argument("--data", default="digits")
parser.add_argument("--data-path")
for pool in ("teacher", "proxies", "held-out"):
    parser.add_argument(f"--{pool}", help="a pool's folder; trained unless given")
parser.add_argument("--proxy-epochs", type=int, default=10)
parser.add_argument("--width", type=int, default=32, help="of networks that are trained here")
parser.add_argument("--weight", type=float, default=1.0)
parser.add_argument("--ipc", type=int, default=10)
parser.add_argument("--iterations", type=int, default=100, help="for each image")
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--statistics", type=float, default=0.05, help="factor on the distance of the batch's statistics")
parser.add_argument("--seeds", type=int, default=2)
parser.add_argument("--epochs", type=int, default=200, help="of the network that judges a set")
parser.add_argument("--test-images", type=int, help="only the first so many judge")
args = parser.parse_args()


class Statistics:
    """How far the inputs of a network's batch norms were, in its last pass, from what they have kept."""

    def __init__(self, network: nn.Module) -> None:
        self.distances: list[Tensor] = []
        network.register_forward_pre_hook(lambda *_: self.distances.clear())
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_pre_hook(self.note)

    def note(self, norm: nn.BatchNorm2d, given: tuple[Tensor]) -> None:
        """One layer's distance: of the means, and of the variances."""
        variance, mean = torch.var_mean(given[0], (0, 2, 3), correction=0)
        self.distances.append((mean - norm.running_mean).norm() + (variance - norm.running_var).norm())


def recover(data: ImageData, teacher: nn.Module, regularizer: ddplug.Regularizer, seed: int) -> tuple[Tensor, Tensor]:
    """A set of `args.ipc` images of each class, and its labels."""
    statistics, generator = Statistics(teacher), torch.Generator().manual_seed(seed)
    labels, found = torch.arange(data.num_classes), []
    low, high = (data.train_images.amin((0, 2, 3), keepdim=True), data.train_images.amax((0, 2, 3), keepdim=True))
    most = data.shape[1] // 8
    for _ in range(args.ipc):
        images = torch.randn(data.num_classes, *data.shape, generator=generator).requires_grad_()
        optimizer = torch.optim.Adam([images], args.lr, betas=(0.5, 0.9))
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.iterations)
        for _ in range(args.iterations):
            shift = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
            views = torch.roll(images, shift, (2, 3))

            views = regularizer(views, labels)  # <- the one line

            loss = F.cross_entropy(teacher(views), labels) + args.statistics * sum(statistics.distances)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
            images.data.clamp_(low, high)
        found.append(images.detach())
    return torch.cat(found), labels.repeat(args.ipc)


def pool_of(given: str | None, data: ImageData, folder: Path, seed: int, norm: str) -> ddplug.ProxyPool:
    """The pool that was given, or one of a network trained now."""
    if given:
        return ddplug.ProxyPool.load(given)
    options = {"width": args.width, "norm": norm}
    recipe = {"count": 1, "epochs": args.proxy_epochs, "lr": 0.1, "batch_size": 64, "seed": seed, "options": options}
    return pretrain(data, folder, **recipe, progress=False)


data = load(args.data, args.data_path)
with tempfile.TemporaryDirectory() as folder:
    teacher = pool_of(args.teacher, data, Path(folder, "teacher"), 0, "batch").proxies[0].network
    proxies = pool_of(args.proxies, data, Path(folder, "proxies"), 1, "instance")
    held_out = pool_of(args.held_out, data, Path(folder, "held-out"), 2, "instance")

judged, few = maker("convnet", data, {"width": args.width}), args.test_images
test = replace(data, test_images=data.test_images[:few], test_labels=data.test_labels[:few])
for seed in range(args.seeds):
    for term in ("cmi", "cmi_real"):
        # Every image starts anew, so the share is measured all the time; around the batch's own there is no CMI.
        weight = 0 if term == "cmi" else args.weight
        regularizer = ddplug.Regularizer(proxies, weight, weighting="sustained", term=term, data=data, seed=seed)
        images, labels = recover(data, teacher, regularizer, seed)
        cmi = measure(held_out, images, labels, representation="logit").cmi
        accuracy = Recipe(epochs=args.epochs).judge(images, labels, test, judged, seed=seed)
        shown = "without CMI" if term == "cmi" else "CMI around real centroids"
        print(f"seed {seed}, {shown}: held-out CMI {cmi:.3g} nats, accuracy {accuracy:.1%}", flush=True)
