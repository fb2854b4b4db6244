"""Real data that hang on a trainer: proxies are trained on them, and their normalisation is the views'."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets.test_torch_sets import MEAN, STD, Pictures
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchvision import transforms

import ddplug
from ddplug.attaching.data import RealData, found_in
from ddplug.datasets import as_image_data
from ddplug.datasets.spaces import InputSpace
from ddplug.proxies.doubts import CALLS
from ddplug.proxies.pool import PoolInfo

pytestmark = pytest.mark.numerical


class Matching:
    """Distribution matching as people write it: one optimizer, one augmentation, a shuffled loader of real images."""

    def __init__(self, transform: Any) -> None:
        self.loader = DataLoader(Pictures(transform), batch_size=6, shuffle=True)
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(6, 3, 8, 8, generator=generator).requires_grad_()
        self.labels = torch.arange(6) % 3
        self.optimizer = torch.optim.SGD([self.images], 0.1)

    def augment(self, images: Tensor) -> Tensor:
        return images.flip(-1)

    def step(self) -> Tensor:
        self.optimizer.zero_grad()
        real, _ = next(iter(self.loader))
        (self.augment(self.images).mean(0) - self.augment(real).mean(0)).square().sum().backward()
        self.optimizer.step()
        return self.images.detach().clone()


NORMALIZED = transforms.Compose(
    [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
)


@pytest.mark.filterwarnings("ignore:proxy .* is right on")
def test_a_loader_is_all_that_proxies_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DDPLUG_CACHE", str(tmp_path))
    monkeypatch.setattr("ddplug.networks.training.MOST_STEPS", 100)
    trainer = Matching(NORMALIZED)
    with ddplug.attach(trainer, weight=0.1) as handle:
        for _ in range(12):
            trainer.step()
    assert handle.regularizer.pool.info.space == InputSpace(MEAN, STD)
    assert handle.regularizer.pool.info.class_names == ("cat", "dog", "cow")
    assert handle.regularizer.rounds == 12
    assert "real data loader, normalised by mean (0.5, 0.4, 0.3), std (0.25, 0.2, 0.1)" in capsys.readouterr().out


def test_a_pool_of_another_normalisation_sees_converted_images() -> None:
    """The views are in the space of Normalize, as the loader on the trainer shows: not in the pool's, [0, 1]."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
    given: list[Tensor] = []
    network.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].detach().clone()))
    unit = ddplug.ProxyPool.from_modules([network], info=PoolInfo(space=InputSpace.unit(3)))
    trainer = Matching(NORMALIZED)
    views = trainer.images.detach().clone().flip(-1)
    with ddplug.attach(trainer, 1, proxies=unit, weighting="absolute", representation="logit"):
        given.clear()
        trainer.step()
    expected = InputSpace(MEAN, STD).to_unit(views)
    assert any(batch.shape == expected.shape and torch.allclose(batch, expected, atol=1e-6) for batch in given)


@pytest.mark.parametrize(
    ("own", "warned"),
    [(InputSpace((0.5,) * 3, (0.25,) * 3), True), (None, False), (InputSpace((0.28,) * 3, (0.5,) * 3), True)],
    ids=["another mean", "the data's", "another standard deviation"],
)
def test_views_that_are_normalised_otherwise_than_given_data(own: InputSpace | None, warned: bool) -> None:
    """Nothing on the trainer says what its images are, so only their numbers can show that they are not the data's."""
    generator = torch.Generator().manual_seed(3)
    pictures = 0.28 + 0.2 * torch.rand(120, 3, 1, 1, generator=generator) - 0.1
    pictures = pictures + 0.5 * torch.rand(120, 3, 8, 8, generator=generator) - 0.25
    space = InputSpace(tuple(pictures.mean((0, 2, 3)).tolist()), tuple(pictures.std((0, 2, 3)).tolist()))
    data = as_image_data((space.from_unit(pictures), torch.arange(120) % 3), space=space)
    trainer = Matching(NORMALIZED)
    del trainer.loader
    chosen = (own or space).from_unit(pictures[:30])
    trainer.images, trainer.labels = chosen.clone().requires_grad_(), torch.arange(30) % 3
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
    pool = ddplug.ProxyPool.from_modules([network], info=PoolInfo(space=InputSpace.unit(3)))
    with ddplug.attach(trainer, 0.1, proxies=pool, data=data), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(CALLS):
            trainer.augment(trainer.images).sum().backward()
    said = [str(each.message) for each in caught if "input_space=ddplug.InputSpace.normalized" in str(each.message)]
    assert len(said) == warned


def test_at_weight_zero_no_data_are_read() -> None:
    class Unreadable(Pictures):
        def __getitem__(self, index: int) -> tuple[Any, int]:
            raise AssertionError("read")

    trainer = Matching(NORMALIZED)
    trainer.loader = DataLoader(Unreadable(NORMALIZED))
    ddplug.attach(trainer, 0).detach()


ITEM = Pictures(NORMALIZED)
LOADER = DataLoader(ITEM, batch_size=4, shuffle=True)
HELD: dict[str, tuple[Any, str]] = {
    "a loader": (SimpleNamespace(loader=LOADER, lr=1.0), "loader"),
    "train and test": (SimpleNamespace(test_set=Pictures(transforms.ToTensor()), train_set=ITEM), "train_set"),
    "one level down": (SimpleNamespace(data=SimpleNamespace(train=ITEM)), "data.train"),
    "in a dictionary": (SimpleNamespace(loaders={"train": LOADER, "val": LOADER}), "loaders.train"),
    "in a list": (SimpleNamespace(loaders=[LOADER]), "loaders.0"),
    "the largest": (SimpleNamespace(few=Subset(ITEM, [0, 1]), all=ITEM), "all"),
}


def test_data_are_found_in_slots() -> None:
    class Slotted:
        __slots__ = ("data", "images")

    trainer = Slotted()
    trainer.data = ITEM
    found = found_in(trainer)
    assert found is not None
    assert found.train is ITEM


@pytest.mark.parametrize("name", HELD)
def test_data_are_found_on_a_trainer(name: str) -> None:
    trainer, where = HELD[name]
    found = found_in(trainer)
    assert found is not None
    assert found.where == where
    assert found.train is ITEM


def test_pairs_of_tensors_are_found_and_synthetic_images_are_none() -> None:
    synthetic = torch.rand(6, 3, 8, 8, requires_grad=True)
    real = torch.rand(12, 3, 8, 8)
    trainer = SimpleNamespace(images=synthetic, labels=torch.arange(6), real=real, real_labels=torch.arange(12) % 3)
    found = found_in(trainer)
    assert found is not None
    assert found.where == "real"
    assert found.train[0] is real
    assert found_in(SimpleNamespace(images=synthetic, labels=torch.arange(6))) is None
    assert found_in(torch.optim.SGD([synthetic], 1.0)) is None


def test_data_that_are_given_count_before_those_on_the_trainer() -> None:
    pictures = (torch.rand(6, 3, 8, 8), torch.arange(6) % 3)
    trainer = SimpleNamespace(data=as_image_data(pictures, space="unit"))
    given = as_image_data((torch.rand(9, 3, 8, 8), torch.arange(9) % 3), space="unit")
    for data in (given, TensorDataset(given.train_images, given.train_labels)):
        assert RealData(trainer, data, "unit").images() not in (None, trainer.data)
    assert RealData(trainer, None, None).images() is trainer.data
