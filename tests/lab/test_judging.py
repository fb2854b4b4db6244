"""The one way to judge a set: fresh networks, where their augmentation's numbers come from, and what does not fit."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from ddplug import datasets
from ddplug.augment.dsa import DSA
from ddplug.datasets.images import ImageData, random_real
from ddplug.errors import InputError, ProxyError
from ddplug.lab.judging import DSAPerNetwork, DSAViews, Recipe, check_fits, maker
from ddplug.networks.training import ShiftAndFlip, accuracy, fit
from ddplug.networks.zoo import build, seeded

pytest.importorskip("sklearn")
pytestmark = pytest.mark.numerical

SHORT = Recipe(epochs=8, lr=0.05, batch_size=20, augment=ShiftAndFlip(1, False))


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return datasets.load("digits")


@pytest.fixture(scope="module")
def few(digits: ImageData) -> tuple[Tensor, Tensor]:
    """Ten digits of each class."""
    return random_real(digits, 10, torch.Generator().manual_seed(0))


def fresh() -> nn.Module:
    return build("convnet", channels=1, size=(8, 8), width=16, depth=2)


def by_hand(few: tuple[Tensor, Tensor], digits: ImageData, seed: int, recipe: Recipe) -> float:
    """A network that is built, shuffled and augmented from `seed`."""
    with seeded(seed):
        net = fresh()
    fit(net, *few, epochs=recipe.epochs, lr=recipe.lr, batch_size=recipe.batch_size, augment=recipe.augment, seed=seed)
    return accuracy(net, digits.test_images, digits.test_labels)


@pytest.mark.usefixtures("untouched")
def test_a_fresh_network_is_trained_from_its_seed_and_tested_on_test_images(
    digits: ImageData, few: tuple[Tensor, Tensor]
) -> None:
    scores = [SHORT.judge(*few, digits, fresh, seed=seed) for seed in (2, 3, 2)]
    assert scores[0] == by_hand(few, digits, 2, SHORT) == scores[2] != scores[1]
    assert all(0.3 < score <= 1 for score in scores)


def test_numbers_come_from_the_training_or_from_the_network(digits: ImageData, few: tuple[Tensor, Tensor]) -> None:
    """The two rules that records were made by: both have to stay what they are."""
    views = replace(SHORT, augment=DSAViews("crop_scale"))
    assert views.judge(*few, digits, fresh, seed=4) == by_hand(few, digits, 4, views)
    dsa = DSA("crop_scale", siamese=False, seed=4)
    expected = by_hand(few, digits, 4, replace(SHORT, augment=lambda images, generator: dsa(images)))
    per_network = replace(SHORT, augment=DSAPerNetwork("crop_scale"))
    first, again = (per_network.judge(*few, digits, fresh, seed=4) for _ in range(2))
    assert first == expected == again, "a generator for each network, not one that counts on from network to network"


def test_networks_fit_the_data_and_have_names_in_any_case(digits: ImageData) -> None:
    net = maker("ConvNet", digits, {"width": 8})()
    assert net(digits.test_images[:2]).shape == (2, 10)
    with pytest.raises(ProxyError, match="unknown architecture"):
        maker("nothing", digits, {})()


def test_soft_labels_are_learned_from(digits: ImageData, few: tuple[Tensor, Tensor]) -> None:
    images, labels = few
    soft = nn.functional.one_hot(labels, 10).float()
    assert SHORT.judge(images, soft, digits, fresh, seed=0) > 0.3


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        ((2, 1, 8, 7), torch.tensor([0, 1]), r"do not fit digits, whose images are \(1, 8, 8\)"),
        ((2, 1, 8, 8), torch.tensor([0, 10]), "labels for 11 classes do not fit digits, which has 10"),
        ((2, 1, 8, 8), torch.rand(2, 9), "labels for 9 classes do not fit"),
    ],
)
def test_a_set_that_does_not_fit_is_refused(
    images: tuple[int, ...], labels: Tensor, said: str, digits: ImageData
) -> None:
    for check in (check_fits, partial(SHORT.judge, make=fresh, seed=0)):
        with pytest.raises(InputError, match=said):
            check(torch.zeros(images), labels, digits)
