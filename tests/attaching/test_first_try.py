"""Ordinary trainers, and the one line of README: `ddplug.attach(trainer, weight=0.1)`.

None was written with ddplug in mind. Each is held against float64 autograd of its own loss plus lambda * CMI where the
views are the host's, and checked to have acted on all of its images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchvision import transforms

import ddplug
from ddplug.augment import DSA
from ddplug.datasets.spaces import InputSpace
from ddplug.proxies.pool import PoolInfo

pytestmark = pytest.mark.numerical

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CLASSES, IPC, STEPS = 3, 4, 12
COUNT = CLASSES * IPC


class Blobs(Dataset):  # type: ignore[type-arg]
    """Sixty noisy pictures, brighter in another channel in each of three classes, as torchvision would have them."""

    def __init__(self, transform: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(60) % CLASSES
        noise = torch.rand(60, 3, 8, 8, generator=generator)
        pixels = 0.5 * noise + 0.4 * F.one_hot(self.labels, 3)[:, :, None, None]
        self.pictures = [transforms.functional.to_pil_image(image) for image in pixels]
        self.transform = transform

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.pictures[index]), int(self.labels[index])


PLAIN = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
FLIPPED = transforms.Compose([transforms.RandomHorizontalFlip(), *PLAIN.transforms])


def start() -> tuple[Tensor, Tensor]:
    images = torch.randn(COUNT, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return images, torch.arange(CLASSES).repeat_interleave(IPC)


def network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, CLASSES))


class DistributionMatching:
    """Class by class, through an augmentation of its own."""

    def __init__(self) -> None:
        images, labels = start()
        self.syn = images.requires_grad_()
        self.syn_labels = labels
        self.dataset = Blobs(FLIPPED)
        self.net = network()
        self.opt = torch.optim.SGD([self.syn], lr=1.0)

    def augment(self, x: Tensor) -> Tensor:
        return torch.roll(x, 1, dims=-1)

    def train(self, steps: int = STEPS) -> Tensor:
        real = torch.stack([self.dataset[index][0] for index in range(60)])
        labels = self.dataset.labels
        for _ in range(steps):
            loss = torch.zeros(())
            for c in range(CLASSES):
                shown = self.augment(self.syn[c * IPC : (c + 1) * IPC])
                loss = (
                    loss + (self.net(shown).mean(0) - self.net(self.augment(real[labels == c])).mean(0)).square().sum()
                )
            self.opt.zero_grad()
            loss.backward()
            self.opt.step()
        return self.syn.detach()


class GradientMatching:
    """No augmentation and no method for the loss; gradients of a network are matched, with a graph of their own."""

    def __init__(self) -> None:
        images, labels = start()
        self.x = nn.Parameter(images)
        self.y = labels
        self.train_loader = DataLoader(Blobs(PLAIN), batch_size=20, shuffle=True)
        self.image_optimizer = torch.optim.Adam([self.x], lr=0.01)
        self.net = network()
        self.net_optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01)

    def fit(self, steps: int = STEPS) -> Tensor:
        parameters = list(self.net.parameters())
        torch.manual_seed(11)
        for _ in range(steps):
            real, targets = next(iter(self.train_loader))
            wanted = torch.autograd.grad(F.cross_entropy(self.net(real), targets), parameters)
            got = torch.autograd.grad(F.cross_entropy(self.net(self.x), self.y), parameters, create_graph=True)
            self.image_optimizer.zero_grad()
            distance = sum(((a - b) ** 2).sum() for a, b in zip(wanted, got, strict=True))
            distance.backward()  # type: ignore[union-attr]
            self.image_optimizer.step()
        return self.x.detach()


class Learned(nn.Module):
    """A model that holds the images, as a trainer of a framework steps it."""

    def __init__(self) -> None:
        super().__init__()
        images, labels = start()
        self.images = nn.Parameter(images)
        self.register_buffer("targets", labels)
        self.backbone = network().requires_grad_(False)

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        own = torch.stack([self.backbone(self.images)[self.targets == c].mean(0) for c in range(CLASSES)])
        return (own[labels] - self.backbone(pixels)).square().mean()


class FrameworkTrainer:
    """In the manner of Hugging Face: the optimizer is made in `train`, and the model holds the images."""

    def __init__(self, model: nn.Module, train_dataset: Any) -> None:
        self.model, self.train_dataset = model, train_dataset
        self.optimizer: torch.optim.Optimizer | None = None

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        return model(**inputs)  # type: ignore[no-any-return]

    def train(self, steps: int = STEPS) -> Tensor:
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=0.01)
        loader = DataLoader(self.train_dataset, batch_size=30)
        for _ in range(steps):
            pixels, labels = next(iter(loader))
            self.optimizer.zero_grad()
            self.compute_loss(self.model, {"pixels": pixels, "labels": labels}).backward()
            self.optimizer.step()
        return self.model.images.detach()  # type: ignore[union-attr, operator]


class Embedded:
    """One image per row of an embedding, looked up at random, flat, from tensors that hang on the trainer."""

    def __init__(self) -> None:
        images, labels = start()
        self.table = nn.Embedding.from_pretrained(images.flatten(1), freeze=False)
        self.labels = labels.tolist()
        every = [Blobs(PLAIN)[index] for index in range(60)]
        self.data = TensorDataset(
            torch.stack([image for image, _ in every]), torch.tensor([label for _, label in every])
        )
        self.net = network()
        self.optimizer = torch.optim.SGD(self.table.parameters(), lr=1.0)

    def train(self, steps: int = STEPS) -> Tensor:
        real = self.data.tensors[0]
        generator = torch.Generator().manual_seed(2)
        for _ in range(steps):
            order = torch.randperm(COUNT, generator=generator)
            own = self.net(self.table(order).reshape(-1, 3, 8, 8))
            self.optimizer.zero_grad()
            (own.mean(0) - self.net(real).mean(0)).square().sum().backward()
            self.optimizer.step()
        return self.table.weight.detach().reshape(-1, 3, 8, 8)


class OneLeafPerClass:
    """A list of leaves, one for each class, in dictionaries."""

    def __init__(self) -> None:
        images, labels = start()
        self.state = {"leaves": [part.clone().requires_grad_() for part in images.split(IPC)], "labels": labels}
        self.splits = {"train": Subset(Blobs(PLAIN), range(60))}
        self.net = network()
        self.optimizer = torch.optim.SGD(self.state["leaves"], lr=1.0)  # type: ignore[arg-type]

    def train(self, steps: int = STEPS) -> Tensor:
        leaves: Any = self.state["leaves"]
        for _ in range(steps):
            for leaf in leaves:
                self.optimizer.zero_grad()
                self.net(leaf).square().sum().backward()
                self.optimizer.step()
        return torch.cat([leaf.detach() for leaf in leaves])


TRAINERS: dict[str, Callable[[], Any]] = {
    "distribution matching": DistributionMatching,
    "gradient matching": GradientMatching,
    "a framework's trainer": lambda: FrameworkTrainer(Learned(), Blobs(FLIPPED)),
    "an embedding": Embedded,
    "a leaf per class": OneLeafPerClass,
}


def run(trainer: Any) -> Tensor:
    return trainer.train() if hasattr(trainer, "train") else trainer.fit()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def quick(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One cache for all: their data are the same, so that one pool is trained."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("DDPLUG_CACHE", str(cache))
    monkeypatch.setattr("ddplug.networks.training.MOST_STEPS", 150)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", TRAINERS)
def test_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every step has all of its images in CMI; weight 0 and the time after `detach()` are those without, to the bit."""
    plain = run(TRAINERS[name]()).clone()
    trainer = TRAINERS[name]()
    handle = ddplug.attach(trainer, weight=0.1)
    regularized = run(trainer)
    parts = CLASSES if name == "a leaf per class" else 1
    assert [entry.images for entry in handle.history] == [COUNT // parts] * STEPS * parts
    handle.detach()
    assert not torch.equal(plain, regularized)
    assert torch.equal(run(TRAINERS[name]()), plain)
    off = TRAINERS[name]()
    with ddplug.attach(off, weight=0):
        assert torch.equal(run(off), plain)
    said = capsys.readouterr().out
    assert "ddplug: attached to" in said
    if name != "an embedding":  # of tensors whose normalisation nobody says
        assert handle.regularizer.pool.info.space == InputSpace(MEAN, STD)
        assert "normalised by mean (0.5, 0.5, 0.5)" in said


def test_an_optimizer_gets_the_gradient_of_augmented_views(
    pool: ddplug.ProxyPool, batch: tuple[Tensor, Tensor]
) -> None:
    """lambda * dCMI(DSA(x))/dx of a DSA of the same seed, by autograd in float64; "none" is without DSA."""
    images, labels = batch
    for augment, views in ((DSA(seed=4), DSA(seed=4)), ("none", nn.Identity())):
        own = images.clone().requires_grad_()
        (of_cmi,) = torch.autograd.grad(ddplug.CMI(pool)(views(own), labels), own)
        leaf = images.clone().requires_grad_()
        optimizer = torch.optim.SGD([leaf], lr=0.0)
        options: Any = {"weighting": "absolute", "representation": "feature", "augment": augment}
        with ddplug.attach(optimizer, 0.7, proxies=pool, labels=labels, **options):
            leaf.sum().backward()
            optimizer.step()
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad, 1 + 0.7 * of_cmi, rtol=1e-10, atol=1e-12)


def test_a_leaf_that_holds_no_images_is_refused() -> None:
    """Latents of a generator have rows and labels as images have, and are none."""
    trainer = Embedded()
    trainer.table = nn.Embedding(COUNT, 192)
    network_of_images = ddplug.ProxyPool.from_modules(
        [network()], info=PoolInfo(shape=(3, 9, 9), class_names=("a", "b", "c"))
    )
    trainer.data = None  # type: ignore[assignment]
    with pytest.raises(ddplug.errors.HostError, match=r"\(12, 192\).*holds no images of shape \(3, 9, 9\)"):
        optimizer = trainer.optimizer = torch.optim.SGD(trainer.table.parameters(), lr=1.0)
        with ddplug.attach(trainer, weight=0.1, proxies=network_of_images):
            trainer.table.weight.sum().backward()
            optimizer.step()


def test_one_line_with_everything_in_local_variables() -> None:
    """An optimizer has no data and no labels, so these are given."""

    def distil(weight: float) -> Tensor:
        images, labels = start()
        images.requires_grad_()
        net, data = network(), Blobs(PLAIN)
        real = torch.stack([data[index][0] for index in range(60)])
        optimizer = torch.optim.SGD([images], lr=1.0)
        with ddplug.attach(optimizer, weight, labels=labels, data=data) as handle:
            for _ in range(STEPS):
                optimizer.zero_grad()
                (net(images).mean(0) - net(real).mean(0)).square().sum().backward()
                optimizer.step()
        assert handle.regularizer.rounds == (STEPS if weight else 0)
        return images.detach()

    assert not torch.equal(distil(0.1), distil(0))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_one_line_for_a_lightning_module_with_manual_optimization() -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            images, labels = start()
            self.images = nn.Parameter(images)
            self.register_buffer("labels", labels)
            self.net = network().requires_grad_(False)
            self.train_set = Blobs(PLAIN)
            self.automatic_optimization = False

        def train_dataloader(self) -> Any:
            return DataLoader(self.train_set, batch_size=60)

        def training_step(self, batch: Any, number: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward((self.net(self.images).mean(0) - self.net(batch[0]).mean(0)).square().sum())
            optimizer.step()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([self.images], lr=1.0)

    module = Module()
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    with ddplug.attach(module, weight=0.1) as handle:
        lightning.Trainer(accelerator="cpu", max_steps=STEPS, max_epochs=-1, **quiet).fit(module)
    assert [entry.images for entry in handle.history] == [COUNT] * STEPS


def test_the_end_says_in_how_many_steps_cmi_acted(capsys: pytest.CaptureFixture[str]) -> None:
    """A trainer whose augmentation never sees the images ends with an error, not with the host's images in silence."""
    trainer = DistributionMatching()
    with ddplug.attach(trainer, weight=0.1):
        trainer.train()
    first = "(lambda was measured first)"
    said = f"CMI acted in {STEPS - 1} of {STEPS} steps of the images {first} at DistributionMatching.augment, CMI from"
    assert said in capsys.readouterr().out

    class Elsewhere(DistributionMatching):
        def train(self, steps: int = STEPS) -> Tensor:
            for _ in range(steps):
                self.opt.zero_grad()
                self.net(self.syn).square().sum().backward()
                self.opt.step()
            return self.syn.detach()

    elsewhere = Elsewhere()
    handle = ddplug.attach(elsewhere, weight=0.1)
    elsewhere.train()
    with pytest.raises(ddplug.errors.HostError, match=f"took {STEPS} steps of the images, and CMI was added in none"):
        handle.detach()
    assert not handle.attached
